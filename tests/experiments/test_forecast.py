from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from surm.experiments.forecast import correction, forward_flops, gpu_hours, training_flops
from surm.models import Backbone, load_backbone, skeleton
from surm.records.record import Record


class Attention(nn.Module):
    """Three tokens of an image's rows, width 8: one linear map, then attention of the tokens to themselves."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        tokens = self.linear(x[:, :, 0, :])
        return scaled_dot_product_attention(tokens, tokens, tokens)


def test_linear_map_and_attention_by_hand():
    with torch.device("meta"):
        backbone = Backbone(Attention(), (), "image", "none", image_size=8)
    # 3 tokens: a map costs 2 x 8 x 8 a token; scores and weighted sums cost 2 x 3 x 3 x 8 each.
    assert forward_flops(backbone) == 3 * 2 * 8 * 8 + 2 * (2 * 3 * 3 * 8)


def transformer(tokens, width, layers):
    """Query, key, value, output: 4 d^2; the MLP: 8 d^2; attention: 2 L d a token. Two operations each."""
    return layers * 2 * (tokens * 12 * width**2 + 2 * tokens**2 * width)


@pytest.mark.parametrize(("name", "width", "layers"), [("bert_base", 768, 12), ("bert_large", 1024, 24)])
def test_bert_by_hand(name, width, layers):
    pooler, head = 2 * width**2, 2 * 3 * width
    expected = transformer(128, width, layers) + pooler + head
    assert forward_flops(skeleton(name, num_labels=3), 128) == expected


def test_llama_by_hand():
    """Query and output: d^2 each; key and value a third of it; a gated MLP: 3 d h; every place has its logits."""
    tokens, width, hidden = 76, 576, 1536
    layer = tokens * (2 * width**2 + 2 * width * 192 + 3 * width * hidden) + 2 * tokens**2 * width
    expected = 2 * (30 * layer + tokens * width * 49_152)
    assert forward_flops(skeleton("builtin_llama", num_labels=0, predicts="tokens"), tokens) == expected


@pytest.mark.parametrize(("size", "patches"), [(224, 14**2), (96, 6**2)])
def test_vit_by_hand(size, patches):
    pixels, head = 2 * patches * 3 * 16**2 * 768, 2 * 10 * 768
    expected = transformer(1 + patches, 768, 12) + pixels + head
    assert forward_flops(skeleton("vit_b16", num_labels=10, image_size=size)) == expected


def test_a_loaded_model_costs_what_its_skeleton_says():
    for name, tokens in (("tiny_vit", None), ("tiny_bert", 20)):
        bones, loaded = (forward_flops(build(name, num_labels=2), tokens) for build in (skeleton, load_backbone))
        assert bones == loaded > 0


def test_text_needs_a_length():
    with pytest.raises(ValueError, match="tokens=None"):
        forward_flops(skeleton("tiny_bert", num_labels=2))


@pytest.mark.parametrize(
    ("method", "each"),
    [
        ("full", 300),
        ("attention_tuning", 300),
        ("bitfit", 200 + 21),
        ("circulant", 200 + 21),
        ("peft_dora", 200 + 21),
        ("linear_probe", 100 + 7),
    ],
)
def test_passes_that_a_method_pays_for(method, each):
    assert training_flops(100, 10, 1.5, method=method, update=7) == 15 * each


def test_backward_pass_of_a_linear_layer_is_counted_as_the_counter_counts_it():
    """Measured by torch itself: weights trained, 3 F; frozen below something trained, 2 F; nothing below, 1 F."""
    for frozen, differentiable, method in ((False, True, "full"), (True, True, "lora"), (True, False, "linear_probe")):
        layer, x = nn.Linear(16, 16).requires_grad_(not frozen), torch.randn(4, 16, requires_grad=differentiable)
        forward = 4 * 2 * 16 * 16
        with FlopCounterMode(display=False) as counter:
            y = layer(x).sum()
            if y.requires_grad:
                y.backward()
        assert counter.get_total_flops() == training_flops(forward, 1, method=method)


def test_hours_at_the_stated_speed():
    assert gpu_hours(3600 * 312e12 * 0.35) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"There is no GPU 'a1000': .*did you mean a100"):
        gpu_hours(1, gpu="a1000")


# --- correction by measured steps -------------------------------------------------------------------------------------


def measured(name, seconds, *, dataset="digits", cpu="one", status="finished"):
    asked = {
        "model": {"name": "builtin_vit"},
        "dataset": {"name": dataset},
        "structure": {"name": name},
        "trainer": {"batch_size": 32},
    }
    return Record(
        Path("x.json"), "x", status, asked, {"seconds_per_step": seconds}, {"machine": {"cpu": cpu, "device": "cpu"}}
    )


def test_a_method_is_compared_with_full_fine_tuning_under_the_same_conditions():
    records = [
        *(measured("full", seconds) for seconds in (2.0, 3.0, 9.0)),
        *(measured("toeplitz", seconds) for seconds in (3.0, 4.0, 8.0)),
        measured("toeplitz", 1000.0, cpu="other"),  # nothing to compare with there
        measured("toeplitz", 1000.0, status="failed"),
        measured("lora", 6.0),
        measured("linear_probe", 0.5),
    ]
    # The model says 2/3 of full fine-tuning's 3 s, which is 2 s; the median Toeplitz step took 4 s.
    assert correction("toeplitz", records) == pytest.approx(2.0)
    assert correction("lora", records) == pytest.approx(3.0)
    assert correction("linear_probe", records) == pytest.approx(0.5)
    assert correction("full", records) == pytest.approx(1.0)


def test_lora_is_the_reference_where_full_fine_tuning_was_not_measured():
    records = [measured("lora", 2.0), measured("circulant", 3.0), measured("full", 1.0, dataset="valence")]
    assert correction("circulant", records) == pytest.approx(1.5)


def test_what_was_not_measured_is_not_corrected():
    study = Record(Path("x.json"), "x", "finished", {"study": {"name": "pinwheel"}}, {}, {})
    unfinished = measured("full", None)
    assert correction("circulant", [study, unfinished, measured("circulant", 3.0)]) == 1.0
    assert correction("peft_dora", [measured("full", 1.0)]) == 1.0
