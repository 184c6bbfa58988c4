"""What each method trains, counted against the paper's arithmetic."""

import pytest
import timm
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from transformers import BertConfig, BertForSequenceClassification

from surm.methods.base import Method
from surm.methods.registry import AnyMethodConfig, make_method, method_class
from surm.models import load_backbone
from surm.models.backbone import Backbone

PAPER_METHODS = ["circulant", "toeplitz", "kronecker", "ldr", "lora"]


def placed(parts) -> dict:
    return {"form": "weight", "parts": list(parts)}


def asked(name: str, form: str = "weight", width: int = 768, **options) -> Method:
    return make_method(method_class(name).resolve(AnyMethodConfig(name=name, **options), form, width))


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
        applied = asked(method)
        with torch.device("meta"):
            applied.apply(load(), placed(parts))
        assert applied.count()[0] == applied.count_at_peak() == expected


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
    applied = asked(method, "adapter")
    applied.apply(load(), HOUSED | changed)
    assert applied.count()[0] == expected


def test_a_houlsby_bottleneck_on_bert_has_the_usual_count() -> None:
    """24 sites of 2 x 768 x 16 + 768 + 16."""
    method = asked("bottleneck", "adapter", size=16)
    method.apply(bert_base(), HOUSED)
    assert method.count()[0] == 608_640


@pytest.mark.parametrize(
    ("name", "placement", "options", "expected"),
    [
        ("compacter", {}, {}, 24 * (2 * (48 + 768) + 48 + 768) + 4**3),
        # 4 L (k + d) + n^3, which Mahabadi et al. 2021 state without biases (section 4)
        ("compacter", {"adapter_bias": False}, {}, 4 * 12 * (48 + 768) + 4**3),
        ("compacter", {"sites": "pfeiffer"}, {"size": 24, "terms": 2, "rank": 3}, 12 * 7 * (24 + 768) + 2**3),
        ("adapter_drop", {}, {}, 7 * 2 * (2 * 768 * 16 + 768 + 16)),
        ("adapter_drop", {"sites": "pfeiffer"}, {"of": "circulant", "dropped_layers": 11}, 3 * 768),
    ],
)
@pytest.mark.parametrize("load", [vit_b, bert_base])
def test_adapters_of_other_papers_have_their_counts(load, name: str, placement: dict, options: dict, expected) -> None:
    method = asked(name, "adapter", **options)
    method.apply(load(), HOUSED | placement)
    assert method.count()[0] == expected


def test_a_prefix_has_a_key_and_a_value_for_each_token_and_layer() -> None:
    """Of ten tokens 0.17 % of BERT-base; the projection has PEFT's two layers, the first of the model's width."""
    for projection, expected in ((False, 184_320), (True, 7_680 + 768 * 769 + 18_432 * 769)):
        method = asked("prefix_tuning", projection=projection)
        method.apply(bert_base())
        assert method.count() == (expected, 2 * 769)


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
        method = asked(name, arguments=arguments)
        method.apply(load(), placed("qkv"))
        assert method.count()[0] == 36 * per_matrix


def test_attention_only_trains_four_projections_of_a_layer() -> None:
    for load in (vit_b, bert_base):
        method = asked("attention_tuning")
        method.apply(load())
        assert method.count()[0] == 12 * 4 * (768 * 768 + 768)


def test_layernorm_tuning_trains_the_norms() -> None:
    for load, norms in ((vit_b, 25), (bert_base, 25)):  # two a layer, and the last one or that of the embeddings
        method = asked("layernorm_tuning")
        method.apply(load())
        assert method.count()[0] == norms * 2 * 768


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("bottleneck", "weight", "follows a layer"),
        ("lora", "adapter", "adds to weights"),
        ("peft_vera", "adapter", "adds to weights"),
        ("lora_xs", "adapter", "adds to weights"),
        ("circulant+lora_xs", "adapter", "adds to weights"),
        ("lorta", "adapter", "adds to weights"),
        ("compacter", "weight", "follows a layer"),
        ("adapter_drop", "weight", "follows a layer"),
    ],
)
def test_a_form_that_a_method_does_not_have_is_one_sentence(name: str, form: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        method_class(name).check_form(form)
    assert "\n" not in str(caught.value)
    method_class("circulant").check_form(form)
    method_class("full").check_form(form)


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
        asked(name, arguments=arguments)


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("peft_lora", {"init_lora_weights": value}) for value in ("loftq", "corda")),
        ("peft_lora", {"layers_pattern": "h"}),
        ("peft_lora", {"use_dora": True, "megatron_config": {"a": 1}}),
        *(("peft_boft", {"boft_block_size": block, "boft_block_num": number}) for block, number in ((4, 4), (0, 0))),
        *(("peft_oft", {"r": rank, "oft_block_size": block}) for rank, block in ((8, 8), (0, 0))),
        *(("peft_vera", {name: value}) for name, value in (("layers_pattern", "h"), ("save_projection", False))),
        *(
            ("peft_adalora", {name: value})
            for name, value in (("total_step", 0), ("tinit", 10**13), ("use_dora", True))
        ),
        ("peft_ia3", {"feedforward_modules": ["other"]}),
        ("peft_randlora", {"layers_pattern": "h"}),
        ("peft_road", {"variant": "nope"}),
        ("peft_road", {"group_size": 3}),
    ],
)
def test_what_pefts_configuration_refuses_is_one_sentence_before_any_model(name: str, arguments: dict) -> None:
    """The reference is PEFT's own configuration, made without ours."""
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.removeprefix("peft_").upper())]
    schedule = {"total_step": 10**12} if name == "peft_adalora" else {}
    try:
        kind(target_modules=["query"], **{**schedule, **arguments})
    except Exception:
        with pytest.raises(ValueError, match=r"^arguments: \w+ of PEFT refuses them \(.*\)\.$"):
            asked(name, arguments=arguments)
    else:
        assert asked(name, arguments=arguments)


