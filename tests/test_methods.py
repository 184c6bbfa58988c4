"""What each method trains, counted against the paper's arithmetic."""

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from surm.config import StructureConfig
from surm.methods import apply_method, count_trainable, is_head, method_settings, trainable_parameters
from surm.models import load_backbone
from surm.models.backbone import Backbone

PAPER_METHODS = ["circulant", "toeplitz", "kronecker", "ldr", "lora"]


def placed(parts) -> dict:
    return {"form": "weight", "parts": list(parts)}


def vit_b() -> Backbone:
    with torch.device("meta"):
        module = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=10)
    return Backbone(module, ("head",), "image", "random")


def bert_base() -> Backbone:
    with torch.device("meta"):
        module = BertForSequenceClassification(BertConfig(num_labels=2))
    return Backbone(module, ("classifier",), "text", "random")


@pytest.mark.parametrize("load", [vit_b, bert_base])
@pytest.mark.parametrize("method", PAPER_METHODS)
def test_the_paper_counts_on_base_models(load, method: str) -> None:
    """55,296 on q, k, v of twelve layers of width 768 (sections 1 and 6), 36,864 on q and v."""
    for parts, expected in ((["q", "k", "v"], 55_296), (["q", "v"], 36_864)):
        backbone = load()
        with torch.device("meta"):
            module = apply_method(backbone, method_settings(StructureConfig(name=method), "weight", 768), placed(parts))
        assert count_trainable(module, backbone.head)[0] == expected


def trained(method: str) -> tuple[nn.Module, list[str], tuple[str, ...]]:
    torch.manual_seed(0)
    backbone = load_backbone("tiny_vit", num_labels=3)
    module = apply_method(backbone, method_settings(StructureConfig(name=method), "weight", 48), placed("qkv"))
    return module, [name for name, _ in trainable_parameters(module)], backbone.head


def test_bitfit_trains_biases_and_the_head_alone() -> None:
    module, names, head = trained("bitfit")
    assert all(name.endswith(".bias") or is_head(name, head) for name in names)
    expected = sum(p.numel() for name, p in module.named_parameters() if name.endswith(".bias") and "head" not in name)
    assert count_trainable(module, head)[0] == expected > 0


def test_linear_probe_trains_the_head_alone() -> None:
    _, names, _ = trained("linear_probe")
    assert sorted(names) == ["head.bias", "head.weight"]


def test_full_trains_everything() -> None:
    module, names, head = trained("full")
    assert len(names) == len(list(module.parameters()))
    assert sum(count_trainable(module, head)) == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "method", ["circulant", "toeplitz", "kronecker", "ldr", "lora", "bitfit", "linear_probe", "full"]
)
def test_every_method_starts_at_the_same_function(method: str) -> None:
    """Same seed, same head, zero update: the logits before the first step are those of the linear probe."""
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    probe, _, _ = trained("linear_probe")
    module, _, _ = trained(method)
    image = torch.nn.functional.interpolate(x, probe.patch_embed.img_size)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(image), probe.eval()(image), rtol=1e-6, atol=1e-6)
