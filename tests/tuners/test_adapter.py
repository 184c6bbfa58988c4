import copy

import numpy as np
import pytest
import timm
import torch
from peft import get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

from surm import SurmConfig
from tests.tuners.helpers import (
    ACTIVATIONS,
    ALL,
    DENSE,
    IDS,
    IMAGES,
    TWO,
    X,
    adapt,
    adapter,
    body_in_numpy,
    logits,
    net,
    numbers,
    timm_vit,
    tiny_bert,
    tiny_vit,
    trainable,
)

# --- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", [*DENSE, "bottleneck"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_output_is_that_of_the_module_plus_the_activated_product_plus_a_bias(structure, activation, bias):
    model = adapter(
        net(),
        structure=structure,
        target_modules=["first"],
        adapter_activation=activation,
        adapter_bias=bias,
        init_weights=False,
    )
    layer = model.base_model.model.first
    x = layer.base_layer(X).detach().numpy()
    added = body_in_numpy(layer, x, structure, activation)
    assert np.abs(added).max() > 1e-3
    assert ("bias" in numbers(layer.surm_adapter["default"].outer)) == bias
    np.testing.assert_allclose(layer(X).detach().numpy(), x + added, rtol=0, atol=1e-13)


@pytest.mark.parametrize("structure", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", [tiny_vit, tiny_bert])
def test_the_start_is_exactly_the_base_model_and_the_first_step_leaves_it(structure, dtype, base):
    model = base().to(dtype)
    x = IDS if base is tiny_bert else IMAGES.to(dtype)
    before = logits(model, x)
    adapted = adapter(model, structure=structure).eval()
    assert torch.equal(logits(adapted, x), before)
    logits(adapted, x).float().square().sum().backward()
    # The zero factor (the bottleneck's: up) and the bias move; the random factor waits for them.
    moved = {
        name.split("surm_adapter.default.")[1]
        for name, p in adapted.named_parameters()
        if p.requires_grad and p.grad.abs().max() > 0
    }
    zero = {
        "circulant+skew_circulant": {"inner.parts.0.r1", "inner.parts.1.r1"},
        "toeplitz": {"inner.t1"},
        "kronecker": {"inner.A"},
        "ldr": {"inner.G"},
        "low_rank": {"inner.B"},
        "bottleneck": {"outer.weight"},
    }.get(structure, {"inner.r1"})
    assert moved == zero | {"outer.bias"}


@pytest.mark.parametrize("structure", ["circulant", "kronecker", "bottleneck"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh", "identity"])
def test_training_moves_the_adapters_only_and_lowers_the_loss(structure, activation):
    model = adapter(net(), structure=structure, target_modules=TWO, adapter_activation=activation)
    target = adapter(net(), seed=5, structure="ldr", target_modules=TWO, init_weights=False)(X).detach() + 0.3
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
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


@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_dropout_acts_on_the_activation_and_only_in_training(structure):
    model = adapter(net(), structure=structure, target_modules=["first"], init_weights=False, dropout=0.5)
    layer = model.base_model.model.first
    body, x = layer.surm_adapter["default"], layer.base_layer(X)
    torch.manual_seed(0)
    kept = nn.functional.dropout(nn.functional.gelu(body.inner(x)), 0.5)
    added = kept @ body.outer.weight.mT + body.outer.bias if structure == "bottleneck" else kept + body.outer.bias
    torch.manual_seed(0)
    torch.testing.assert_close(layer(X), x + added, rtol=0, atol=1e-13)
    model.eval()
    expected = x.detach().numpy() + body_in_numpy(layer, x.detach().numpy(), structure, "gelu")
    np.testing.assert_allclose(layer(X).detach().numpy(), expected, rtol=0, atol=1e-13)


def test_scales_of_the_authors():
    """N(0, 0.02^2) for the random factor of every family (authors' code), zero for the others."""
    for structure in ("circulant", "toeplitz", "kronecker"):
        model = adapter(tiny_vit(), structure=structure, init_weights="authors")
        zero, random = model.base_model.model.blocks[0].ls1.surm_adapter["default"].inner.parameters()
        assert not zero.any()
        assert random.std().item() == pytest.approx(0.02, rel=0.25)


# --- counts -----------------------------------------------------------------------------------------------------------


def base_sized(backbone):
    with torch.device("meta"):
        if backbone == "bert":
            return BertModel(BertConfig())
        return timm.create_model("vit_base_patch16_224", pretrained=False)


@pytest.mark.parametrize("backbone", ["vit", "bert"])
@pytest.mark.parametrize("structure", ["circulant", "toeplitz", "kronecker"])
def test_houlsby_trains_55296_parameters_and_36864_without_biases_and_pfeiffer_half_of_them(backbone, structure):
    """Figure 10's adapters: 24 (2 * 768 + 768) and 24 * 2 * 768 parameters."""
    for bias, count in ((True, 55_296), (False, 36_864)):
        for targets, expected in (("houlsby", count), ("pfeiffer", count // 2)):
            model = adapter(base_sized(backbone), structure=structure, target_modules=targets, adapter_bias=bias)
            assert trainable(model) == expected
            assert all(p.is_meta for p in model.parameters())  # a dropout's adapter is where its neighbours are


def test_houlsby_bottlenecks_of_size_16_have_608640_parameters():
    options = {"structure": "bottleneck", "structure_options": {"size": 16}}
    assert trainable(adapter(base_sized("bert"), **options)) == 608_640
    assert trainable(adapter(base_sized("bert"), **options, adapter_bias=False)) == 24 * 2 * 768 * 16
    assert trainable(adapter(base_sized("bert"), structure="bottleneck")) == 608_640


# --- several adapters, both forms -------------------------------------------------------------------------------------


def test_adapters_are_parallel_and_can_be_switched_disabled_deleted_and_unloaded():
    base = net()
    model = adapter(copy.deepcopy(base), target_modules=TWO, init_weights=False)
    torch.manual_seed(3)
    other = SurmConfig(form="adapter", structure="bottleneck", target_modules=["first"], init_weights=False)
    model.add_adapter("other", other)
    layers = model.base_model.model

    def expected(*active):
        x = base.first(X).detach().numpy()
        first = x + sum(
            body_in_numpy(layers.first, x, structure, "gelu", name)
            for name, structure in (("default", "circulant"), ("other", "bottleneck"))
            if name in active
        )
        second = base.second(torch.tanh(torch.from_numpy(first)))
        if "default" in active:
            second = second.detach().numpy()
            second = torch.from_numpy(second + body_in_numpy(layers.second, second, "circulant", "gelu"))
        return base.head(torch.tanh(second))

    def assert_active(*active):
        torch.testing.assert_close(model(X), expected(*active), rtol=0, atol=1e-13)

    assert_active("default")
    model.set_adapter("other")
    assert_active("other")
    model.base_model.set_adapter(["default", "other"])
    assert_active("default", "other")
    with model.disable_adapter():
        assert torch.equal(model(X), base(X))
    model.base_model.set_adapter("other")
    model.delete_adapter("default")
    assert_active("other")
    assert not any("default" in name for name, _ in model.named_parameters())
    plain = model.unload()
    assert type(plain.first) is nn.Linear
    assert torch.equal(plain(X), base(X))


@pytest.mark.parametrize("base", [tiny_vit, tiny_bert, lambda: timm_vit(init_values=0.1)])
def test_unloading_gives_back_modules_without_a_weight(base):
    x = IDS if base is tiny_bert else IMAGES
    plain = adapter(base(), init_weights=False).unload().eval()
    assert torch.equal(logits(plain, x), logits(base(), x))
    assert not any("surm" in type(module).__module__ for module in plain.modules())


def both_forms():
    model = adapt(tiny_vit(), init_weights=False)
    model.add_adapter("behind", SurmConfig(form="adapter", init_weights=False))
    model.base_model.set_adapter(["default", "behind"])
    return model.eval()


def weights(model):
    return {name: p.clone() for name, p in model.named_parameters()}


def test_both_forms_work_on_one_model_and_merging_is_refused_before_anything_is_merged():
    model = both_forms()
    output, before = model(IMAGES), weights(model)
    model.base_model.set_adapter("default")
    one = model(IMAGES)
    assert (output - one).abs().max() > 1e-4
    model.base_model.set_adapter(["default", "behind"])
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.merge_adapter(["behind"])):
        with pytest.raises(ValueError, match=r"form='adapter' cannot be merged.*unload\(\)") as error:
            merge()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be merged"):
        model.base_model.model.blocks[0].ls1.merge()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(model(IMAGES), output)
    model.merge_adapter(["default"])
    torch.testing.assert_close(model(IMAGES), output, rtol=0, atol=1e-4)
    model.unmerge_adapter()
    model.base_model.set_adapter("default")
    torch.testing.assert_close(model.merge_and_unload()(IMAGES), one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("forms", [("weight", "adapter"), ("adapter", "weight")])
def test_one_module_takes_one_form(forms):
    model = adapt(net(), form=forms[0], target_modules=["first"])
    with pytest.raises(ValueError, match=f"module first: it has an adapter of form='{forms[0]}'.*one form") as error:
        model.add_adapter("other", SurmConfig(form=forms[1], target_modules=["first"]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bias", ["all", "surm_only"])
def test_biases_of_the_model_are_trained_as_asked(bias):
    base = tiny_bert()
    biases = {name: p.numel() for name, p in base.named_parameters() if name.endswith("bias")}
    extra = sum(n for name, n in biases.items() if bias == "all" or name.endswith(".output.dense.bias"))
    model = adapter(base, adapter_position="before", bias=bias)
    assert trainable(model) == 4 * 3 * 24 + extra


# --- dtypes, checkpointing, compilation -------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_a_bfloat16_base_gives_bfloat16_near_the_float64_output(structure, autocast_adapter_dtype):
    config = SurmConfig(
        form="adapter", structure=structure, target_modules=["drop"], adapter_width=12, init_weights=False
    )
    base = nn.ModuleDict({"drop": nn.Dropout(), "linear": nn.Linear(12, 12)}).bfloat16()
    torch.manual_seed(0)
    model = get_peft_model(base, config, autocast_adapter_dtype=autocast_adapter_dtype).eval()
    layer = model.base_model.model["drop"]
    # A dropout has no dtype: the adapter takes that of its neighbours.
    dtypes = {p.dtype for p in layer.parameters()}
    assert dtypes == {torch.float32 if autocast_adapter_dtype else torch.bfloat16}
    x = X.bfloat16()
    output = layer(x)
    assert output.dtype == torch.bfloat16
    x = x.double().numpy()
    expected = x + body_in_numpy(layer, x, structure, "gelu")
    np.testing.assert_allclose(output.detach().double().numpy(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_autocast_reaches_the_adapter(structure):
    model = adapter(tiny_bert(), structure=structure, init_weights=False).eval()
    expected = logits(model, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        output = logits(model, IDS)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("base", [tiny_vit, tiny_bert])
def test_gradient_checkpointing_keeps_the_gradients(base):
    gradients = []
    for checkpointing in (False, True):
        model = adapter(base(), init_weights=False).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        inner = model.base_model.model
        if checkpointing:
            inner.gradient_checkpointing_enable() if base is tiny_bert else inner.set_grad_checkpointing()
        logits(model, IDS if base is tiny_bert else IMAGES).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("structure", ["circulant", "kronecker", "bottleneck"])
def test_compiles_without_a_graph_break(structure):
    model = adapter(net(), structure=structure, target_modules=TWO, init_weights=False)
    compiled = torch.compile(model.base_model.model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), model(X))


@pytest.mark.parametrize("structure", ["circulant+skew_circulant", "bottleneck"])
def test_copies_are_equal_and_independent(structure):
    model = adapter(net(), structure=structure, target_modules=TWO, init_weights=False)
    output = model(X)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), output)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "surm_" in name:
                parameter.zero_()
    assert torch.equal(model(X), output)
    assert torch.equal(twin(X), net()(X))
