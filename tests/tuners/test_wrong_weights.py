"""Weights beside a configuration of another adapter are refused in one sentence, and no parameter is left empty."""

import json

import pytest
from peft import PeftModel
from peft.tuners import tuners_utils
from safetensors.torch import load_file, save_file

from surm.structures import STRUCTURES
from tests.tuners.helpers import TWO, X, adapt, net

pytestmark = pytest.mark.skipif(
    not hasattr(tuners_utils.BaseTuner, "_remap_adapter_state_dict_for_load"), reason="PEFT < 0.21 has no such step"
)
OTHERS = {"form": "adapter", "target_modules": ["first"], "structure_options": {"terms": 2}}
CHANGES = {**{name: {"structure": name} for name in STRUCTURES}, **{key: {key: OTHERS[key]} for key in OTHERS}}


def saved(folder, structure):
    adapt(net(), structure=structure, target_modules=TWO, init_weights=False).save_pretrained(folder)


def assert_refused(folder, low_cpu_mem_usage):
    with pytest.raises(
        ValueError, match=r"^The weights are not those of the adapter .*: .* was saved with the weights"
    ):
        PeftModel.from_pretrained(net(), folder, low_cpu_mem_usage=low_cpu_mem_usage)
    model = adapt(net(), target_modules=TWO)
    before = model(X)
    with pytest.raises(ValueError, match=r"not those of the adapter 'other'|has an adapter of form"):
        model.load_adapter(folder, "other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert model(X).equal(before)


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
