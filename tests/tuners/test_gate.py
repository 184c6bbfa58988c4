"""Aurora's gate: a scaled and shifted attention, added to the output of each block."""

import copy
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from peft import PeftModel

from surm import SurmConfig
from tests.tuners.helpers import IDS, adapt, tiny_bert, tiny_vit
from tests.tuners.test_cp import bert, factors

GATED = {"structure": "aurora", "structure_options": {"rank": 2, "gate": True}, "task_type": "SEQ_CLS"}


def gated(**settings):
    return adapt(tiny_bert(), **GATED, **settings).eval()


def test_the_gate_adds_a_scaled_and_shifted_attention_to_the_output_of_each_block(tmp_path):
    """By hooks of its own on an unadapted model, as V is zero at the start."""
    model = gated()
    f = factors(model)
    assert 1e-4 < f["S"].std() < 4e-4
    assert f["T"].shape == (2, 24)
    model(IDS).logits.sum().backward()
    assert {name for name, p in f.items() if p.grad.any()} == {"V", "S", "T"}
    with torch.no_grad():
        f["S"].mul_(1e4)
        f["T"].mul_(1e4)
    twin = tiny_bert()
    for block, s, t in zip(twin.bert.encoder.layer, f["S"], f["T"], strict=True):
        block.output.register_forward_hook(lambda _, args, y, s=s, t=t: y + 0.1 * (args[1] * s + t))
    expected = twin(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected)
    assert (expected - tiny_bert()(IDS).logits).abs().max() > 0.01
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, tiny_bert()(IDS).logits)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    for copied in (loaded, copy.deepcopy(model)):
        assert torch.equal(copied(IDS).logits, model(IDS).logits)
        with torch.no_grad():
            factors(copied)["S"].zero_()
        assert not torch.equal(copied(IDS).logits, model(IDS).logits)
    assert torch.equal(model.unload()(IDS).logits, tiny_bert()(IDS).logits)


def test_the_gate_is_counted_deleted_and_never_merged():
    with torch.device("meta"):
        count = adapt(bert(768, 12), **GATED).get_nb_trainable_parameters()[0]
    head = 768 * 2 + 2
    assert count - head == 2 * (2 * 768 + 1 + 36) + 2 * 12 * 768
    model = gated()
    expected = model(IDS).logits
    for merge in (model.merge_adapter, model.merge_and_unload, layer_of(model).merge):
        with pytest.raises(ValueError, match="aurora with gate=True cannot be merged, as its gate acts on") as error:
            merge()
        assert "\n" not in str(error.value)
    if conversion := find_spec("peft.tuners.lora.conversion"):  # PEFT 0.18 has none
        with pytest.raises(TypeError, match="do not support LoRA conversion"):
            import_module(conversion.name).convert_to_lora(model, rank=2)
    model.add_adapter("other", SurmConfig())
    with pytest.raises(ValueError, match="Cannot pass `adapter_names` where an adapter has a gate, as 'default' has"):
        model(IDS, adapter_names=["default", "other"])
    assert torch.equal(model(IDS).logits, expected)
    model.set_adapter("other")
    assert torch.equal(model(IDS).logits, tiny_bert()(IDS).logits)
    model.delete_adapter("default")
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(
        ValueError, match=r"gate=True needs blocks as those of BERT, and 'blocks.0' has no output.dense"
    ):
        adapt(tiny_vit(), structure="aurora", structure_options={"gate": True})


def layer_of(model):
    return model.base_model.model.bert.encoder.layer[0].attention.self.query
