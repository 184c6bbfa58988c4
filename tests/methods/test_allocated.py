"""Methods with an allocator: their counts, and what a command may ask of them."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from surm.methods.base import Method
from surm.methods.names import label
from surm.methods.registry import AnyMethodConfig, make_method, method_class
from surm.models.backbone import Backbone
from surm.structures.gated import Gated

QKV = {"form": "weight", "parts": ["q", "k", "v"]}


def asked(name: str, **options: Any) -> Method:
    return make_method(method_class(name).resolve(AnyMethodConfig(name=name, **options), "weight", 384))


def narrow_minilm() -> Backbone:
    """As wide and deep as MiniLM where it is adapted: 18 matrices of 384 x 384."""
    config = BertConfig(vocab_size=9, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=8)
    return Backbone(BertForSequenceClassification(config), ("classifier",), "text", "random")


@pytest.mark.parametrize(
    ("name", "options", "peak", "final"),
    [
        ("adalora", {}, 27_684, 13_842),
        ("dynamic_dora", {}, 27_684, 13_842),
        ("lora2", {"rank": 1, "outer_rank": 1}, 13_878, 13_878),
        ("lora2", {"rank": 8, "outer_rank": 1}, 14_256, None),
    ],
)
def test_counts_at_the_peak_and_in_the_end(name: str, options: dict[str, Any], peak: int, final: int | None) -> None:
    torch.manual_seed(0)
    method = asked(name, **options)
    method.apply(narrow_minilm(), QKV, steps=10)
    trained = [parameter for _, parameter in method.trained_parameters()]
    for step in range(10):  # as if it trained
        with torch.no_grad():
            for parameter in trained:
                parameter.normal_()
                parameter.grad = torch.randn_like(parameter)
        method.after_step(step)
    assert method.count()[0] == method.count_at_peak() == peak
    method.finish()
    left = [module for module in method.module.modules() if isinstance(module, Gated)]
    ranks = [len(structure.gates()) for structure in left]
    assert sum(ranks) == 18
    assert method.count_at_peak() == peak
    # What is left of LoRA^2 is the outer pair of each matrix that is not zero, and three numbers a component.
    assert method.count()[0] == (sum(768 + 3 * rank for rank in ranks) if final is None else final)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adalora", {"target_rank": 3.0}, "target_rank=3 is above rank=2"),
        ("adalora", {"target_rank": 0.0}, "target_rank=0.0 is not possible: give a number above 0"),
        ("dynamic_dora", {"prune_start": 0.5}, "prune_start=0.5 is not before prune_end=0.5"),
        ("lora2", {"smoothing": 1.0}, "smoothing=1.0 is not possible"),
    ],
)
def test_what_cannot_be_allocated_is_one_sentence_before_any_model(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        asked(name, **options)
    assert "\n" not in str(caught.value)


def test_too_few_steps_are_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"1 steps leave none .*: train longer"):
        asked("adalora").apply(narrow_minilm(), QKV, steps=1)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adalora", {"alpha": 16.0}, "AdaLoRA (ours) r=2 to 1"),
        ("adalora", {"alpha": 1.0}, "AdaLoRA (ours) r=2 to 1, alpha 1"),
        ("dynamic_dora", {"alpha": 8.0, "dropout": 0.1}, "dynamic DoRA r=2 to 1"),
        ("dynamic_dora", {"alpha": 8.0}, "dynamic DoRA r=2 to 1"),
        ("lora2", {"outer_rank": 1, "alpha": 16.0}, "LoRA² r=8 to 1"),
        ("lora2", {"smoothing": 0.9, "alpha": 16.0}, "LoRA² r=8 to 1, outer r=8, smoothing 0.9"),
    ],
)
def test_labels_leave_out_what_is_usual(name: str, options: dict[str, Any], expected: str) -> None:
    settings = method_class(name).resolve(AnyMethodConfig(name=name, **options), "weight", 384)
    assert label({"structure": settings}) == expected