def test_adalora_pays_for_factors_that_are_not_orthogonal() -> None:
    """PEFT's own term, on a model that computes its loss itself."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    backbone = Backbone(BertForSequenceClassification(config), ("classifier",), "text", "random")
    method = asked("peft_adalora", width=24, arguments={"init_r": 4})
    module = method.apply(backbone, placed("qkv"), steps=100).eval()
    with torch.no_grad():
        inputs, labels = torch.arange(6).view(2, 3), torch.tensor([0, 1])
        output = module.base_model(input_ids=inputs, labels=labels)
        plain = torch.nn.functional.cross_entropy(output.logits, labels)
        torch.testing.assert_close(plain + method.extra_loss(), output.loss)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adapter_drop", {"dropped_layers": 12}, r"leaves no adapter in 12 blocks: give at most 11\.$"),
        ("adapter_drop", {"of": "circulent"}, "nearest: circulant"),
        ("adapter_drop", {"of": "lora_xs"}, "of=lora_xs is not possible: it adds to weights"),
        ("adapter_drop", {"of": "lorta"}, "of=lorta is not possible: it adds to weights"),
        ("compacter", {"terms": 5}, r"terms=5 is not possible: give a divisor of .* 768 and of size=50\.$"),
        ("compacter", {"size": 0}, "size=0 is not possible: give an integer of at least 1"),
        ("prefix_tuning", {"tokens": 0}, "tokens=0 is not possible"),
        ("prefix_tuning", {}, "the model reads none$"),
    ],
)
def test_what_a_method_cannot_do_is_one_sentence(name: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        asked(name, "adapter", **options).apply(vit_b(), HOUSED)
    assert "\n" not in str(caught.value)


def applied(name: str) -> Method:
    torch.manual_seed(0)
    form = method_class(name).forms[0]
    method = asked(name, form, width=48, dropped_layers=1)
    method.apply(load_backbone("tiny_vit", num_labels=3), HOUSED if form == "adapter" else placed("qkv"))
    return method


def test_bitfit_trains_biases_and_the_head_alone() -> None:
    method = applied("bitfit")
    assert all(name.endswith(".bias") or name.startswith("head.") for name, _ in method.trained_parameters())
    named = method.module.named_parameters()
    expected = sum(p.numel() for name, p in named if name.endswith(".bias") and "head" not in name)
    assert method.count()[0] == expected > 0


def test_linear_probe_trains_the_head_alone() -> None:
    assert sorted(name for name, _ in applied("linear_probe").trained_parameters()) == ["head.bias", "head.weight"]


def test_full_trains_everything() -> None:
    method = applied("full")
    assert len(dict(method.trained_parameters())) == len(list(method.module.parameters()))
    assert sum(method.count()) == sum(p.numel() for p in method.module.parameters())


@pytest.mark.parametrize(
    "method",
    [
        *("circulant", "toeplitz", "kronecker", "ldr", "lora", "lora_fa", "bitfit", "linear_probe", "full"),
        *("layernorm_tuning", "attention_tuning", "peft_adalora", "peft_dora", "peft_lokr"),
        *("compacter", "adapter_drop", "aurora", "lorta", "hadamard"),
    ],
)
def test_every_method_starts_at_the_same_function(method: str) -> None:
    """Same seed, same head, zero update: the logits before the first step are those of the linear probe."""
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    probe, module = applied("linear_probe").module, applied(method).module
    image = torch.nn.functional.interpolate(x, probe.patch_embed.img_size)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(image), probe.eval()(image), rtol=1e-6, atol=1e-6)
