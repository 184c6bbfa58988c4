"""Weighted sums of adapters."""

import warnings

import pytest
import torch
from peft import PeftModel
from torch import nn

from surm import SurmConfig
from surm.structures import structure_class
from tests.tuners.helpers import IMAGES, TWO, X, adapt, net, tiny_vit

EXACT = [
    ("circulant", {}, {"parametrization": "direct", "terms": 1}),
    ("circulant", {"terms": 2}, {"parametrization": "direct", "terms": 1}),
    ("skew_circulant", {}, {"parametrization": "direct", "terms": 1}),
    ("circulant+skew_circulant", {}, {"parametrization": "direct", "terms": 1}),
    ("toeplitz", {"factors": 1}, {"factors": 1, "terms": 1}),
    ("toeplitz", {"factors": 1, "symmetric": False}, {"factors": 1, "symmetric": False, "terms": 1}),
    ("toeplitz", {}, {"terms": 3}),
    ("ldr", {"terms": 2}, {"terms": 6}),
    ("low_rank", {"rank": 2}, {"rank": 2, "terms": 3}),
    ("kronecker", {}, {"terms": 3}),
    ("circulant+ldr", {}, {"terms": 3}),
]


def with_three(model, *configs, **settings):
    """A model with adapters default, two and three."""
    settings = {"target_modules": TWO, "init_weights": False} | settings
    first, *others = [settings | config for config in configs]
    model = adapt(model, **first)
    for name, config in zip(NAMES[1:], others, strict=True):
        model.add_adapter(name, SurmConfig(**config))
    return model


NAMES, WEIGHTS = ["default", "two", "three"], [0.5, -2.0, 3.0]


def total(layer, weights=WEIGHTS):
    return sum(weight * layer.get_delta_weight(name) for name, weight in zip(NAMES, weights, strict=True))


def modules(model):
    return {name: model.base_model.model.get_submodule(name) for name in TWO}


@pytest.mark.parametrize(("structure", "options", "sum_options"), EXACT)
def test_sums_within_a_family_are_exact(structure, options, sum_options, tmp_path):
    model = with_three(
        net(), *({"structure": structure, "structure_options": options, "alpha": a} for a in (1.0, 0.3, 2.0))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.add_weighted_adapter(NAMES, WEIGHTS, "sum") == {"first": 0.0, "second": 0.0}
    for layer in modules(model).values():
        expected = total(layer)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=0, atol=1e-13)
    config = model.peft_config["sum"]
    assert (config.structure, config.structure_options, config.alpha) == (structure, sum_options, 1.0)
    assert model.active_adapters == ["default"]
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".sum." in name)
    model.set_adapter("sum")
    output = model(X)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(net(), tmp_path / "sum")
    torch.testing.assert_close(loaded(X), output, rtol=0, atol=1e-13)


def test_joined_terms_can_be_trained_on():
    model = with_three(net(), *[{"structure": "ldr"}] * 3)
    model.add_weighted_adapter(NAMES, WEIGHTS, "sum")
    model.set_adapter("sum")
    model(X).square().sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if ".sum." in name]
    assert len(gradients) == 4
    assert all((gradient.abs().amax(dim=1) > 0).all() for gradient in gradients)


def test_other_sums_are_the_nearest_and_say_how_near():
    configs = {"structure": "toeplitz", "structure_options": {"factors": 1}}, {"structure": "low_rank"}, {}
    model = with_three(net(), *configs)
    with pytest.warns(
        UserWarning, match=r"nearest to the sum in 2 of 2 modules.* at most \d+\.\d% of it, in"
    ) as caught:
        errors = model.add_weighted_adapter(NAMES, WEIGHTS, "sum")
    assert len([one for one in caught if "nearest" in str(one.message)]) == 1
    assert caught[0].filename == __file__
    for name, layer in modules(model).items():
        expected = total(layer)
        family = structure_class("toeplitz")
        nearest = family.nearest(expected, factors=1).dense()
        torch.testing.assert_close(layer.get_delta_weight("sum"), nearest, rtol=0, atol=1e-12)
        assert errors[name] == pytest.approx(((nearest - expected).norm() / expected.norm()).item(), rel=1e-9)
        assert 0.1 < errors[name] < 1


@pytest.mark.parametrize(
    ("structure", "options"),
    [("circulant+diagonal", {}), ("circulant+block_low_rank", {}), ("gated_low_rank+circulant", {"rank": 2})],
)
def test_parts_without_terms_cannot_stand_side_by_side(structure, options):
    """Three diagonals in one member's place; that sum of circulants and diagonals is a member again."""
    model = with_three(net(), *({"structure": structure, "structure_options": options} for _ in NAMES))
    with pytest.warns(UserWarning, match="nearest to the sum in 2 of 2 modules"):
        errors = model.add_weighted_adapter(NAMES, WEIGHTS, "sum")
    for name, layer in modules(model).items():
        expected = total(layer)
        missed = (layer.get_delta_weight("sum") - expected).norm() / expected.norm()
        assert errors[name] == pytest.approx(missed.item(), rel=1e-6, abs=1e-9)
        assert errors[name] < (1e-6 if structure == "circulant+diagonal" else 0.9)


