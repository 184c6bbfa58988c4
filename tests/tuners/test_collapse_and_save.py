"""An adapter form collapsed to what it stores, and saved and loaded."""

import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from surm import SurmConfig
from tests.tuners.helpers import (
    IDS,
    IMAGES,
    TWO,
    X,
    adapt,
    adapter,
    logits,
    net,
    tiny_bert,
    tiny_vit,
    trainable,
)

# --- collapse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["weight", "adapter"])
@pytest.mark.parametrize("structure", ["circulant", "skew_circulant", "circulant+skew_circulant"])
@pytest.mark.parametrize("terms", [1, 3])
def test_collapsing_keeps_the_output_and_stores_one_vector(tmp_path, form, structure, terms):
    model = adapt(
        tiny_vit(), form=form, structure=structure, structure_options={"terms": terms}, init_weights=False
    ).eval()
    output, count = model(IMAGES), trainable(model)
    model.collapse()
    torch.testing.assert_close(model(IMAGES), output, rtol=0, atol=1e-5)
    matrices = 2 * (3 if form == "weight" else 2) * len(structure.split("+"))
    biases = 0 if form == "weight" else 4 * 192
    assert count == 2 * terms * 192 * matrices + biases
    assert trainable(model) == 192 * matrices + biases
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in stored.values()) == 192 * matrices + biases
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path).eval()
    assert loaded.peft_config["default"].structure_options == {"parametrization": "direct", "terms": 1}
    assert torch.equal(loaded(IMAGES), model(IMAGES))


@pytest.mark.parametrize("structure", ["toeplitz", "kronecker", "ldr", "low_rank", "circulant+kronecker", "bottleneck"])
def test_collapsing_another_structure_is_refused_and_changes_nothing(structure):
    model = adapter(tiny_vit(), structure=structure, init_weights=False)
    model.add_adapter("circulant", SurmConfig(form="adapter", init_weights=False))
    model.base_model.set_adapter(["circulant", "default"])
    before = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=f"{structure.split('+')[-1]} cannot be collapsed") as error:
        model.collapse()
    assert "\n" not in str(error.value)
    assert {name: p.shape for name, p in model.named_parameters()} == before
    model.collapse("circulant")
    with pytest.raises(ValueError, match="no adapter 'other': give one of default, circulant"):
        model.collapse("other")


# --- save and load ----------------------------------------------------------------------------------------------------

ADAPTERS = {
    "tiny_bert": {"structure": "toeplitz", "modules_to_save": ["classifier"]},
    "tiny_vit": {"structure": "circulant+skew_circulant", "target_modules": "pfeiffer", "adapter_activation": "tanh"},
    "net": {"structure": "bottleneck", "structure_options": {"size": 5}, "target_modules": TWO},
}
BASES = {"tiny_bert": (tiny_bert, IDS), "tiny_vit": (tiny_vit, IMAGES), "net": (net, X)}

LOAD = """
import sys, torch, surm
from pathlib import Path
from peft import PeftModel
from tests.tuners import helpers
for folder in Path(sys.argv[1]).iterdir():
    model = PeftModel.from_pretrained(getattr(helpers, folder.name)(), folder, adapter_name="elsewhere").eval()
    output = model(torch.load(folder / "input.pt"))
    torch.save(getattr(output, "logits", output), folder / "output.pt")
"""


def test_saved_adapters_give_the_same_bits_in_another_process(tmp_path):
    outputs = {}
    for name, settings in ADAPTERS.items():
        base, x = BASES[name]
        model = adapter(base(), init_weights=False, **settings).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        outputs[name] = logits(model, x)
        model.save_pretrained(tmp_path / name)
        torch.save(x, tmp_path / name / "input.pt")
        stored = load_file(tmp_path / name / "adapter_model.safetensors")
        assert not any("default" in key for key in stored)
        assert sum(t.numel() for t in stored.values()) == trainable(model)
        low = PeftModel.from_pretrained(base(), tmp_path / name, low_cpu_mem_usage=True).eval()
        assert torch.equal(logits(low, x), outputs[name])
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", LOAD, tmp_path], check=True, env=environment)
    for name, output in outputs.items():
        assert torch.equal(torch.load(tmp_path / name / "output.pt"), output)


def test_the_file_holds_the_matrices_and_biases_by_module(tmp_path):
    model = adapter(tiny_bert(), target_modules="pfeiffer")
    model.save_pretrained(tmp_path)
    assert {name: tuple(t.shape) for name, t in load_file(tmp_path / "adapter_model.safetensors").items()} == {
        f"base_model.model.bert.encoder.layer.{layer}.output.LayerNorm.surm_adapter.{name}": shape
        for layer in (0, 1)
        for name, shape in (("inner.r1", (1, 24)), ("inner.r2", (1, 24)), ("outer.bias", (24,)))
    }
