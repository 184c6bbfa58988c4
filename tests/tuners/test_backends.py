"""Which way layers compute their updates, and that each gives the same."""

import copy
from unittest.mock import patch

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers.pytorch_utils import Conv1D

from surm import SurmConfig
from surm.structures import STRUCTURES, ops
from surm.structures.backends import BACKENDS
from tests.tuners.helpers import TWO, X, adapt, net, tiny_vit

ROWS = torch.randn(300, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def fuses(model: nn.Module, x: Tensor) -> bool:
    """Whether a call forms W + D, of which no more than one is formed for a layer."""
    with patch.object(ops, "summed_weight", wraps=ops.summed_weight) as fused:
        model(x)
    assert fused.call_count < 2
    return bool(fused.call_count)


def dense_output(layer: nn.Module, x: Tensor) -> Tensor:
    """W x + b + sum over active adapters of alpha S x, each S dense."""
    base = layer.get_base_layer()
    weight = base.weight.double()
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter).double()
    return x.double() @ weight.mT + base.bias.double()


@pytest.mark.parametrize("structure", [*STRUCTURES, "circulant+skew_circulant"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same_output_and_gradients(structure, backend):
    model = adapt(net(), structure=structure, init_weights=False, alpha=3.0, backend=backend, target_modules=["first"])
    layer = model.base_model.model.first
    x = ROWS.clone().requires_grad_()
    torch.testing.assert_close(layer(x), dense_output(layer, x))
    parameters = [p for p in layer.parameters() if p.requires_grad]
    matrix = layer.surm_update["default"]
    twin = x @ (layer.get_base_layer().weight + 3.0 * matrix.dense()).mT
    g = torch.ones_like(x).cumsum(0)
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), [x, *parameters], g), torch.autograd.grad(twin, [x, *parameters], g)
    )
    if backend != "auto":
        assert fuses(layer, x) == (backend == "fused")


@pytest.mark.sample(8)
@pytest.mark.parametrize("structure", sorted(STRUCTURES.keys() - {"diagonal", "block_low_rank"}))
def test_auto_adds_to_the_weight_for_many_rows_and_multiplies_apart_for_few(structure):
    """But for diagonals and blocks of low rank, whose own products cost less at any number of rows."""
    base = nn.Sequential(nn.Linear(1024, 1024))
    layer = adapt(base, structure=structure, init_weights=False, target_modules=["0"]).base_model.model[0]
    assert fuses(layer, torch.randn(2048, 1024))
    with torch.no_grad():
        assert not fuses(layer, torch.randn(1, 1024))


def test_adapters_of_several_structures_and_parts_are_added_to_one_weight():
    model = adapt(tiny_vit(), structure="circulant", init_weights=False, fused_parts=["q", "v"], backend="fused")
    model.add_adapter("other", SurmConfig(structure="kronecker", init_weights=False, alpha=0.5, backend="fused"))
    model.base_model.set_adapter(["default", "other"])
    layer = model.base_model.model.blocks[0].attn.qkv
    x = torch.randn(5, 192)
    assert fuses(layer, x)
    torch.testing.assert_close(layer(x).double(), dense_output(layer, x), rtol=1e-5, atol=1e-5)


def test_a_transposed_weight_is_added_to():
    torch.manual_seed(0)
    base = nn.Sequential(Conv1D(8, 12))
    model = adapt(base, structure="ldr", init_weights=False, target_modules=["0"], backend="fused").double()
    layer = model.base_model.model[0]
    x = ROWS[:5]
    assert fuses(layer, x)
    expected = x @ (layer.get_base_layer().weight + layer.get_delta_weight("default")) + layer.get_base_layer().bias
    torch.testing.assert_close(layer(x), expected)


def with_hook(model):
    model.base_model.model.first.get_base_layer().register_forward_hook(lambda module, inputs, output: 2 * output)


def with_own_forward(model):
    base = model.base_model.model.first.get_base_layer()
    forward = base.forward
    base.forward = lambda x: 2 * forward(x)


def with_trained_weight(model):
    model.base_model.model.first.get_base_layer().weight.requires_grad_(True)