def test_sums_of_ranks_that_differ_are_the_nearest_of_the_first_rank():
    model = with_three(net(), *({"structure": "low_rank", "structure_options": {"rank": r}} for r in (2, 1, 1)))
    with pytest.warns(UserWarning, match="other options"):
        errors = model.add_weighted_adapter(NAMES, WEIGHTS, "sum")
    for name, layer in modules(model).items():
        values = torch.linalg.svdvals(total(layer))
        assert errors[name] == pytest.approx((values[2:].norm() / values.norm()).item(), rel=1e-6)


def test_each_module_has_the_structure_that_its_sum_needs(tmp_path):
    pattern = {"second": {"structure": "ldr", "structure_options": {"terms": 2}}}
    model = with_three(
        net(),
        {"structure_pattern": pattern, "alpha_pattern": {"first": 5.0}},
        {"target_modules": ["first"]},
        {"structure_pattern": pattern},
    )
    errors = model.add_weighted_adapter(NAMES, WEIGHTS, "sum")
    assert errors == {"first": 0.0, "second": 0.0}
    for layer in modules(model).values():
        torch.testing.assert_close(layer.get_delta_weight("sum"), total(layer), rtol=0, atol=1e-13)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(net(), tmp_path / "sum")
    model.set_adapter("sum")
    torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=1e-13)


def test_parts_of_fused_layers_add_up_each(tmp_path):
    settings = {"target_modules": None, "structure": "ldr"}
    model = with_three(tiny_vit(), {"fused_parts": ["q"]}, {"fused_parts": ["v"]}, {"fused_parts": ["q"]}, **settings)
    model.add_weighted_adapter(NAMES, WEIGHTS, "sum")
    assert model.peft_config["sum"].fused_parts == ["q", "v"]
    layer = model.base_model.model.blocks[1].attn.qkv
    torch.testing.assert_close(layer.get_delta_weight("sum"), total(layer), rtol=0, atol=1e-6)
    assert layer.get_delta_weight("sum")[:192].abs().max() > 1e-3
    model.set_adapter("sum")
    output = model.eval()(IMAGES)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path / "sum").eval()
    torch.testing.assert_close(loaded(IMAGES), output, rtol=0, atol=1e-6)


def test_embeddings_and_convolutions_add_up():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.mix = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3)

    model = with_three(Layers().double(), {}, {}, {}, target_modules=["words", "mix"])
    assert model.add_weighted_adapter(NAMES, WEIGHTS, "sum") == {"words": 0.0, "mix": 0.0}
    for name in ("words", "mix"):
        layer = getattr(model.base_model.model, name)
        torch.testing.assert_close(layer.get_delta_weight("sum"), total(layer), rtol=0, atol=1e-13)


def test_an_adapter_counts_as_often_as_it_is_named_and_merged_ones_count():
    model = with_three(net(), {}, {}, {})
    model.merge_adapter(["two"])
    with pytest.warns(UserWarning, match="Unmerging the model first"):  # PEFT, whenever an adapter is added
        model.add_weighted_adapter(["two", "two"], [1.0, 0.5], "sum")
    layer = model.base_model.model.first
    torch.testing.assert_close(layer.get_delta_weight("sum"), 1.5 * layer.get_delta_weight("two"), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default", "x"], [1.0, 1.0], "sum"), "Adapter x does not exist"),
        ((["default", "two"], [1.0], "sum"), "2 adapters and 1 weights: give at least one, and a weight for each"),
        (([], [], "sum"), "0 adapters and 0 weights"),
        ((["default"], [1.0], "two"), "Adapter two exists already"),
        ((["default", "body"], [1.0, 1.0], "sum"), "form='adapter'"),
        ((["default", "tuned"], [1.0, 1.0], "sum"), "Adapter tuned has modules_to_save"),
        ((["default", "two"], [1.0, 1.0], "sum", "ties"), "combination_type='ties' is no sum of updates"),
    ],
)
def test_what_does_not_add_up_is_refused_and_changes_nothing(arguments, message):
    model = with_three(net(), {}, {}, {}, target_modules=["first"])
    model.add_adapter("body", SurmConfig(form="adapter", target_modules=["second"]))
    model.add_adapter("tuned", SurmConfig(target_modules=["first"], modules_to_save=["head"]))
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=message) as error:
        model.add_weighted_adapter(*arguments)
    assert "\n" not in str(error.value)
    assert [name for name, _ in model.named_parameters()] == before
    assert set(model.peft_config) == {"default", "two", "three", "body", "tuned"}


def test_an_option_of_loras_sums_is_refused_by_name():
    model = with_three(net(), {}, {}, {}, target_modules=["first"])
    with pytest.raises(ValueError, match="svd_rank=4 is not taken by a sum of structured updates: leave it out"):
        model.add_weighted_adapter(["default", "two"], [1.0, 1.0], "sum", combination_type="svd", svd_rank=4)
