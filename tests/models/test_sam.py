"""SAM: trained weights at their own size and at another, and what is counted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SamConfig, SamModel

from surm.methods.registry import AnyMethodConfig, make_method, method_class
from surm.models import load_backbone, sam, skeleton
from surm.models.hub import HubFiles
from surm.shared.errors import ModelError


@pytest.mark.parametrize(
    ("name", "rank", "expected"), [("circulant", 1, 36_864), ("lora", 1, 36_864), ("lora", 4, 147_456)]
)
def test_query_and_value_of_sams_encoder_have_the_paper_s_counts(name: str, rank: int, expected: int) -> None:
    """12 layers x 2 x 1,536 (section 6), and four times as many in SAMed; the fused layer's key is left alone."""
    options = {"rank": rank} if name == "lora" else {}
    method = make_method(method_class(name).resolve(AnyMethodConfig(name=name, **options), "weight", 768))
    backbone = skeleton("sam_vit_b", num_labels=9, predicts="masks")
    method.apply(backbone, {"form": "weight", "parts": ["q", "v"]})
    assert method.count()[0] == expected
    trained = {name for name, _ in method.trained_parameters() if not method.in_head(name)}
    assert all("vision_encoder.layers." in name for name in trained)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SamModel, HubFiles]:
    """A SAM of two layers as transformers stores it, of 64 pixels."""
    monkeypatch.setattr(sam, "WIDTH", 32)
    torch.manual_seed(0)
    config = {**sam.TINY, "vision_config": sam.TINY["vision_config"] | {"image_size": 64}}
    config["prompt_encoder_config"] = config["prompt_encoder_config"] | {"image_size": 64}
    model = SamModel(SamConfig(**config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "sam")
    return model, HubFiles(None, path=str(tmp_path / "sam"), config={"model_type": "sam"})


def test_all_but_the_new_masks_is_as_trained(stored: tuple[SamModel, HubFiles]) -> None:
    model, files = stored
    sam.check(files)
    torch.manual_seed(3)
    backbone = sam.load(files, "hash", num_labels=4, image_size=64)
    module, x = backbone.module.eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            module.vision_encoder(x).last_hidden_state, model.vision_encoder(x).last_hidden_state
        )
        assert module(pixel_values=x).pred_masks.shape == (2, 1, 4, 32, 32)
    theirs = model.state_dict()
    for name, tensor in module.state_dict().items():
        new = any(f"mask_decoder.{part}" in name for part in sam.NEW)
        assert new or torch.equal(tensor, theirs[name]), name
    torch.manual_seed(3)
    again = sam.load(files, "hash", num_labels=4, image_size=64).module
    assert torch.equal(again.mask_decoder.mask_tokens.weight, module.mask_decoder.mask_tokens.weight)


def test_positions_are_resampled_for_another_size(stored: tuple[SamModel, HubFiles]) -> None:
    model, files = stored
    module = sam.load(files, "hash", num_labels=4, image_size=32).module
    old, new = (of.vision_encoder.pos_embed.detach()[0].numpy() for of in (model, module))
    # A grid of half the side: each place lies in the middle of four old ones.
    np.testing.assert_allclose(new, (old[::2, ::2] + old[1::2, ::2] + old[::2, 1::2] + old[1::2, 1::2]) / 4, atol=1e-6)
    old, new = (of.vision_encoder.layers[1].attn.rel_pos_h.detach().numpy() for of in (model, module))
    assert (len(old), len(new)) == (15, 7)
    places = (np.arange(7) + 0.5) * 15 / 7 - 0.5
    expected = np.stack([np.interp(places, np.arange(15), column) for column in old.T], axis=1)
    np.testing.assert_allclose(new, expected, atol=1e-6)
    with torch.no_grad():
        assert module(pixel_values=torch.zeros(1, 3, 32, 32)).pred_masks.shape == (1, 1, 4, 16, 16)


def test_another_sam_and_another_task_are_one_sentence(
    stored: tuple[SamModel, HubFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam, "WIDTH", 768)
    with pytest.raises(ModelError, match="a SAM whose encoder has width 32: give ViT-B's, of width 768"):
        sam.load(stored[1], "hash", num_labels=4)
    with pytest.raises(ModelError, match="predicts masks, not labels"):
        load_backbone("tiny_sam", num_labels=4)
