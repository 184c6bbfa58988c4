"""What the Hadamard adapter trains, when, and what it is merged into."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from surm.methods.base import Method
from surm.models import load_backbone
from surm.models.backbone import Backbone
from tests.methods.test_methods import asked, bert_base, vit_b


def applied(load=bert_base, steps: int = 1, **options) -> Method:
    method = asked("hadamard", **options)
    method.apply(load(), steps=steps)
    return method


@pytest.mark.sample(4)
@pytest.mark.parametrize("load", [vit_b, bert_base])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 36_864),  # 4 d L, the paper's 0.033 % of BERT-base
        ({"norms": "none"}, 18_432),
        ({"norms": "both", "position": "after"}, 55_296),
        ({"layers": 8}, 24_576),  # its 0.022 %
        ({"layers": 1}, 3_072),
        ({"shift": False, "norms": "none"}, 9_216),
    ],
)
def test_counts(load, options: dict, expected: int) -> None:
    with torch.device("meta"):
        assert applied(load, **options).count()[0] == expected


def test_minilm_has_as_many_as_lora_of_rank_1_on_queries_and_values() -> None:
    with torch.device("meta"):
        config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        module = BertForSequenceClassification(config)
        assert applied(lambda: Backbone(module, ("classifier",), "text", "random")).count()[0] == 9_216


def names(method: Method) -> set[str]:
    cut = (name.split("layer.1.")[1] for name, _ in method.trained_parameters() if "layer.1." in name)
    return {name.removesuffix(".weight").removesuffix(".bias").removesuffix(".modules_to_save.default") for name in cut}


def test_the_normalisation_that_follows_the_attention_is_trained() -> None:
    output = "attention.output.dense.surm_adapter.default."
    one = {f"{output}inner.d", f"{output}outer", "attention.output.LayerNorm"}
    with torch.device("meta"):
        assert names(applied()) == one
        assert names(applied(norms="both")) == one | {"output.LayerNorm"}


@pytest.mark.parametrize("position", ["before", "after"])
def test_it_is_the_base_at_first_and_merges_exactly(position: str) -> None:
    torch.manual_seed(0)
    plain = load_backbone("tiny_bert", num_labels=3)
    inputs = plain.example()
    expected = plain.module.eval()(**inputs).logits
    torch.manual_seed(0)
    method = asked("hadamard", position=position)
    module = method.apply(load_backbone("tiny_bert", num_labels=3)).eval()
    assert torch.equal(module(**inputs).logits, expected)
    optimizer = torch.optim.Adam([p for _, p in method.trained_parameters()], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(**inputs).logits.square().sum().backward()
        assert all(p.grad.any() for name, p in method.trained_parameters())
        optimizer.step()
    trained = module(**inputs).logits
    assert (trained - expected).abs().max() > 0.1
    merged = module.merge_and_unload()
    assert not [name for name, _ in merged.named_parameters() if "surm_" in name or "modules_to_save" in name]
    torch.testing.assert_close(merged(**inputs).logits, trained, rtol=0, atol=1e-5)


def test_the_head_is_trained_alone_at_first() -> None:
    torch.manual_seed(0)
    method = asked("hadamard", head_first=0.25)
    backbone = load_backbone("tiny_bert", num_labels=3)
    module = method.apply(backbone, steps=8)
    for step in range(4):
        module(**backbone.example()).logits.sum().backward()
        method.after_backward(step)
        moved = {name for name, p in method.trained_parameters() if p.grad is not None}
        alone = {name for name, _ in method.trained_parameters() if method.in_head(name)}
        assert (moved == alone) == (step < 2)
        module.zero_grad()


def test_refusals() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="layers=13 is not possible: the model has 12 blocks"):
        applied(layers=13)
    with pytest.raises(ValueError, match="layers=0 is not possible: give an integer of at least 1"):
        asked("hadamard", layers=0)
    with pytest.raises(ValueError, match=r"head_first=1.0 is not possible: give a number from 0.0 to below 1"):
        asked("hadamard", head_first=1.0)
