"""An adapter for each row of a batch, in both forms."""

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig, LlamaConfig, LlamaForCausalLM

from surm import SurmConfig
from surm.tuners.layer import rows_of
from tests.tuners.helpers import IDS, TWO, X, adapt, net, tiny_bert, tiny_vit

NAMES = ["other", "default", "__base__", "other", "default"]
SIZES = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **SIZES)).double().eval()


def bart():
    torch.manual_seed(0)
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in SIDE.items()}
    return BartForConditionalGeneration(BartConfig(d_model=16, **sides, **SIZES)).double().eval()


SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}


def two_adapters(model, **settings):
    """Two adapters of different structures, the first active."""
    settings = {"init_weights": False} | settings
    model = adapt(model, structure="circulant", **({"alpha": 30.0} if "form" not in settings else {}), **settings)
    model.add_adapter("other", SurmConfig(structure="kronecker", **settings))
    return model.eval()


def alone(model, name, call):
    """What one adapter, or the base model, gives for a whole batch."""
    if name == "__base__":
        with model.disable_adapter():
            return call()
    model.set_adapter(name)
    result = call()
    model.set_adapter("default")
    return result


def logits(output):
    return getattr(output, "logits", output)


def test_rows_are_listed_by_adapter_without_the_base_model():
    assert [(name, rows.tolist()) for name, rows in rows_of(NAMES)] == [("other", [0, 3]), ("default", [1, 4])]
    assert list(rows_of(["__base__"])) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": TWO},
        {"target_modules": ["first"], "dropout": 0.5},
        {"target_modules": TWO, "form": "adapter"},
    ],
)
def test_each_row_goes_through_its_adapter(settings):
    model = two_adapters(net(), **settings)
    output = model(X, adapter_names=NAMES)
    rows = {name: alone(model, name, lambda: model(X)) for name in NAMES}
    for row, name in enumerate(NAMES):
        torch.testing.assert_close(output[row], rows[name][row], rtol=0, atol=1e-13)
        assert sum(torch.allclose(output[row], other[row]) for other in rows.values()) == 1
    assert torch.equal(model(X), rows["default"])  # nothing of it stays


def test_parts_of_fused_layers_and_heads_follow_their_rows():
    model = two_adapters(tiny_vit(), fused_parts=["q", "v"], modules_to_save=["head"])
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["other"].weight.add_(1.0)
    images = torch.randn(3, 3, 32, 32)
    names = ["__base__", "other", "default"]
    output = model(images, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(output[row], alone(model, name, lambda: model(images))[row], rtol=0, atol=1e-5)


def test_embeddings_and_convolutions_follow_their_rows():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.mix = nn.Embedding(50, 6), nn.Conv1d(6, 4, 3)

        def forward(self, x):
            return self.mix(self.words(x).mT)

    torch.manual_seed(0)
    model = two_adapters(Words().double(), target_modules=["words", "mix"])
    names = ["other", "__base__"]
    output = model(IDS, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(output[row], alone(model, name, lambda: model(IDS))[row], rtol=0, atol=1e-13)


GENERATE = [
    {"num_beams": 1},
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 2},
    {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=5, **{k: SIZES[k] for k in SIZES if "id" in k})},
]


@pytest.mark.parametrize("settings", GENERATE)
@pytest.mark.parametrize(("base", "targets"), [(llama, ["q_proj", "down_proj"]), (bart, ["q_proj", "fc2"])])
@pytest.mark.parametrize("form", ["weight", "adapter"])
def test_generation_routes_each_prompt(base, targets, settings, form):
    extra = {} if form == "weight" else {"form": "adapter"}
    model = two_adapters(base(), target_modules=targets, **extra)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "surm_" in name:
                parameter.mul_(4.0)
    prompts = torch.arange(3, 15).reshape(3, 4)
    names = ["default", "__base__", "other"]
    settings = {"max_new_tokens": 5, "do_sample": False} | settings
    together = model.generate(input_ids=prompts, adapter_names=names, **settings)
    count = len(together) // 3
    for row, name in enumerate(names):
        expected = alone(model, name, lambda: model.generate(input_ids=prompts, **settings))
        length = min(together.shape[1], expected.shape[1])
        rows = slice(row * count, (row + 1) * count)
        assert torch.equal(together[rows, :length], expected[rows, :length])
        assert not together[rows, length:].any()  # padding, where other prompts went on for longer
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("form", ["weight", "adapter"])
def test_what_is_not_possible_is_said_as_by_lora(form):
    model = (
        two_adapters(net(), target_modules=TWO, form=form)
        if form == "adapter"
        else two_adapters(net(), target_modules=TWO)
    )
    with pytest.raises(ValueError, match=r"^Trying to infer with non-existing adapter\(s\): missing, wrong$"):
        model(X, adapter_names=["default", "wrong", "missing", "__base__", "other"])
    with pytest.raises(ValueError, match="should be the same as the number of inputs, but got 2 and 5 respectively"):
        model(X, adapter_names=["default", "other"])
    model.train()
    with pytest.raises(ValueError, match="Cannot pass `adapter_names` when the model is in training mode"):
        model(X, adapter_names=NAMES)
    model.eval()
    if form == "weight":
        model.merge_adapter()
        with pytest.raises(ValueError, match="when there are merged adapters, please call `unmerge_adapter` first"):
            model(X, adapter_names=NAMES)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_sequence_classifier_takes_names_with_its_other_arguments():
    model = two_adapters(tiny_bert(), target_modules=["query", "value"], task_type="SEQ_CLS")
    names = ["other", "default"]
    output = logits(model(input_ids=IDS, attention_mask=torch.ones_like(IDS), adapter_names=names))
    for row, name in enumerate(names):
        expected = alone(model, name, lambda: logits(model(input_ids=IDS)))
        torch.testing.assert_close(output[row], expected[row], rtol=0, atol=1e-6)
