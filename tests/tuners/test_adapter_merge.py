"""Adapters without an activation are merged into linear layers, on the side of the outputs and of the inputs."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from surm import SurmConfig
from surm.tuners import conversion_error
from tests.tuners.helpers import IMAGES, TWO, X, adapt, adapter, net, timm_vit

SIDES = ["output", "input"]
sides = pytest.mark.parametrize("side", SIDES)
LINEAR = {"adapter_activation": "identity", "target_modules": TWO}


def linear(model=None, side="output", structure="diagonal", **settings):
    given = {"init_weights": False, **LINEAR, "adapter_side": side, **settings}
    return adapter(net() if model is None else model, structure=structure, **given)


def array(tensor):
    return tensor.detach().double().numpy()


@pytest.mark.parametrize(("side", "expected"), [("output", [18, 44]), ("input", [59, 129])])
def test_the_worked_example(side, expected):
    layer = nn.Linear(2, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2], [3, 4]]))
        layer.bias.fill_(1)
    model = linear(nn.Sequential(layer), side, target_modules=["0"])
    body, x = model.base_model.model[0].surm_adapter["default"], torch.ones(1, 2, dtype=torch.float64)
    with torch.no_grad():
        body.inner.d.copy_(torch.tensor([1.0, 2]))
        body.outer.bias.copy_(torch.tensor([10.0, 20]))
    assert model(x).tolist() == [expected]
    assert model.merge_and_unload()(x).tolist() == [expected]


@sides
@pytest.mark.parametrize("structure", ["diagonal", "circulant"])
def test_a_merge_has_the_same_outputs_and_can_be_undone(side, structure):
    model = linear(side=side, structure=structure)
    expected = model(X)
    layer = model.base_model.model.first
    W, b = array(layer.base_layer.weight), array(layer.base_layer.bias)
    S, shift = array(layer.surm_adapter["default"].inner.dense()), array(layer.surm_adapter["default"].outer.bias)
    h = (array(X) @ (np.eye(12) + S).T + shift) @ W.T + b
    if side == "output":
        h = (array(X) @ W.T + b) @ (np.eye(12) + S).T + shift
    np.testing.assert_allclose(array(layer(X)), h, atol=1e-12)
    before = copy.deepcopy(net().state_dict())
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-12)
    assert layer.merged
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, before["first.weight"])
    assert torch.equal(layer.base_layer.bias, before["first.bias"])
    merged = model.merge_and_unload()
    assert type(merged.first) is nn.Linear
    torch.testing.assert_close(merged(X), expected, rtol=0, atol=1e-12)


@sides
def test_several_adapters_are_merged_one_after_the_other(side):
    model = linear(side=side)
    model.add_adapter(
        "other", SurmConfig(form="adapter", structure="circulant", adapter_side=side, init_weights=False, **LINEAR)
    )
    model.base_model.set_adapter(["default", "other"])
    both = model(X)
    model.merge_adapter(["other"])
    model.merge_adapter(["default"])
    torch.testing.assert_close(model(X), both, rtol=0, atol=1e-12)
    with model.disable_adapter():
        assert torch.equal(model(X), net()(X))
    assert not model.base_model.model.first.merged


@sides
def test_it_starts_as_the_base_and_is_saved_and_loaded(side, tmp_path):
    model = linear(side=side, init_weights=True)
    assert torch.equal(model(X), net()(X))
    model(X).square().sum().backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if "surm_" in name)
    model = linear(side=side)
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(net(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(loaded(X), model(X))
    rows = torch.cat([model(X[:1]), net()(X[:1])])
    mixed = model.eval()(X[:1].expand(2, -1), adapter_names=["default", "__base__"])
    torch.testing.assert_close(mixed, rows, rtol=0, atol=1e-12)


def test_the_error_of_a_conversion_is_that_of_what_is_merged():
    model = linear(side="input", target_modules=["first"])
    layer = model.base_model.model.first
    update = array(layer.base_layer.weight) * array(layer.surm_adapter["default"].inner.d)
    values = np.linalg.svd(update, compute_uv=False)
    expected = np.sqrt((values[3:] ** 2).sum() / (values**2).sum())
    assert conversion_error(model, [3])[3] == pytest.approx(expected)


def test_refusals():
    model = linear(timm_vit(), structure="circulant", target_modules=["attn.proj", "norm1"])
    output = model(IMAGES)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="cannot be merged into LayerNorm, which is no plain linear layer"):
            merge()
    assert torch.equal(model(IMAGES), output)
    without = nn.Sequential(nn.Linear(12, 12, bias=False)).double()
    with pytest.raises(ValueError, match=r"cannot be merged into a linear layer without one: .* adapter_bias=False"):
        linear(without, target_modules=["0"]).merge_adapter()
    with pytest.raises(ValueError, match="adapter_side='input' is for linear layers, and LayerNorm is none"):
        linear(timm_vit(), side="input", target_modules=["norm1"])
    with pytest.raises(ValueError, match="it has an adapter of adapter_side='output', and takes one side"):
        linear().add_adapter("other", SurmConfig(form="adapter", adapter_side="input", **LINEAR))
    with pytest.raises(ValueError, match="adapter_side='left' is not known: give output or input"):
        SurmConfig(form="adapter", adapter_side="left")
    broken = linear()
    with torch.no_grad():
        broken.base_model.model.second.surm_adapter["default"].inner.d.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaNs detected"):
        broken.merge_adapter(safe_merge=True)
    assert not broken.base_model.model.first.merged


def test_adapt_in_weight_form_has_no_side():
    with pytest.raises(ValueError, match="adapter_side='input' is used in adapter form only"):
        adapt(net(), adapter_side="input", target_modules=TWO)
