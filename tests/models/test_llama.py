"""The built-in language model: its de-quantised copy, its counts, and how known texts go on."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from surm.methods.registry import make_method
from surm.models import check_model, llama, load_backbone, model_predicts, model_width, skeleton
from surm.models.output import check_language_model, handing_on, replace_output_layer
from surm.shared.errors import ModelError
from tests.tools.skips import needs

SHAPE = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """De-quantising stands in for: it writes two files and is counted."""
    monkeypatch.setenv("SURM_CACHE", str(tmp_path))
    calls = []

    def dequantise(file, folder):
        calls.append(file)
        (folder / llama.WEIGHTS).write_bytes(b"weights")
        (folder / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(llama, "_dequantise", dequantise)
    return calls


@pytest.mark.parametrize("fault", ["cut", "other bytes", "absent", "no hashes", "damaged hashes", "none"])
def test_a_damaged_copy_is_made_anew(fault, made):
    weights = SimpleNamespace(locate=lambda: "file")
    folder = llama._cached(weights, "a" * 64)
    assert sorted(file.name for file in folder.iterdir()) == ["model.safetensors", "sha256.json", "tokenizer.json"]
    file, hashes = folder / llama.WEIGHTS, folder / llama.HASHES
    {
        "cut": lambda: file.write_bytes(b"weig"),
        "other bytes": lambda: file.write_bytes(b"Weights"),
        "absent": file.unlink,
        "no hashes": hashes.unlink,
        "damaged hashes": lambda: hashes.write_text("[1"),
        "none": lambda: None,
    }[fault]()
    assert llama._cached(weights, "a" * 64) == folder
    assert len(made) == 1 + (fault != "none")
    assert file.read_bytes() == b"weights"
    assert json.loads(hashes.read_text()).keys() == {"model.safetensors", "tokenizer.json"}
    assert [path.name for path in folder.parent.iterdir() if path.name != folder.name] == [f"{folder.name}.lock"]


def test_a_copy_that_fails_half_way_leaves_nothing(made, monkeypatch):
    def failing(file, folder):
        (folder / llama.WEIGHTS).write_bytes(b"half")
        raise ModelError("no.")

    monkeypatch.setattr(llama, "_dequantise", failing)
    with pytest.raises(ModelError):
        llama._cached(SimpleNamespace(locate=lambda: "file"), "a" * 64)
    models = llama.cache_folder() / "models"
    assert [path.name for path in models.iterdir()] == [f"{'a' * 32}.lock"]


@pytest.mark.parametrize(
    ("method", "options", "of_layer"),
    [
        # q and o are 576 x 576, k and v 192 x 576; grouped-query attention makes them rectangular
        ("circulant", {"parametrization": "product"}, 4 * 2 * 576),
        ("lora", {"rank": 1}, 2 * (576 + 576) + 2 * (192 + 576)),
        ("ldr", {"terms": 4}, 4 * 4 * 2 * 576),
    ],
)
def test_counts_of_grouped_query_attention(method, options, of_layer):
    from surm.config.compose import compose_run, composer
    from surm.config.run import Run

    given = [f"structure.{key}={value}" for key, value in options.items()]
    with composer():
        run = Run.of(
            compose_run(["model=builtin_llama", "dataset=uuid", "placement=weight_qkvo", f"structure={method}", *given])
        )
    made = make_method(run.asked["structure"])
    backbone = skeleton("builtin_llama", num_labels=1, predicts="tokens")
    assert sum(parameter.numel() for parameter in backbone.module.parameters()) == 134_515_008
    made.apply(backbone, run.asked["placement"])
    assert made.count() == (30 * of_layer, 0)
    assert model_width("builtin_llama") == 576


def test_the_output_layer_is_the_embedding_and_hands_on_its_input():
    backbone = load_backbone("tiny_llama", num_labels=1, predicts="tokens")
    module, ids = backbone.module.eval(), torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        logits = module(input_ids=ids).logits
        with handing_on(module) as layer:
            states = module(input_ids=ids).logits
    assert layer.weight is module.model.embed_tokens.weight
    assert "lm_head.weight" in module.state_dict()
    assert states.shape == (1, 3, 32)
    assert torch.allclose(states @ layer.weight.T, logits, atol=1e-6)


def test_models_that_cannot_be_trained_on_text_are_one_sentence():
    torch.manual_seed(0)
    llama_model = LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=8))
    for module in (llama_model, GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2))):
        replace_output_layer(module)
        check_language_model(module)

    class Backwards(LlamaForCausalLM):
        def forward(self, input_ids, **others):
            return super().forward(input_ids.flip(1), **others)

    backwards = Backwards(LlamaConfig(**SHAPE, intermediate_size=8, initializer_range=1.0))
    replace_output_layer(backwards)
    with pytest.raises(ModelError, match="sees the words that it is to predict"):
        check_language_model(backwards)

    class Capped(LlamaForCausalLM):
        def forward(self, *args, **others):
            output = super().forward(*args, **others)
            output.logits = output.logits.tanh()
            return output

    capped = Capped(LlamaConfig(**SHAPE, intermediate_size=8, initializer_range=1.0))
    replace_output_layer(capped)
    with pytest.raises(ModelError, match="changes the output layer's logits"):
        check_language_model(capped)


def test_a_folder_with_a_llama_is_a_classifier_or_a_language_model(tmp_path):
    shape = {**SHAPE, "vocab_size": 259}
    torch.manual_seed(1)
    module = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=8, num_key_value_heads=1))
    module.save_pretrained(tmp_path)
    load_backbone("tiny_llama", num_labels=1, predicts="tokens").tokenizer.save_pretrained(tmp_path)
    own = {"source": "local", "path": str(tmp_path)}
    assert model_predicts("mine", **own) == ("labels", "tokens")
    language = load_backbone("mine", num_labels=1, predicts="tokens", **own)
    labels = load_backbone("mine", num_labels=3, **own)
    assert (language.head, labels.head) == ((), ("score",))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert language.module.eval()(input_ids=ids).logits.equal(module.eval()(input_ids=ids).logits)
    assert skeleton("mine", num_labels=1, predicts="tokens", **own).head == ()


def test_a_causal_model_that_transformers_cannot_classify_with_is_a_language_model(tmp_path):
    torch.manual_seed(1)
    shape = {**SHAPE, "vocab_size": 259, "intermediate_size": 8, "num_key_value_heads": 1}
    module = GraniteForCausalLM(GraniteConfig(**shape)).eval()
    module.save_pretrained(tmp_path)
    load_backbone("tiny_llama", num_labels=1, predicts="tokens").tokenizer.save_pretrained(tmp_path)
    own = {"source": "local", "path": str(tmp_path)}
    check_model("mine", **own)
    assert model_predicts("mine", **own) == ("tokens",)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = load_backbone("mine", num_labels=1, predicts="tokens", **own).module.eval()(input_ids=ids).logits
        assert logits.equal(module(input_ids=ids).logits)
    with pytest.raises(ModelError, match="mine predicts tokens, not labels"):
        load_backbone("mine", num_labels=2, **own)


@needs("builtin_llama")
@pytest.mark.slow
def test_known_texts_go_on_as_known():
    """SmolLM2's own continuations; the loss is a number of this file, stated when the model was added."""
    backbone = load_backbone("builtin_llama", num_labels=1, predicts="tokens")
    module, tokenizer = backbone.module.eval(), backbone.tokenizer

    def go_on(text, tokens):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        return tokenizer.decode(module.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :])

    assert go_on("The capital of France is", 1) == " Paris"
    assert go_on("The opposite of hot is", 1) == " cold"
    text = "The quick brown fox jumps over the lazy dog. It was a sunny day, and everyone was happy to be outside."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert module(input_ids=ids, labels=ids).loss.item() == pytest.approx(2.8377, abs=1e-3)
