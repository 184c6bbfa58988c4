"""Gated structures without the components that are switched off: same outputs, saved, loaded, merged and converted."""

import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from surm import SurmConfig
from surm.structures.gated import Gated
from tests.tuners.helpers import IDS, IMAGES, TWO, X, adapt, logits, net, tiny_bert, tiny_vit, trainable

FUSED = {"structure": "gated_low_rank", "structure_options": {"rank": 3}, "fused_parts": ["q", "k", "v"]}
APART = {"structure": "gated_chain", "structure_options": {"rank": 3, "outer_rank": 2}}
KEPT = [3, 0, 2, 1, 3, 3]  # components of each matrix that stay, of three
SECOND = [0, 0, 0, 1, 0, 3]  # the same, where nothing of the first fused layer stays


def pruned(model: nn.Module, kept: list[int] = KEPT) -> nn.Module:
    """The adapted model with only the last few gates of each matrix, of order one."""
    gates = [module.gates() for module in model.modules() if isinstance(module, Gated)]
    with torch.no_grad():
        for number, gate in zip(kept, gates, strict=True):
            gate.copy_(torch.linspace(1, 2, len(gate)))
            gate[: len(gate) - number] = 0
    return model.eval()


@pytest.mark.parametrize(
    ("load", "inputs", "settings", "kept", "count"),
    [
        (tiny_vit, IMAGES, FUSED, KEPT, sum(rank * (192 + 192 + 1) for rank in KEPT)),
        (tiny_vit, IMAGES, FUSED, SECOND, sum(rank * (192 + 192 + 1) for rank in SECOND)),
        (tiny_bert, IDS, APART, KEPT, sum(2 * (24 + 24) + rank * (2 + 2 + 1) for rank in KEPT if rank)),
    ],
)
def test_compacting_keeps_the_outputs_and_is_saved(tmp_path, load, inputs, settings, kept, count):
    model = pruned(adapt(load(), **settings), kept)
    before = logits(model, inputs)
    assert (before - logits(load(), inputs)).abs().max() > 1e-3
    model.compact()
    assert trainable(model) == count
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert sum(tensor.numel() for tensor in load_file(tmp_path / "adapter_model.safetensors").values()) == count
    loaded = PeftModel.from_pretrained(load(), tmp_path).eval()
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    torch.testing.assert_close(logits(loaded.merge_and_unload(), inputs), before, rtol=0, atol=1e-5)
    model.compact()  # nothing is left to do
    assert trainable(model) == count
    model.collapse()
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "collapsed")
    again = PeftModel.from_pretrained(load(), tmp_path / "collapsed").eval()
    torch.testing.assert_close(logits(again, inputs), before, rtol=0, atol=1e-5)


def test_a_compacted_adapter_is_an_ordinary_lora():
    convert_to_lora = pytest.importorskip("peft.tuners.lora.conversion", reason="this peft has no conversion to LoRA")
    model = pruned(adapt(tiny_vit(), **FUSED))
    model.compact()
    # Of a fused layer all parts have one LoRA, of the sum of their ranks.
    config, weights = convert_to_lora.convert_to_lora(model, 7)
    lora = get_peft_model(tiny_vit(), config)
    assert not set_peft_model_state_dict(lora, weights).unexpected_keys
    torch.testing.assert_close(lora.eval()(IMAGES), model(IMAGES), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_compacted_adapter_is_loaded_and_merged_in_a_new_process(tmp_path):
    model = pruned(adapt(tiny_vit(), **FUSED))
    model.compact()
    model.save_pretrained(tmp_path)
    torch.save(model(IMAGES), tmp_path / "expected.pt")
    code = (
        "import sys, torch, surm; from peft import PeftModel; from tests.tuners.helpers import IMAGES, tiny_vit\n"
        "merged = PeftModel.from_pretrained(tiny_vit(), sys.argv[1]).merge_and_unload().eval()\n"
        "expected = torch.load(sys.argv[1] + '/expected.pt')\n"
        "torch.testing.assert_close(merged(IMAGES), expected, rtol=0, atol=1e-5)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ, timeout=300)


def test_one_of_two_adapters_is_compacted():
    model = adapt(net(), structure="gated_low_rank", structure_options={"rank": 3}, target_modules=TWO)
    pruned(model, [0, 2])
    model.add_adapter("other", SurmConfig(structure="low_rank", target_modules=TWO, init_weights=False))
    before = model(X)
    model.set_adapter("other")
    other = model(X)
    model.compact("default")
    torch.testing.assert_close(model(X), other, rtol=0, atol=0)
    model.set_adapter("default")
    torch.testing.assert_close(model(X), before, rtol=0, atol=1e-13)
    assert model.peft_config["default"].structure_pattern == {"first": None}
    with pytest.raises(ValueError, match="no adapter 'third': give one of default, other"):
        model.compact("third")
    model.merge_adapter()
    with pytest.raises(ValueError, match="is merged: call unmerge_adapter"):
        model.compact()


def test_names_that_end_alike_keep_their_own_ranks(tmp_path):
    def nested() -> nn.Module:
        model = nn.ModuleDict({"first": nn.Linear(4, 4), "block": nn.ModuleDict({"first": nn.Linear(4, 4)})})
        for parameter in model.parameters():
            nn.init.ones_(parameter)
        return model

    model = pruned(adapt(nested(), structure="gated_low_rank", target_modules=["first"]), [0, 1])
    model.compact()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(nested(), tmp_path)
    assert [name for name, module in loaded.named_modules() if isinstance(module, Gated)] == [
        "base_model.model.block.first.surm_update.default"
    ]


def test_adapters_keep_one_component_beside_their_bias():
    model = pruned(adapt(net(), form="adapter", structure="gated_low_rank", target_modules=TWO), [0, 1])
    before = model(X)
    model.compact()
    assert torch.equal(model(X), before)
    assert model.peft_config["default"].structure_pattern is None


def test_a_pattern_leaves_out_modules_and_parts():
    pattern = {"0.attn.qkv": None, "1.attn.qkv.k": None, "1.attn.qkv.v": "low_rank"}
    model = adapt(tiny_vit(), structure_pattern=pattern)
    structures = {name.split("model.model.")[1]: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(structures) == [f"blocks.1.attn.qkv.surm_{name}" for name in (
        "q.default.r1", "q.default.r2", "v.default.A", "v.default.B")]  # fmt: skip
    every = {f"qkv.{part}": None for part in "qkv"}
    with pytest.raises(ValueError, match="leaves out all of its parts: give None for the module itself"):
        adapt(tiny_vit(), structure_pattern=every)
