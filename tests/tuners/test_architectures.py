"""Models as people fine-tune them, small and with random weights: trained, saved, loaded and merged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from surm import SurmConfig
from surm.tuners import SurmLayer
from tests.tuners.helpers import IDS, IMAGES, TINY

WORDS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = TINY | WORDS
LLAMA = BERT | {"num_key_value_heads": 1, "head_dim": 12}
VIT = TINY | {"image_size": 32, "patch_size": 16}
CLIP_TEXT = TINY | {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 11}
T5 = WORDS | {"d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 2, "num_heads": 2}
GPT2 = WORDS | {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 16}
WHISPER = WORDS | {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32}
WHISPER |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8}
WHISPER |= {"max_source_positions": 8, "max_target_positions": 16, "decoder_start_token_id": 1}
CONVNEXT = {"hidden_sizes": [12, 24], "depths": [2, 2], "num_stages": 2, "patch_size": 4, "image_size": 32}
CONVNEXT |= {"layer_scale_init_value": 1.0}

TEXT = {"input_ids": IDS}
IMAGE = {"pixel_values": IMAGES}
SPEECH = {"input_features": torch.linspace(-1, 1, 2 * 8 * 16).reshape(2, 8, 16), "decoder_input_ids": IDS}


class Row(NamedTuple):
    """A model: what builds it, what it reads, and how many modules are adapted."""

    build: Callable[[], nn.Module]
    inputs: dict[str, Tensor]
    layers: int  # of the weight form
    targets: str | list[str] | None = None  # None: the default
    sites: int = 0  # of the adapter form, by default; 0: none are known


def hf(model: str, **settings: Any) -> Callable[[], nn.Module]:
    """A model of transformers, from the settings of its configuration."""
    kind = getattr(transformers, model)
    return lambda: kind(kind.config_class(**settings))


def in_timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=3, **settings)


TIMM_VIT = in_timm("vit_tiny_patch16_224", depth=2, img_size=32)
TIMM_SWIN = in_timm("swin_tiny_patch4_window7_224", depths=(2, 2), embed_dim=24, img_size=32, window_size=4)
TIMM_CONVNEXT = in_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), ls_init_value=1.0)

ROWS = {  # two blocks each, unless it says otherwise
    "BERT": Row(hf("BertForSequenceClassification", **BERT), TEXT, 2 * 3, sites=4),
    "RoBERTa": Row(hf("RobertaForSequenceClassification", **BERT), TEXT, 2 * 3, sites=4),
    "ModernBERT": Row(hf("ModernBertModel", **BERT, cls_token_id=1, sep_token_id=2), TEXT, 2, sites=4),
    "ViT": Row(hf("ViTForImageClassification", **VIT), IMAGE, 2 * 3, sites=4),
    "DINOv2": Row(hf("Dinov2Model", **VIT), IMAGE, 2 * 3, sites=4),
    "CLIP": Row(
        hf("CLIPModel", text_config=CLIP_TEXT, vision_config=VIT, projection_dim=12), TEXT | IMAGE, 4 * 3, sites=8
    ),
    "timm ViT": Row(TIMM_VIT, {"x": IMAGES}, 2, sites=4),
    "timm Swin": Row(TIMM_SWIN, {"x": IMAGES}, 4),  # two stages of two blocks
    "timm ConvNeXt": Row(TIMM_CONVNEXT, {"x": IMAGES}, 4 * 3, ["conv_dw", "mlp.fc1", "mlp.fc2"]),  # four blocks
    "ConvNeXt": Row(hf("ConvNextModel", **CONVNEXT), IMAGE, 4 * 2, "all-linear"),  # two stages of two blocks
    "Llama": Row(hf("LlamaForCausalLM", **LLAMA), TEXT, 2 * 3, sites=4),
    "Llama, all linear": Row(hf("LlamaForCausalLM", **LLAMA), TEXT, 2 * 7, "all-linear"),
    "Qwen3": Row(hf("Qwen3ForCausalLM", **LLAMA), TEXT, 2 * 3, sites=4),
    "Gemma": Row(hf("GemmaForCausalLM", **LLAMA), TEXT, 2 * 3, sites=4),
    "Phi-3": Row(hf("Phi3ForCausalLM", **BERT, num_key_value_heads=1), TEXT, 2, ["qkv_proj"], sites=4),
    "GPT-2": Row(hf("GPT2LMHeadModel", **GPT2), TEXT, 2, sites=4),
    # An encoder with one attention in each block, a decoder with two.
    "T5": Row(hf("T5ForConditionalGeneration", **T5), TEXT | {"decoder_input_ids": IDS}, 6 * 2),
    "Whisper": Row(hf("WhisperForConditionalGeneration", **WHISPER), SPEECH, 6 * 4 + 4 * 2, "all-linear"),
}
RUNS = [(name, "weight") for name in ROWS] + [(name, "adapter") for name, row in ROWS.items() if row.sites]


def fresh(row: Row) -> nn.Module:
    torch.manual_seed(0)
    model = row.build().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # larger than at the start of a pre-training, so that attention is more than a mean
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def answer(model: nn.Module, row: Row) -> Tensor:
    """The first result: logits, or hidden states of a model without a head."""
    output = model(**row.inputs)
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize(("name", "form"), RUNS, ids=[f"{name}, {form}" for name, form in RUNS])
def test_it_trains_and_is_saved_loaded_merged_and_taken_off(name, form, tmp_path):
    row = ROWS[name]
    original = answer(fresh(row).requires_grad_(False), row)
    config = SurmConfig(form=form, target_modules=row.targets if form == "weight" else None)
    model = get_peft_model(fresh(row), config)
    assert sum(isinstance(m, SurmLayer) for m in model.modules()) == (row.layers if form == "weight" else row.sites)
    torch.testing.assert_close(answer(model, row), original, rtol=0, atol=0)

    target = original + torch.randn_like(original)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(3):
        loss = nn.functional.mse_loss(answer(model, row), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = answer(model, row).detach()
    assert (trained - original).abs().max() > 1e-2

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh(row), tmp_path)
    assert torch.equal(answer(loaded, row), trained)
    if form == "weight":
        merged = loaded.merge_and_unload(safe_merge=True)
        assert type(merged) is type(fresh(row))
        torch.testing.assert_close(answer(merged, row), trained, rtol=1e-4, atol=1e-4)

    plain, state = model.unload(), fresh(row).state_dict()
    assert plain.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
