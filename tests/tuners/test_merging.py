"""Updates merged into a weight, and taken out again."""

import copy
import warnings

import pytest
import torch
from torch import nn

from surm import SurmConfig
from tests.tuners.helpers import adapt, dense, net

TWO = ["first", "second"]
X = torch.linspace(-1, 1, 5 * 12, dtype=torch.float64).reshape(5, 12)


def test_merging_keeps_the_output_and_unmerging_restores_the_weight():
    model = adapt(net(), structure="ldr", target_modules=TWO, init_weights=False)
    layer = model.base_model.model.first
    weight, output = layer.weight.detach().clone(), model(X)
    model.merge_adapter()
    assert layer.merged_adapters == ["default"]
    assert (layer.weight - weight).abs().max() > 1e-3
    torch.testing.assert_close(model(X), output, rtol=0, atol=1e-13)
    model.unmerge_adapter()
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-15)
    torch.testing.assert_close(model(X), output, rtol=0, atol=1e-13)


def test_merging_in_half_precision_rounds_once():
    model = adapt(net().bfloat16(), target_modules=TWO, init_weights=False)
    layer = model.base_model.model.first
    weight = layer.weight.detach().double()
    expected = (weight + dense(layer)).bfloat16()
    model.merge_adapter()
    # A sum that lies, up to float32's own rounding, midway between two numbers may go either way.
    assert (layer.weight != expected).sum() <= 1
    assert not torch.equal(layer.weight, (weight.bfloat16() + dense(layer).bfloat16()))


def test_merge_and_unload_leaves_plain_layers_with_the_adapted_output():
    adapted = adapt(net(), target_modules=TWO, init_weights=False)
    output = adapted(X)
    plain = adapted.merge_and_unload(safe_merge=True)
    assert type(plain.first) is nn.Linear
    torch.testing.assert_close(plain(X), output, rtol=0, atol=1e-13)


@pytest.mark.parametrize("names", [["default"], ["default", "broken"]])
def test_a_safe_merge_of_a_broken_adapter_leaves_the_weight_untouched(names):
    model = adapt(net(), target_modules=TWO, init_weights=False)
    model.add_adapter("broken", SurmConfig(target_modules=TWO, init_weights=False))
    layer = model.base_model.model.first
    layer.surm_update[names[-1]].r1.data[0, 0] = float("nan")
    weight = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=f"NaNs detected in the merged weights. The adapter {names[-1]} seems"):
        layer.merge(safe_merge=True, adapter_names=names)
    assert torch.equal(layer.weight, weight)
    assert not layer.merged


def two_layers(**settings):
    """A model with two adapters of different structures on both layers, both active."""
    base = net().to(settings.pop("dtype", torch.float64))
    model = adapt(base, target_modules=TWO, init_weights=False, **settings)
    model.add_adapter("other", SurmConfig(structure="ldr", target_modules=TWO, init_weights=False, **settings))
    model.base_model.set_adapter(["default", "other"])
    return model, [model.base_model.model.first, model.base_model.model.second]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_kept_weight_is_restored_bit_for_bit(dtype):
    model, layers = two_layers(keep_base_weight=True, alpha=3.0, dtype=dtype)
    weights = [layer.weight.detach().clone() for layer in layers]
    state = set(model.state_dict())
    model.merge_adapter()
    assert not any(torch.equal(layer.weight, weight) for layer, weight in zip(layers, weights, strict=True))
    assert set(model.state_dict()) == state
    model.unmerge_adapter()
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, weights, strict=True))
    assert all(layer.kept_weight is None for layer in layers)


def test_a_kept_weight_follows_casts_and_copies_and_adapters_that_change_while_merged():
    model, layers = two_layers(keep_base_weight=True)
    weight = layers[0].weight.detach().clone()
    model.merge_adapter()
    twin = copy.deepcopy(model).float()
    twin.base_model.model.first.surm_update["other"].G.data.zero_()
    twin.unmerge_adapter()
    assert torch.equal(twin.base_model.model.first.weight, weight.float())


def test_without_a_kept_weight_unmerging_costs_two_roundings():
    model, layers = two_layers(alpha=3.0, dtype=torch.bfloat16)
    weight = layers[0].weight.detach().clone()
    model.merge_adapter()
    merged = layers[0].weight.detach().clone()
    model.unmerge_adapter()
    largest = torch.maximum(weight.abs(), merged.abs()).float()
    assert ((layers[0].weight.float() - weight.float()).abs() <= 2 * 2**-9 * 2 * largest).all()


def test_merging_one_adapter_after_another_is_merging_both():
    (model, layers), (twin, twins) = two_layers(), two_layers()
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="Already following adapters were merged default"):
        model.merge_adapter(["other"])
    twin.merge_adapter()
    for one, other in zip(layers, twins, strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=1e-15)
        assert one.merged_adapters == ["default", "other"]
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        model.merge_adapter()


@pytest.mark.parametrize("unload", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_safe_merge_with_a_broken_later_layer_changes_no_layer(unload, value):
    model, layers = two_layers()
    layers[1].surm_update["other"].H.data[0, 0] = value
    weights = [layer.weight.detach().clone() for layer in layers]
    merge = model.merge_and_unload if unload else model.merge_adapter
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights. The adapter other seems to be broken"):
        merge(safe_merge=True)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, weights, strict=True))
    assert not any(layer.merged for layer in layers)
    assert model.base_model.model.first is layers[0]


def test_a_safe_merge_sees_what_overflows_in_the_weights_dtype():
    model, layers = two_layers(dtype=torch.float16, alpha=1e6)
    weight = layers[0].weight.detach().clone()
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layers[0].weight, weight)


@pytest.mark.sample(6)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("calls", [[["default"], ["other"]], [["other"], ["default"]], [["default", "other"]]], ids=str)
@pytest.mark.parametrize("kept", [[], ["default"], ["other"], ["default", "other"]], ids=str)
def test_the_weight_is_kept_where_an_adapter_of_the_first_merge_asks_for_it(kept, calls, dtype):
    model = adapt(net().to(dtype), target_modules=TWO, init_weights=False, keep_base_weight="default" in kept)
    other = {"structure": "ldr", "keep_base_weight": "other" in kept}
    model.add_adapter("other", SurmConfig(target_modules=TWO, init_weights=False, **other))
    layer = model.base_model.model.first
    weight, largest = layer.weight.detach().clone(), layer.weight.detach().abs()
    for names in calls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of what is merged already
            model.merge_adapter(names)
        largest = torch.maximum(largest, layer.weight.detach().abs())
    model.unmerge_adapter()
    if set(kept) & set(calls[0]):
        assert torch.equal(layer.weight, weight)
    else:  # one rounding for each merge and one for the way back, at most half a unit in the last place of the largest
        bound = (len(calls) + 1) * torch.finfo(dtype).eps * largest.double()
        assert ((layer.weight.double() - weight.double()).abs() <= bound).all()