def parametrized(model):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nn.utils.parametrize.register_parametrization(
        model.base_model.model.first.get_base_layer(), "weight", Doubled(), unsafe=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12)])
@pytest.mark.parametrize("change", [lambda model: None, with_hook], ids=["plain", "hook"])
def test_the_output_is_one_function_of_autograd_and_may_be_changed_in_place(change, shape, dtype):
    model = adapt(net().to(dtype), init_weights=False, target_modules=["first"], backend="dense")
    change(model)
    layer = model.base_model.model.first
    x = torch.linspace(-1, 1, ROWS[:10].numel()).to(dtype)[: torch.Size(shape).numel()].reshape(shape)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    y = layer(x)
    assert y.grad_fn.name() == "_LinearBackward"
    expected = torch.autograd.grad(y.relu().sum(), parameters)
    torch.testing.assert_close(torch.autograd.grad(layer(x).relu_().sum(), parameters), expected, rtol=0, atol=0)


def test_the_output_of_the_base_layer_stays_what_it_is():
    model = adapt(net(), init_weights=False, target_modules=["first"], backend="dense")
    layer, kept = model.base_model.model.first, []
    layer.get_base_layer().register_forward_hook(lambda module, inputs, output: kept.append(output))
    y = layer(ROWS)
    assert torch.equal(kept[0], net().first(ROWS))
    torch.testing.assert_close(y, kept[0] + ROWS @ layer.get_delta_weight("default").mT)


def test_a_parametrized_weight_is_added_to():
    model = adapt(net(), init_weights=False, target_modules=["first"], backend="fused")
    layer = model.base_model.model.first
    parametrized(model)
    assert fuses(layer, ROWS)
    torch.testing.assert_close(layer(ROWS), dense_output(layer, ROWS))


@pytest.mark.parametrize("change", [with_hook, with_own_forward, with_trained_weight])
@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_where_the_weight_cannot_be_added_to_the_update_goes_its_own_way(change, backend):
    model = adapt(net(), init_weights=False, target_modules=["first"], backend=backend)
    layer = model.base_model.model.first
    update = ROWS @ layer.get_delta_weight("default").mT
    change(model)
    assert not fuses(layer, ROWS)
    torch.testing.assert_close(layer(ROWS), layer.get_base_layer()(ROWS) + update)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(5, 11), (300, 13)])
def test_an_input_of_another_width_is_refused_as_by_the_base_layer(backend, shape):
    layer = adapt(net(), target_modules=["first"], backend=backend).base_model.model.first
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.zeros(shape, dtype=torch.float64))


def test_a_dropped_input_goes_its_own_way_in_training_only():
    model = adapt(net(), init_weights=False, target_modules=["first"], dropout=0.5, backend="fused")
    layer = model.base_model.model.first
    assert not fuses(layer.train(), ROWS)
    assert fuses(layer.eval(), ROWS)


