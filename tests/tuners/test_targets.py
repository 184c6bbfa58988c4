"""Which layers are adapted by default, and how fused projections are split."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BartConfig,
    BeitConfig,
    BertConfig,
    BloomConfig,
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    ElectraConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SwinConfig,
    T5Config,
    ViTConfig,
)
from transformers.pytorch_utils import Conv1D

from surm import SurmConfig
from surm.tuners import SurmLayer
from surm.tuners.targets import fused_parts, projection_names
from tests.tuners.helpers import TINY, adapt, timm_vit, trainable

H, KV = 24, 12  # width, and that of keys and values where two queries share one
WORDS = TINY | {"vocab_size": 50, "pad_token_id": 0}
GROUPED = WORDS | {"num_key_value_heads": 1}
HEADS = GROUPED | {"head_dim": 12}

BERT = ("attention.self.query", "attention.self.key", "attention.self.value")
VIT = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
QV = ("self_attn.q_proj", "self_attn.v_proj")
EQUAL, SHARED = [H, H, H], [H, KV, KV]

DEFAULTS = [  # the two blocks, the adapted layers of each, and the outputs of each part
    (BertConfig(**TINY), "encoder.layer", BERT, EQUAL),
    (RobertaConfig(**TINY), "encoder.layer", BERT, EQUAL),
    (ElectraConfig(**TINY, embedding_size=H), "encoder.layer", BERT, EQUAL),
    (ModernBertConfig(**WORDS), "layers", ("attn.Wqkv",), EQUAL),
    (ViTConfig(**TINY), "layers", VIT, EQUAL),
    (DeiTConfig(**TINY), "layers", VIT, EQUAL),
    (BeitConfig(**TINY), "layers", VIT, EQUAL),
    (Dinov2Config(**TINY), "encoder.layer", VIT, EQUAL),
    (Dinov2WithRegistersConfig(**TINY), "encoder.layer", VIT, EQUAL),
    (CLIPVisionConfig(**TINY), "encoder.layers", QKV, EQUAL),
    (LlamaConfig(**GROUPED), "layers", QKV, SHARED),
    (MistralConfig(**GROUPED), "layers", QKV, SHARED),
    (Qwen2Config(**GROUPED), "layers", QKV, SHARED),
    (Qwen3Config(**HEADS), "layers", QKV, SHARED),
    (GemmaConfig(**HEADS), "layers", QKV, SHARED),
    (Gemma2Config(**HEADS), "layers", QKV, SHARED),
    (Gemma3TextConfig(**HEADS), "layers", QKV, SHARED),
    (PhiConfig(**WORDS), "layers", QKV, EQUAL),
    (Phi3Config(**GROUPED), "layers", ("self_attn.qkv_proj",), SHARED),
    (GPT2Config(vocab_size=50, n_embd=H, n_layer=2, n_head=2), "h", ("attn.c_attn",), EQUAL),
    # The rest by PEFT's own table.
    (OPTConfig(**WORDS, word_embed_proj_dim=H, ffn_dim=32), "decoder.layers", QV, [H, H]),
    (
        BloomConfig(vocab_size=50, hidden_size=H, n_layer=2, n_head=2),
        "h",
        ("self_attention.query_key_value",),
        [3 * H],
    ),
    (GPTNeoXConfig(**WORDS), "layers", ("attention.query_key_value",), [3 * H]),
    (FalconConfig(**WORDS, multi_query=False), "h", ("self_attention.query_key_value",), [3 * H]),
]


def from_config(config):
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


def adapted(model):
    return {name for name, module in model.base_model.model.named_modules() if isinstance(module, SurmLayer)}


@pytest.mark.parametrize(("config", "blocks", "layers", "parts"), DEFAULTS, ids=[row[0].model_type for row in DEFAULTS])
def test_the_default_layers_of_a_model_and_their_parts(config, blocks, layers, parts):
    model = adapt(from_config(config), structure="low_rank")
    assert adapted(model) == {f"{blocks}.{index}.{layer}" for index in range(2) for layer in layers}
    assert trainable(model) == 2 * sum(H + outputs for outputs in parts)  # of rank one


def test_the_default_layers_of_stages_and_of_encoders_with_decoders():
    swin = from_config(SwinConfig(image_size=32, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=2))
    assert trainable(adapt(swin, structure="low_rank")) == 3 * (8 + 8) + 2 * 3 * (16 + 16)
    t5 = from_config(T5Config(vocab_size=50, d_model=H, d_kv=6, num_heads=2, d_ff=32, num_layers=2))
    assert trainable(adapt(t5, structure="low_rank")) == 2 * 3 * 2 * (H + 12)  # q and v of three attentions
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartConfig(vocab_size=50, d_model=H, encoder_layers=1, decoder_layers=1, **heads)
    assert len(adapted(adapt(from_config(bart)))) == 3 * 2


@pytest.mark.parametrize(
    ("config", "o", "mlp"),
    [
        (LlamaConfig(**GROUPED), ["self_attn.o_proj"], ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]),
        (PhiConfig(**WORDS), ["self_attn.dense"], ["mlp.fc1", "mlp.fc2"]),
        (Phi3Config(**GROUPED), ["self_attn.o_proj"], ["mlp.down_proj", "mlp.gate_up_proj"]),
        (GPT2Config(vocab_size=50, n_embd=H, n_layer=2, n_head=2), ["attn.c_proj"], ["mlp.c_fc", "mlp.c_proj"]),
        (ModernBertConfig(**WORDS), ["attn.Wo"], ["mlp.Wi", "mlp.Wo"]),
        (DeiTConfig(**TINY), ["attention.o_proj"], ["mlp.fc1", "mlp.fc2"]),
        (CLIPVisionConfig(**TINY), ["self_attn.out_proj"], ["mlp.fc1", "mlp.fc2"]),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_output_and_feed_forward_layers_are_known(config, o, mlp):
    model = from_config(config)
    assert (projection_names(model, ["o"]), projection_names(model, ["mlp"])) == (o, mlp)


def test_parts_of_a_model_that_peft_alone_knows_are_refused():
    model = from_config(OPTConfig(**WORDS, word_embed_proj_dim=H, ffn_dim=32))
    with pytest.raises(ValueError, match=r"parts=\['q'\] of model type 'opt' are not known: give q, k, v") as error:
        projection_names(model, ["q"])
    assert "\n" not in str(error.value)


# --- fused projections ------------------------------------------------------------------------------------------------

WHOLE: dict[str, int] = {}


@pytest.mark.parametrize(
    ("name", "layer", "parts"),
    [
        ("blocks.0.attn.qkv", nn.Linear(4, 12), {"q": 4, "k": 4, "v": 4}),
        ("blocks.0.attn.qkv", nn.Linear(4, 8), WHOLE),
        ("h.0.attn.c_attn", Conv1D(12, 4), {"q": 4, "k": 4, "v": 4}),
        ("h.0.crossattention.c_attn", Conv1D(8, 4), {"k": 4, "v": 4}),
        ("h.0.attn.c_proj", Conv1D(12, 4), WHOLE),
        ("h.0.attn.c_attn", nn.Linear(4, 12), WHOLE),  # GPT-BigCode's go head by head
        ("attention.query_key_value", nn.Linear(4, 12), WHOLE),
        ("self_attn.qkv_proj", nn.Linear(4, 12), WHOLE),  # without a model that says how
        ("conv", nn.Conv2d(4, 12, 1), WHOLE),
    ],
)
def test_parts_that_a_layer_tells(name, layer, parts):
    assert list(fused_parts(name, layer).items()) == list(parts.items())


GATED = {"gate_up": {"up": 8, "gate": 4}}


@pytest.mark.parametrize(
    ("fused", "parts"),
    [
        ({"gate_up": 3}, {"q": 4, "k": 4, "v": 4}),
        ({"gate_up": 2}, {"0": 6, "1": 6}),
        ({"gate_up": [2, 4, 6]}, {"q": 2, "k": 4, "v": 6}),
        ({"gate_up": (10, 2)}, {"0": 10, "1": 2}),
        (GATED, {"up": 8, "gate": 4}),
        ({"up": 2}, WHOLE),
        ({r"mlp\..*": 2}, {"0": 6, "1": 6}),
        ({"gate_up": 1}, WHOLE),
    ],
)
def test_parts_that_the_user_tells_stay_in_order_when_saved(tmp_path, fused, parts):
    config = SurmConfig(fused=fused)
    config.save_pretrained(tmp_path)
    for each in (config, SurmConfig.from_pretrained(tmp_path)):
        assert list(fused_parts("layers.0.mlp.gate_up", nn.Linear(4, 12), each).items()) == list(parts.items())


def test_the_user_can_take_a_known_projection_as_a_whole():
    assert fused_parts("attn.qkv", nn.Linear(4, 12), SurmConfig(fused={"qkv": 1})) == WHOLE


@pytest.mark.parametrize(
    ("settings", "layer", "sentence"),
    [
        ({"fused": {"gate_up": 5}}, nn.Linear(4, 12), "fused=5 equal parts do not divide 12 outputs"),
        (
            {"fused": {"gate_up": [6, 7]}},
            nn.Linear(4, 12),
            r"fused=\[6, 7\] adds up to 13, not to the layer's 12 outputs",
        ),
        ({"fused": GATED}, nn.Linear(4, 8), "adds up to 12, not to the layer's 8 outputs"),
        ({"fused": GATED}, nn.Conv2d(4, 12, 1), "Conv2d, which is no linear layer"),
        ({"fused": GATED, "fused_parts": ["q"]}, nn.Linear(4, 12), "names none of the layer's parts up, gate"),
    ],
)
def test_an_impossible_split_is_refused_in_one_sentence(settings, layer, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        fused_parts("mlp.gate_up", layer, SurmConfig(**settings))
    assert "\n" not in str(error.value)


ONE = torch.tensor([[7]])
GPT2 = GPT2Config(vocab_size=50, n_embd=H, n_layer=2, n_head=2)
FUSED = {  # the model, its first fused layer, and what the model makes of one token
    "timm": (timm_vit, "blocks.0.attn.qkv", lambda model: model.blocks[0].attn(torch.ones(1, 1, 192))),
    "gpt2": (lambda: from_config(GPT2), "h.0.attn.c_attn", lambda model: model(ONE)[0]),
    "modernbert": (lambda: from_config(ModernBertConfig(**WORDS)), "layers.0.attn.Wqkv", lambda model: model(ONE)[0]),
    "phi3": (lambda: from_config(Phi3Config(**GROUPED)), "layers.0.self_attn.qkv_proj", lambda model: model(ONE)[0]),
}


@pytest.mark.parametrize("model", FUSED)
@torch.no_grad()
def test_the_last_part_of_a_known_projection_is_the_value(model):
    make, name, run = FUSED[model]
    model = make()
    layer = model.get_submodule(name)
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    q, k, v = torch.split(weight, list(fused_parts(name, layer, model=model).values()))
    before = run(model)
    for key in (*q, *k):  # with one token nothing hangs on the query and the key
        key += torch.randn_like(key)
    torch.testing.assert_close(run(model), before)
    for value in v:
        kept = value.clone()
        value += torch.randn_like(value)
        assert (run(model) - before).abs().max() > 1e-4
        value.copy_(kept)
