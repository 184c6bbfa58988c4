import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertModel

from tests.tuners.helpers import (
    ACTIVATIONS,
    ADAPTERS,
    DENSE,
    IDS,
    IMAGES,
    TWO,
    X,
    adapter,
    body_in_numpy,
    logits,
    net,
    numbers,
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


@pytest.mark.parametrize("structure", ADAPTERS)
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
        "block_circulant": {"inner.c"},
        "monarch": {"inner.L"},
        "block_low_rank": {"inner.B"},
        "lora_mini": {"inner.B"},
        "gated_low_rank": {"inner.c"},
        "gated_chain": {"inner.c"},
        "diagonal": {"inner.d"},
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
