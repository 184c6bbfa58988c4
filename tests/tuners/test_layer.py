import copy
import pickle

import pytest
import torch
from peft import get_peft_model
from torch import nn

from surm import SurmConfig
from surm.structures import STRUCTURES
from surm.tuners import SurmLinear
from tests.tuners.helpers import IDS, adapt, dense, net, tiny_bert, tiny_vit

TWO = ["first", "second"]
X = torch.linspace(-1, 1, 5 * 12, dtype=torch.float64).reshape(5, 12)


def adapted_forward(model, updates, x):
    """The output of `Net` with dense `updates` of its first two layers."""
    first, second, head = model.first, model.second, model.head
    x = torch.tanh(x @ (first.weight + updates[0]).mT + first.bias)
    return head(torch.tanh(x @ (second.weight + updates[1]).mT + second.bias))


@pytest.mark.parametrize("structure", [*STRUCTURES, "circulant+skew_circulant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("init_weights", [True, "authors"])
def test_the_start_is_exactly_the_base_model(structure, dtype, init_weights):
    if init_weights == "authors" and structure in ("lora_mini", "lora_xs"):
        pytest.skip("the authors' start cannot train, or is not zero")
    model = tiny_vit().to(dtype)
    images = torch.randn(2, 3, 32, 32, dtype=dtype)
    before = model(images)
    adapted = adapt(model, structure=structure, init_weights=init_weights).eval()
    assert torch.equal(adapted(images), before)


@pytest.mark.parametrize("structure", ["circulant", "kronecker", "low_rank"])
@pytest.mark.parametrize("alpha", [1.0, -0.3])
def test_the_output_is_that_of_the_base_plus_alpha_times_the_dense_matrix(structure, alpha):
    model = net()
    adapted = adapt(
        copy.deepcopy(model), structure=structure, alpha=alpha, target_modules=TWO, init_weights=False
    ).base_model.model
    updates = [alpha * dense(layer, structure=structure) for layer in (adapted.first, adapted.second)]
    assert all(update.abs().max() > 1e-3 for update in updates)
    torch.testing.assert_close(adapted(X), adapted_forward(model, updates, X), rtol=0, atol=1e-13)
    torch.testing.assert_close(adapted.first.get_delta_weight("default"), updates[0], rtol=0, atol=1e-13)


def test_unload_gives_back_the_base_model():
    model = net()
    before = model(X)
    plain = adapt(model, target_modules=TWO, init_weights=False).unload()
    assert type(plain.first) is nn.Linear
    assert torch.equal(plain(X), before)


def test_disabling_gives_the_base_model_also_when_merged():
    model = net()
    before = model(X)
    adapted = adapt(model, target_modules=TWO, init_weights=False)
    with adapted.disable_adapter():
        assert torch.equal(adapted(X), before)
    assert not torch.allclose(adapted(X), before)
    adapted.merge_adapter()
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(X), before, rtol=0, atol=1e-13)


def test_two_active_adapters_add_up_and_can_be_switched_and_deleted():
    model = net()
    adapted = adapt(copy.deepcopy(model), structure="circulant", target_modules=TWO, init_weights=False)
    adapted.add_adapter(
        "other", SurmConfig(structure="kronecker", alpha=2.0, target_modules=["first"], init_weights=False)
    )
    layers = adapted.base_model.model
    one = [dense(layers.first), dense(layers.second)]
    other = [2.0 * dense(layers.first, adapter="other", structure="kronecker"), torch.zeros_like(one[1])]
    both = [one[0] + other[0], one[1]]

    def assert_updates(updates):
        torch.testing.assert_close(adapted(X), adapted_forward(model, updates, X), rtol=0, atol=1e-13)

    assert_updates(one)
    adapted.set_adapter("other")
    assert_updates(other)
    adapted.base_model.set_adapter(["default", "other"])
    assert_updates(both)
    adapted.merge_adapter(safe_merge=True)
    assert_updates(both)
    adapted.unmerge_adapter()
    adapted.base_model.set_adapter("other")
    adapted.delete_adapter("default")
    assert_updates(other)
    assert not any("default" in name for name, _ in adapted.named_parameters())


def test_each_part_of_a_fused_projection_has_its_own_update():
    model = adapt(tiny_vit(), init_weights=False, alpha=0.5)
    layer = model.base_model.model.blocks[0].attn.qkv
    assert isinstance(layer, SurmLinear)
    x = torch.randn(2, 7, 192)
    update = torch.cat([dense(layer, part) for part in "qkv"])
    expected = layer.base_layer(x).double() + 0.5 * x.double() @ update.mT
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-5)
    layer.merge()
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-5)


def test_parts_that_are_not_selected_stay_untouched():
    model = adapt(tiny_vit(), init_weights=False, fused_parts=["q", "v"])
    layer = model.base_model.model.blocks[1].attn.qkv
    weight = layer.weight.detach().clone()
    x = torch.randn(2, 192)
    base, output = (y.chunk(3, dim=-1) for y in (layer.base_layer(x), layer(x)))
    assert [torch.equal(a, b) for a, b in zip(base, output, strict=True)] == [False, True, False]
    layer.merge()
    rows, merged = weight.chunk(3), layer.weight.chunk(3)
    assert [torch.equal(a, b) for a, b in zip(rows, merged, strict=True)] == [False, True, False]


def test_adapters_of_one_fused_layer_may_select_different_parts():
    model = adapt(tiny_vit(), init_weights=False, fused_parts=["q"])
    model.add_adapter("other", SurmConfig(init_weights=False, fused_parts=["v"]))
    model.base_model.set_adapter(["default", "other"])
    layer = model.base_model.model.blocks[0].attn.qkv
    x = torch.randn(2, 192)
    update = torch.cat([dense(layer, "q"), torch.zeros(192, 192), dense(layer, "v", "other")])
    expected = layer.base_layer(x).double() + x.double() @ update.mT
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-5)


