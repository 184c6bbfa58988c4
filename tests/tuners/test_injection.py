"""An adapter that cannot be added leaves the model as it was."""

import pytest
import torch

from surm import SurmConfig
from tests.tuners.helpers import TWO, X, adapt, net


def snapshot(model):
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()},
    )


def assert_same(model, before):
    modules, parameters = snapshot(model)
    assert modules == before[0]
    assert parameters.keys() == before[1].keys()
    for name, (trained, value) in parameters.items():
        assert trained == before[1][name][0]
        assert torch.equal(value, before[1][name][1])


FAILURES = [
    ({"form": "adapter", "target_modules": ["head", "first"]}, "has an adapter of form='weight', and a module takes"),
    ({"structure": "kronecker", "structure_options": {"factor_shape": [6, 6]}, "target_modules": [*TWO, "head"]}, "3"),
    ({"target_modules": ["head", "act"]}, "type Tanh is not supported"),
    ({"target_modules": TWO, "fused": {"second": 2}}, "give both the same fused"),
]


@pytest.mark.parametrize(("settings", "message"), FAILURES)
def test_a_failed_second_adapter_leaves_the_model_as_it_was(settings, message):
    model = adapt(net(), target_modules=TWO, init_weights=False)
    model.base_model.model.act = torch.nn.Tanh()
    model.base_model.model.first.surm_update["default"].r2.requires_grad_(False)
    before, output = snapshot(model), model(X)
    with pytest.raises((ValueError, TypeError), match=message) as error:
        model.add_adapter("other", SurmConfig(**settings))
    assert "\n" not in str(error.value)
    assert_same(model, before)
    assert torch.equal(model(X), output)
    assert set(model.peft_config) == {"default"}
    model.add_adapter("other", SurmConfig(target_modules=["first"]))


def test_a_failed_first_adapter_leaves_the_model_as_it_was():
    base = net()
    before = snapshot(base)
    with pytest.raises(ValueError, match="does not divide"):
        adapt(base, structure="kronecker", structure_options={"factor_shape": [6, 6]}, target_modules=["first", "head"])
    assert_same(base, before)


@pytest.mark.parametrize(("structure", "name"), [("kronecker", "A"), ("circulant", "r1"), ("circulant+ldr", "parts")])
def test_an_adapter_is_not_called_like_a_parameter(structure, name):
    model = adapt(net(), structure=structure, target_modules=TWO)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"Adapter name '{name}' is also that of a parameter") as error:
        model.add_adapter(name, SurmConfig(target_modules=TWO))
    assert "\n" not in str(error.value)
    assert_same(model, before)