@pytest.mark.parametrize("backend", ["auto", "fused", "dense", "fft"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_half_precision_keeps_a_small_update(backend, dtype, autocast, structure):
    """An update of a thousandth of the weight; added to it, most of it would be rounded away."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(64, 64, bias=False))
    model = adapt(base, structure=structure, init_weights=False, target_modules=["0"], backend=backend)
    layer = model.base_model.model[0]
    with torch.no_grad():
        size = layer.get_delta_weight("default").norm() / base[0].weight.norm()
        next(layer.surm_update["default"].parameters()).div_(1000 * size)
    exact = layer.get_delta_weight("default").double()
    assert exact.norm() / base[0].weight.norm() == pytest.approx(1e-3)
    if not autocast:
        layer.get_base_layer().to(dtype)
    x = torch.randn(4096, 64).to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast), torch.no_grad():
        assert not fuses(layer, x)
        update = next(layer._updates("default", x))[1]
        y, y_base = layer(x).double(), layer.get_base_layer()(x).double()
    expected = x.double() @ exact.mT
    assert (update.double() - expected).norm() < 1e-2 * expected.norm()
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(y, y_base + expected, rtol=step, atol=step * expected.abs().max().item())


# Two have factors that are products themselves, which autograd differentiates under autocast as it does any other's.
@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name not in ("lora_mini", "lora_xs")])
def test_a_backward_pass_under_autocast_stays_exact(structure):
    """The gradients in float32 of a layer that was called outside of it."""
    model = adapt(net(), structure=structure, init_weights=False, target_modules=["first"], backend="fused")
    layer = model.base_model.model.first.float()
    twin = copy.deepcopy(layer).double()
    x, g = ROWS.clone().requires_grad_(), torch.ones(len(ROWS), layer.out_features).cumsum(1)
    y = x @ (twin.get_base_layer().weight + twin.surm_update["default"].dense()).mT
    expected = torch.autograd.grad(y, [x, *twin.surm_update.parameters()], g.double())
    x = x.detach().float().requires_grad_()
    y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(y, [x, *layer.surm_update.parameters()], g)
    for gradient, exact in zip(found, expected, strict=True):
        assert gradient.dtype == torch.float32
        # A gate's gradient is one number, a sum whose terms cancel: off by 1e-5 in float32, by 1e-2 in bfloat16.
        bound = 1e-4 if exact.numel() == 1 else 1e-5
        assert (gradient - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_written_behind_autograds_back_are_seen(backend):
    model = adapt(net(), init_weights=False, target_modules=TWO, backend=backend).eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        outputs = [model(X)]
        for parameter in parameters:
            parameter.data.copy_(2 * parameter.data)
        outputs.append(model(X))
        vector_to_parameters(parameters_to_vector(parameters) * 0.5, parameters)
        outputs.append(model(X))
        model.base_model.model.first.get_base_layer().weight.data.mul_(2)
        outputs.append(model(X))
    assert not torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    assert not torch.equal(outputs[2], outputs[3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(backend, reentrant):
    model = adapt(net(), init_weights=False, target_modules=TWO, backend=backend)
    parameters = [p for p in model.parameters() if p.requires_grad]
    x = ROWS.clone().requires_grad_()
    expected = torch.autograd.grad(model(x).square().sum(), parameters)
    y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
    y.square().sum().backward()
    torch.testing.assert_close([p.grad for p in parameters], list(expected))


@pytest.mark.parametrize(
    "backend", ["fused", "fft", *(pytest.param(b, marks=pytest.mark.slow) for b in ("auto", "dense"))]
)
def test_compiled_layers_equal_eager_ones(backend, monkeypatch, recwarn):
    monkeypatch.setattr(torch._dynamo.utils, "warn_once_cache", set())  # torch warns once in a process
    model = adapt(net(), structure="ldr", init_weights=False, target_modules=TWO, backend=backend)
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch._dynamo.reset()
    compiled = torch.compile(model.base_model.model, fullgraph=True, backend="aot_eager")
    for x in (ROWS, ROWS[:70]):  # the second compiles for any number of rows
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(
            torch.autograd.grad(compiled(x).sum(), parameters), torch.autograd.grad(model(x).sum(), parameters)
        )
    assert [str(warning.message) for warning in recwarn if "Dynamo" in str(warning.message)] == []


def test_a_merged_model_is_exported():
    merged = adapt(net(), init_weights=False, target_modules=TWO).merge_and_unload()
    exported = torch.export.export(merged, (ROWS,))
    torch.testing.assert_close(exported.module()(ROWS), merged(ROWS))


def test_an_adapted_model_is_exported():
    model = adapt(net(), init_weights=False, target_modules=TWO, backend="fused").eval()
    exported = torch.export.export(model.base_model.model, (ROWS,))
    torch.testing.assert_close(exported.module()(ROWS), model(ROWS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_meta_device_computes_shapes(backend):
    model = copy.deepcopy(adapt(net(), target_modules=TWO, backend=backend)).to("meta")
    assert model(ROWS.to("meta")).shape == (300, 3)


def test_the_adapter_form_takes_backends_too():
    outputs = []
    for backend in ("auto", "dense", "fft"):
        config = SurmConfig(form="adapter", target_modules=["first"], init_weights=False, backend=backend)
        torch.manual_seed(0)
        outputs.append(get_peft_model(net(), config).double()(ROWS))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
