"""What each method trains, counted against the paper's arithmetic."""

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from surm.methods.apply import (
    apply_method,
    check_form,
    count_trainable,
    extra_loss,
    is_head,
    method_settings,
    trainable_parameters,
)
from surm.methods.schema import StructureConfig
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


HOUSED = {"form": "adapter", "sites": "houlsby", "adapter_bias": True, "activation": "gelu", "position": "after"}


@pytest.mark.parametrize("load", [vit_b, bert_base])
@pytest.mark.parametrize("method", ["circulant", "toeplitz", "kronecker"])
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 55_296),
        ({"adapter_bias": False}, 36_864),
        ({"sites": "pfeiffer"}, 27_648),
        ({"position": "before"}, 55_296),
    ],
)
def test_structured_adapters_have_the_paper_s_counts(load, method: str, changed: dict, expected: int) -> None:
    """Two in a layer of width 768 with 2n + n parameters each; 36,864 without bias is its "about 0.04M" (B.2)."""
    backbone = load()
    settings = method_settings(StructureConfig(name=method), "adapter", 768)
    assert count_trainable(apply_method(backbone, settings, HOUSED | changed), backbone.head)[0] == expected


def test_a_houlsby_bottleneck_on_bert_has_the_usual_count() -> None:
    """24 sites of 2 x 768 x 16 + 768 + 16."""
    backbone = bert_base()
    settings = method_settings(StructureConfig(name="bottleneck", size=16), "adapter", 768)
    assert count_trainable(apply_method(backbone, settings, HOUSED), backbone.head)[0] == 608_640


@pytest.mark.parametrize(
    ("name", "arguments", "per_matrix"),
    [
        ("peft_dora", {"r": 1}, 3 * 768),  # LoRA's two vectors and a magnitude for each output
        ("peft_c3a", {"block_size": "width"}, 768),
        ("peft_vera", {"r": 256}, 256 + 768),
        ("lora_fa", {}, 768),
    ],
)
def test_baselines_of_peft_have_the_counts_of_their_papers(name: str, arguments: dict, per_matrix: int) -> None:
    for load in (vit_b, bert_base):
        backbone = load()
        settings = method_settings(StructureConfig(name=name, arguments=arguments), "weight", 768)
        module = apply_method(backbone, settings, placed("qkv"))
        assert count_trainable(module, backbone.head)[0] == 36 * per_matrix


def test_attention_only_trains_four_projections_of_a_layer() -> None:
    for load in (vit_b, bert_base):
        backbone = load()
        module = apply_method(backbone, method_settings(StructureConfig(name="attention_tuning"), "weight", 768))
        assert count_trainable(module, backbone.head)[0] == 12 * 4 * (768 * 768 + 768)


def test_layernorm_tuning_trains_the_norms() -> None:
    for load, norms in ((vit_b, 25), (bert_base, 25)):  # two a layer, and the last one or that of the embeddings
        backbone = load()
        module = apply_method(backbone, method_settings(StructureConfig(name="layernorm_tuning"), "weight", 768))
        assert count_trainable(module, backbone.head)[0] == norms * 2 * 768


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("bottleneck", "weight", "follows a layer"),
        ("lora", "adapter", "adds to weights"),
        ("peft_vera", "adapter", "adds to weights"),
    ],
)
def test_a_form_that_a_method_does_not_have_is_one_sentence(name: str, form: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        check_form(name, form)
    assert "\n" not in str(caught.value)
    check_form("circulant", form)
    check_form("full", form)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("peft_adalra", {}, "did you mean adalora"),
        ("peft_vera", {"rank": 3}, "arguments.rank: VeraConfig of PEFT takes no such argument"),
        ("peft_prompt_tuning", {}, "does not adapt chosen layers"),
        ("peft_surm", {}, "no method of PEFT 'surm'"),
    ],
)
def test_a_bad_method_of_peft_is_one_sentence(name: str, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        method_settings(StructureConfig(name=name, arguments=arguments), "weight", 768)


def test_adalora_pays_for_factors_that_are_not_orthogonal() -> None:
    """PEFT's own term, on a model that computes its loss itself."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    backbone = Backbone(BertForSequenceClassification(config), ("classifier",), "text", "random")
    settings = method_settings(StructureConfig(name="peft_adalora", arguments={"init_r": 4}), "weight", 24)
    module = apply_method(backbone, settings, placed("qkv"), steps=100).eval()
    with torch.no_grad():
        inputs, labels = torch.arange(6).view(2, 3), torch.tensor([0, 1])
        output = module.base_model(input_ids=inputs, labels=labels)
        plain = torch.nn.functional.cross_entropy(output.logits, labels)
        torch.testing.assert_close(plain + extra_loss(module), output.loss)


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
    "method",
    [
        *("circulant", "toeplitz", "kronecker", "ldr", "lora", "lora_fa", "bitfit", "linear_probe", "full"),
        *("layernorm_tuning", "attention_tuning", "peft_adalora", "peft_dora", "peft_lokr"),
    ],
)
def test_every_method_starts_at_the_same_function(method: str) -> None:
    """Same seed, same head, zero update: the logits before the first step are those of the linear probe."""
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    probe, _, _ = trained("linear_probe")
    module, _, _ = trained(method)
    image = torch.nn.functional.interpolate(x, probe.patch_embed.img_size)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(image), probe.eval()(image), rtol=1e-6, atol=1e-6)
