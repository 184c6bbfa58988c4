"""Weights beside a configuration of another adapter are refused in one sentence, and no parameter is left empty."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners import tuners_utils
from safetensors.torch import load_file, save_file

from surm import SurmConfig
from surm.structures import STRUCTURES
from tests.tuners.helpers import TWO, X, adapt, net

pytestmark = pytest.mark.skipif(
    not hasattr(tuners_utils.BaseTuner, "_remap_adapter_state_dict_for_load"), reason="PEFT < 0.21 has no such step"
)
OTHERS = {"form": "adapter", "target_modules": ["first"], "structure_options": {"terms": 2}}
CHANGES = {**{name: {"structure": name} for name in STRUCTURES}, **{key: {key: OTHERS[key]} for key in OTHERS}}


def saved(folder, structure):
    adapt(net(), structure=structure, target_modules=TWO, init_weights=False).save_pretrained(folder)


def state(model):
    """All that an adapter could change of a model: its modules, numbers, hooks, and what is trained."""
    modules = {name: (module, len(module._forward_hooks), module.training) for name, module in model.named_modules()}
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    numbers = {name: value.tolist() for name, value in model.state_dict().items()}
    return modules, trained, numbers, sorted(vars(model).keys() - {"_forward_hooks"})


def assert_refused(
    folder, low_cpu_mem_usage, sentence=r"^The weights are not those of the adapter .*: .* was saved with the weights"
):
    base = net()
    before = state(base)
    with pytest.raises(ValueError, match=sentence):
        PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert state(base) == before
    model = adapt(net(), target_modules=["first"])
    before, adapters = state(model), set(model.peft_config)
    with pytest.raises(ValueError, match=rf"{sentence}|has an adapter of form"):
        model.load_adapter(folder, "other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert state(model) == before
    assert set(model.peft_config) == adapters
    assert model.active_adapters == ["default"]


@pytest.mark.sample(8)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("structure", ["circulant", "kronecker"])
def test_a_configuration_of_another_adapter(structure, change, low_cpu_mem_usage, tmp_path):
    if change == structure or {change, structure} == {"circulant", "skew_circulant"}:
        pytest.skip("the same parameters")
    saved(tmp_path, structure)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **CHANGES[change]}))
    assert_refused(tmp_path, low_cpu_mem_usage)


FILES = {
    "empty": lambda tensors: {},
    "one missing": lambda tensors: dict(list(tensors.items())[1:]),
    "one more": lambda tensors: {
        **tensors,
        "base_model.model.first.surm_update.c": next(iter(tensors.values())).clone(),
    },
    "another layer": lambda tensors: {key.replace("first", "third"): value for key, value in tensors.items()},
    "another shape": lambda tensors: {key: value[..., :5].clone() for key, value in tensors.items()},
    "that broadcasts": lambda tensors: {key: value[..., :1].clone() for key, value in tensors.items()},
}


@pytest.mark.sample(8)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("change", FILES)
def test_other_weights(change, low_cpu_mem_usage, tmp_path):
    saved(tmp_path, "circulant")
    path = tmp_path / "adapter_model.safetensors"
    save_file(FILES[change](load_file(path)), path, {"format": "pt"})
    assert_refused(tmp_path, low_cpu_mem_usage)


@pytest.mark.sample(4)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("form", ["weight", "adapter"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value, form, low_cpu_mem_usage, tmp_path):
    adapt(net(), form=form, target_modules=["first"], init_weights=False).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[-1] = value
    save_file(tensors, path, {"format": "pt"})
    assert_refused(tmp_path, low_cpu_mem_usage, r"^The weights for the adapter .* are not finite: .* holds NaN or inf")


def test_other_modules_that_were_to_be_loaded_are_taken_out_too(tmp_path):
    """Here `second` and `head`, which another adapter does not touch."""
    adapt(net(), target_modules=TWO, modules_to_save=["head"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "surm" not in key}, path, {"format": "pt"})
    assert_refused(tmp_path, False)


@pytest.mark.parametrize("trained", [False, True])
def test_an_adapter_of_the_users_own_stays(trained, tmp_path):
    """One that was not made for the refused weights, even by a configuration that was read from a file."""
    saved(tmp_path, "circulant")
    model = net()
    if trained:
        config = SurmConfig.from_pretrained(tmp_path)
        config.inference_mode = False
        model = get_peft_model(model, config)
        model(X).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    else:
        model = PeftModel.from_pretrained(model, tmp_path)
    before = state(model)
    with pytest.raises(ValueError, match="not those of the adapter 'default'"):
        set_peft_model_state_dict(model, {})
    with pytest.raises(ValueError, match="not those of the adapter 'default'"):
        set_peft_model_state_dict(model, {})
    assert state(model) == before
