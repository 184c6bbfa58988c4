"""Tiny models with random weights, in place of those that PEFT's tests load from the hub."""

from pathlib import Path

import torch
import transformers
from peft import LoraConfig

# Wide enough that a random update of a layer shows in the output.
STD = 0.2
_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "initializer_range": STD,
}
_DECODER = {**_ENCODER, "intermediate_size": 48, "num_hidden_layers": 2, "num_key_value_heads": 2}
_GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 128, "initializer_range": STD} | {
    "bos_token_id": 98,
    "eos_token_id": 98,
}
_OPT = {
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "init_std": STD,
}
_BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "init_std": STD,
    "pad_token_id": 2,  # the end: PEFT's tests take the padding of a text for that
}
_T5 = {"d_model": 32, "d_ff": 37, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 128}

# By PEFT's name: ours, the class and its configuration. PEFT's tests skip some checks for names that hold "llama",
# "gemma", "qwen2", "gptj" or "gpt2", where other methods fail; ours have none of these.
MODELS: dict[str, tuple[str, str, dict]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("opt", "OPTForCausalLM", _OPT),
    "peft-internal-testing/opt-125m": ("opt-larger", "OPTForCausalLM", {**_OPT, "num_hidden_layers": 12}),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("gpt-2", "GPT2LMHeadModel", _GPT),
    "hf-internal-testing/tiny-random-gpt2": ("gpt-2", "GPT2LMHeadModel", _GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("gpt-j", "GPTJForCausalLM", {**_GPT, "rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("lama", "LlamaForCausalLM", _DECODER),
    "peft-internal-testing/tiny-dummy-qwen2": ("qwen", "Qwen2ForCausalLM", _DECODER),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("gema", "Gemma3ForCausalLM", {**_DECODER, "head_dim": 8}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("mistral", "MistralForCausalLM", _DECODER),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "t5",
        "T5ForConditionalGeneration",
        {**_T5, "decoder_start_token_id": 0},
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("bart", "BartForConditionalGeneration", _BART),
    "peft-internal-testing/tiny-random-BertModel": ("bert", "BertModel", _ENCODER),
    "peft-internal-testing/tiny-random-RobertaModel": ("roberta", "RobertaModel", _ENCODER),
    "peft-internal-testing/tiny-random-DebertaModel": ("deberta", "DebertaModel", _ENCODER),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("deberta-v2", "DebertaV2Model", _ENCODER),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": (
        "bert-classifier",
        "BertForSequenceClassification",
        _ENCODER,
    ),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "roberta-classifier",
        "RobertaForSequenceClassification",
        _ENCODER,
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
        "lama-classifier",
        "LlamaForSequenceClassification",
        {**_DECODER, "pad_token_id": 0},
    ),
}
LORA_CONFIG = "peft-internal-testing/tiny-opt-lora-revision"  # a saved configuration that test_config.py reads


def local(name: str) -> str:
    """The name of our model in place of PEFT's, relative to the folder of `build`; other names stay."""
    return f"tiny/{MODELS[name][0]}" if name in MODELS else name


def build(folder: Path) -> None:
    """Save each model that is missing below `folder`; the tests run there, where its names are paths."""
    transformers.logging.disable_progress_bar()
    for name, (_, kind, options) in MODELS.items():
        place, alias = folder / local(name), folder / name
        if not place.exists():
            model_class = getattr(transformers, kind)
            torch.manual_seed(0)
            model_class(model_class.config_class(**options)).save_pretrained(place)
        alias.parent.mkdir(exist_ok=True)
        if not alias.exists():  # for the tests that spell PEFT's name out
            alias.symlink_to(place.resolve())
    LoraConfig(task_type="CAUSAL_LM").save_pretrained(folder / LORA_CONFIG)