def test_dropout_acts_on_the_update_only_and_only_in_training():
    model = net()
    adapted = adapt(copy.deepcopy(model), target_modules=["first"], init_weights=False, dropout=0.5)
    layer = adapted.base_model.model.first
    torch.manual_seed(0)
    kept = nn.functional.dropout(X, 0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(layer(X), model.first(X) + kept @ dense(layer).mT, rtol=0, atol=1e-13)
    adapted.eval()
    torch.testing.assert_close(layer(X), model.first(X) + X @ dense(layer).mT, rtol=0, atol=1e-13)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_training_moves_the_structures_only_and_lowers_the_loss(structure):
    model = adapt(net(), structure=structure, target_modules=TWO)
    teacher = adapt(net(), seed=5, target_modules=TWO, structure="ldr", init_weights=False, alpha=10.0)
    target = teacher(X).detach()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(20):
        loss = (model(X) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    assert all("surm_" in name for name, p in model.named_parameters() if p.requires_grad)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_gradients_equal_those_of_the_dense_twin():
    model = adapt(net(), target_modules=["first"], init_weights=False)
    layer = model.base_model.model.first
    weight = dense(layer).requires_grad_()
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    layer(x).square().sum().backward()
    (layer.base_layer(y) + y @ weight.mT).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-12)
    # The generator's entry k stands at (i, j) with i - j = k mod 12.
    by_offset = torch.stack([torch.stack([weight.grad[(j + k) % 12, j] for j in range(12)]).sum() for k in range(12)])
    r1, r2 = layer.surm_update["default"].r1, layer.surm_update["default"].r2
    torch.testing.assert_close(r1.grad[0], by_offset * r2[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_a_bfloat16_base_gives_bfloat16_near_the_float64_output(autocast_adapter_dtype):
    config = SurmConfig(target_modules=TWO, init_weights=False)
    model = get_peft_model(net().bfloat16(), config, autocast_adapter_dtype=autocast_adapter_dtype)
    layer = model.base_model.model.first
    parameter = layer.surm_update["default"].r1
    assert parameter.dtype == (torch.float32 if autocast_adapter_dtype else torch.bfloat16)
    x = X.bfloat16()
    output = layer(x)
    assert output.dtype == torch.bfloat16
    expected = x.double() @ (layer.weight.double() + dense(layer)).mT + layer.bias.double()
    torch.testing.assert_close(output.double(), expected, rtol=1e-2, atol=1e-2)


def test_autocast_reaches_the_layer():
    model = adapt(tiny_vit(), init_weights=False).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("structure", ["circulant", "circulant+skew_circulant"])
def test_copies_are_equal_and_independent(structure):
    model = adapt(net(), structure=structure, target_modules=TWO, init_weights=False)
    output = model(X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), output)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if "surm_" in name:
                    parameter.zero_()
        assert torch.equal(model(X), output)
        assert torch.equal(twin(X), net()(X))


# --- torch's other machinery ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    def gradients(checkpointed):
        model = adapt(tiny_bert(), init_weights=False).train()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(input_ids=IDS, labels=torch.tensor([0, 2])).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    torch.manual_seed(0)
    plain, checkpointed = (gradients(flag) for flag in (False, True))
    assert len(plain) == 12
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.sample(18)
@pytest.mark.parametrize("structure", [*STRUCTURES, "circulant+skew_circulant"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow])])
def test_compiling_needs_no_break_and_changes_no_gradient(structure, backend):
    torch.compiler.reset()
    model = adapt(tiny_vit(), structure=structure, init_weights=False, alpha=0.5)
    layer, x = model.base_model.model.blocks[0].attn.qkv, torch.randn(2, 3, 192)
    trained = [p for p in layer.parameters() if p.requires_grad]

    def run(call):
        output = call(x)
        return [output, *torch.autograd.grad(output.square().sum(), trained)]

    for one, other in zip(run(torch.compile(layer, backend=backend, fullgraph=True)), run(layer), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_batch_of_adapters_goes_through_vmap():
    layer = adapt(net(), structure="ldr", target_modules=["first"], init_weights=False).base_model.model.first
    many = {name: torch.randn(3, *p.shape, dtype=p.dtype) for name, p in layer.named_parameters() if p.requires_grad}
    outputs = torch.func.vmap(lambda one: torch.func.functional_call(layer, one, (X,)))(many)
    for index in range(3):
        alone = torch.func.functional_call(layer, {name: p[index] for name, p in many.items()}, (X,))
        torch.testing.assert_close(outputs[index], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_low_precision_is_near_float64(structure, autocast_adapter_dtype, dtype):
    torch.manual_seed(0)
    config = SurmConfig(structure=structure, target_modules=TWO, init_weights=False)
    model = get_peft_model(net().to(dtype), config, autocast_adapter_dtype=autocast_adapter_dtype)
    layer, x = model.base_model.model.first, X.to(dtype)
    exact = copy.deepcopy(layer).double()
    assert layer(x).dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(layer(x).double(), exact(x.double()), rtol=2 * step, atol=2 * step)
    layer(x).float().square().sum().backward()
    for name, parameter in layer.surm_update["default"].named_parameters():
        twin = exact.surm_update["default"].get_parameter(name)
        twin.grad = None
        assert parameter.grad is not None
        exact(x.double()).square().sum().backward()
        error = (parameter.grad.double() - twin.grad).norm() / twin.grad.norm()
        assert error < 20 * step
