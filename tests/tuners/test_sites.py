"""Which modules take a matrix, by model family."""

import pytest
import timm
import torch
from torch import nn
from transformers import (
    AutoModel,
    BeitConfig,
    BertConfig,
    DeiTConfig,
    Dinov2Config,
    ElectraConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SwinConfig,
    ViTConfig,
    XLMRobertaConfig,
)

from surm.models import sam
from surm.tuners import SurmLinear
from surm.tuners.targets import adapter_sites, projection_names
from tests.tuners.helpers import (
    IDS,
    IMAGES,
    TINY,
    adapt,
    adapter,
    body_in_numpy,
    net,
    sites,
    timm_vit,
    tiny_bert,
    tiny_vit,
)

# --- where ------------------------------------------------------------------------------------------------------------


def from_config(config):
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


def names(blocks, *endings):
    return {f"{blocks}.{index}.{ending}" for index in range(2) for ending in endings}


HEAD = {"num_labels": 3}
BERT_SITES = {
    ("houlsby", "after"): ("attention.output.dropout", "output.dropout"),
    ("houlsby", "before"): ("attention.output.dense", "output.dense"),
    ("pfeiffer", "after"): ("output.LayerNorm",),
    ("pfeiffer", "before"): ("output.LayerNorm",),
}
VIT = ("attention.o_proj", "mlp.fc2")
TIMM_SITES = {
    ("houlsby", "after"): ("ls1", "ls2"),
    ("houlsby", "before"): ("attn.proj", "mlp.fc2"),
    ("pfeiffer", "after"): ("ls2",),
    ("pfeiffer", "before"): ("mlp.fc2",),
}
DINOV2_SITES = {
    ("houlsby", "after"): ("layer_scale1", "layer_scale2"),
    ("houlsby", "before"): VIT,
    ("pfeiffer", "after"): ("layer_scale2",),
    ("pfeiffer", "before"): ("mlp.fc2",),
}
LLAMA = TINY | {"vocab_size": 50, "pad_token_id": 0}


def both(attention, mlp):
    """The sites of blocks where nothing is behind the projections."""
    return {
        (target, position): (attention, mlp) if target == "houlsby" else (mlp,)
        for target in ("houlsby", "pfeiffer")
        for position in ("after", "before")
    }


def behind(after, before):
    """The sites of blocks with something behind the projections."""
    sides = {"after": after, "before": before}
    return {("houlsby", place): side for place, side in sides.items()} | {
        ("pfeiffer", place): side[1:] for place, side in sides.items()
    }


LLAMA_SITES = both("self_attn.o_proj", "mlp.down_proj")
GEMMA2_SITES = behind(("post_attention_layernorm", "post_feedforward_layernorm"), ("self_attn.o_proj", "mlp.down_proj"))
GPT2_SITES = behind(("attn.resid_dropout", "mlp.dropout"), ("attn.c_proj", "mlp.c_proj"))
PHI3_SITES = behind(("resid_attn_dropout", "resid_mlp_dropout"), ("self_attn.o_proj", "mlp.down_proj"))
MODERNBERT_SITES = behind(("attn.out_drop", "mlp.Wo"), ("attn.Wo", "mlp.Wo"))
VIT_SITES = {(s, p): VIT if s == "houlsby" else VIT[1:] for s in ("houlsby", "pfeiffer") for p in ("after", "before")}
MODELS = {
    "bert": (tiny_bert, "bert.encoder.layer", BERT_SITES),
    "bert decoder": (
        lambda: from_config(BertConfig(**TINY, is_decoder=True, add_cross_attention=True)),
        "encoder.layer",
        BERT_SITES,
    ),
    "roberta": (lambda: from_config(RobertaConfig(**TINY)), "encoder.layer", BERT_SITES),
    "vit": (lambda: from_config(ViTConfig(**TINY)), "layers", VIT_SITES),
    "dinov2": (lambda: from_config(Dinov2Config(**TINY)), "encoder.layer", DINOV2_SITES),
    "xlm-roberta": (lambda: from_config(XLMRobertaConfig(**TINY)), "encoder.layer", BERT_SITES),
    "electra": (lambda: from_config(ElectraConfig(**TINY, embedding_size=24)), "encoder.layer", BERT_SITES),
    "deit": (lambda: from_config(DeiTConfig(**TINY)), "layers", VIT_SITES),
    "beit without a scale": (lambda: from_config(BeitConfig(**TINY, layer_scale_init_value=0.0)), "layers", VIT_SITES),
    "llama": (lambda: from_config(LlamaConfig(**LLAMA)), "layers", LLAMA_SITES),
    "mistral": (lambda: from_config(MistralConfig(**LLAMA, num_key_value_heads=1)), "layers", LLAMA_SITES),
    "qwen2": (lambda: from_config(Qwen2Config(**LLAMA)), "layers", LLAMA_SITES),
    "qwen3": (lambda: from_config(Qwen3Config(**LLAMA, head_dim=12)), "layers", LLAMA_SITES),
    "gemma": (lambda: from_config(GemmaConfig(**LLAMA, head_dim=12)), "layers", LLAMA_SITES),
    "gemma2": (lambda: from_config(Gemma2Config(**LLAMA, head_dim=12)), "layers", GEMMA2_SITES),
    "gemma3": (lambda: from_config(Gemma3TextConfig(**LLAMA, head_dim=12)), "layers", GEMMA2_SITES),
    "phi": (lambda: from_config(PhiConfig(**LLAMA)), "layers", both("self_attn.dense", "mlp.fc2")),
    "phi3": (lambda: from_config(Phi3Config(**LLAMA)), "layers", PHI3_SITES),
    "gpt2": (lambda: from_config(GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=2)), "h", GPT2_SITES),
    "modernbert": (lambda: from_config(ModernBertConfig(**LLAMA)), "layers", MODERNBERT_SITES),
    "sam": (lambda: sam.build(sam.TINY, 3, 64), "vision_encoder.layers", both("attn.proj", "mlp.lin2")),
    "timm": (timm_vit, "blocks", TIMM_SITES),
    "timm with LayerScale": (lambda: timm_vit(init_values=1e-2), "blocks", TIMM_SITES),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("target", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("position", ["after", "before"])
def test_adapters_follow_exactly_these_modules(model, target, position):
    make, blocks, table = MODELS[model]
    adapted = adapter(make(), target_modules=target, adapter_position=position)
    assert sites(adapted) == names(blocks, *table[target, position])
    # What is saved in place of the word finds the same modules again, and so does a second adapter.
    again = adapter(make(), target_modules=sorted(adapted.peft_config["default"].target_modules))
    assert sites(again) == sites(adapted)
    assert adapter_sites(adapted, target, position) == adapter_sites(make(), target, position)


def test_houlsby_is_the_default_and_blocks_can_be_selected():
    assert sites(adapter(tiny_vit())) == names("blocks", "ls1", "ls2")
    one = adapter(tiny_vit(), target_modules="houlsby", layers_to_transform=[1], layers_pattern="blocks")
    assert sites(one) == {"blocks.1.ls1", "blocks.1.ls2"}


def test_a_gated_feed_forward_network_is_known():
    model = adapter(from_config(Dinov2Config(**TINY, use_swiglu_ffn=True)), adapter_position="before")
    assert sites(model) == names("encoder.layer", "attention.o_proj", "mlp.down_proj")


def test_stages_of_unequal_width_are_known():
    config = SwinConfig(image_size=32, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=2)
    model = adapter(from_config(config), target_modules="pfeiffer")
    layers = {name: model.base_model.model.get_submodule(name) for name in sites(model)}
    prefix = "encoder.layers"
    assert {name: layer.in_features for name, layer in layers.items()} == {
        f"{prefix}.0.blocks.0.mlp.fc2": 8,
        f"{prefix}.1.blocks.0.mlp.fc2": 16,
        f"{prefix}.1.blocks.1.mlp.fc2": 16,
    }


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (ViTConfig(**TINY, hidden_dropout_prob=0.1), "hidden_dropout_prob=0.1"),
        (DeiTConfig(**TINY, hidden_dropout_prob=0.1), "hidden_dropout_prob=0.1"),
        (BeitConfig(**TINY), "layer_scale_init_value=0.1"),
        (PhiConfig(**TINY, resid_pdrop=0.2), "resid_pdrop=0.2"),
    ],
    ids=["vit", "deit", "beit", "phi"],
)
def test_a_dropout_or_scale_that_no_adapter_can_follow_is_refused(config, key):
    model = from_config(config)
    sentence = rf"{type(model).__name__} applies {key} where no adapter can follow it: give adapter_position='before'"
    with pytest.raises(ValueError, match=sentence) as error:
        adapter(model)
    assert "\n" not in str(error.value)
    assert len(sites(adapter(model, adapter_position="before"))) == 4


def test_an_unknown_model_or_word_is_refused_in_one_sentence():
    with pytest.raises(
        ValueError, match=r"specify `target_modules`: Net of model type 'custom' has no layers called blocks\.#\.ls1"
    ):
        adapter(net())
    with pytest.raises(ValueError, match="sites='parallel' is not known: give houlsby or pfeiffer"):
        adapter_sites(tiny_vit(), "parallel")
    with pytest.raises(ValueError, match=r"parts=.'q', 'mlp2'. is not known: give some of q, k, v, o, mlp"):
        projection_names(tiny_vit(), ["q", "mlp2"])
    with pytest.raises(ValueError, match="position='behind' is not known: give after or before"):
        adapter_sites(tiny_vit(), "houlsby", "behind")


SUBLAYERS = {  # what the sublayer's own modules make of the input that the hook sees, without surm
    tiny_bert: (
        "bert.encoder.layer.1.attention.output",
        lambda module, args: (module.dropout.base_layer(module.dense(args[0])), args[1], module.LayerNorm),
    ),
    tiny_vit: (
        "blocks.1",
        lambda module, args: (module.ls1.base_layer(module.attn(module.norm1(args[0]))), args[0], None),
    ),
}


@pytest.mark.parametrize("base", SUBLAYERS)
def test_the_adapter_comes_before_the_residual_and_the_normalisation(base):
    model = adapter(base(), init_weights=False).eval()
    name, sublayer = SUBLAYERS[base]
    module = model.base_model.model.get_submodule(name)
    seen = {}
    hook = module.register_forward_hook(lambda _, args, output: seen.update(args=args, output=output))
    model(IDS if base is tiny_bert else IMAGES)
    hook.remove()
    before, residual, norm = sublayer(module, seen["args"])
    layer = module.dropout if base is tiny_bert else module.ls1
    adapted = torch.from_numpy(
        before.detach().double().numpy() + body_in_numpy(layer, before.detach().double().numpy(), "circulant", "gelu")
    ).float()
    expected = adapted + residual
    expected = norm(expected) if norm is not None else expected + module.ls2(module.mlp(module.norm2(expected)))
    assert (adapted - before).abs().max() > 1e-3
    torch.testing.assert_close(seen["output"], expected, rtol=1e-4, atol=1e-4)


class Pair(nn.Linear):
    """A layer with a second result."""

    def forward(self, x):
        return super().forward(x), x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.rms = nn.LayerNorm(12), timm.layers.RmsNorm(12)
        self.scale = timm.layers.LayerScale(12)
        self.drop, self.pair, self.batch, self.image = nn.Dropout(), Pair(12, 5), nn.BatchNorm1d(12), nn.Conv2d(1, 1, 1)
        self.embedding = nn.Embedding(12, 12)

    def forward(self, x):
        return self.pair(self.drop(self.scale(self.rms(self.norm(x)))))


def test_normalisations_scales_and_layers_with_two_results_can_be_followed():
    torch.manual_seed(0)
    model = adapter(Twice(), target_modules=["norm", "rms", "scale", "drop", "pair"], adapter_width=12).eval()
    layers = model.base_model.model
    assert [getattr(layers, name).in_features for name in ("norm", "rms", "scale", "drop", "pair")] == [12] * 4 + [5]
    x = torch.randn(3, 12)
    with torch.no_grad():
        layers.pair.surm_adapter["default"].outer.bias += 1.0
    first, second = model(x)
    base = layers.pair.base_layer(layers.scale(layers.rms(layers.norm(x))))
    torch.testing.assert_close(first, base[0] + 1.0)
    torch.testing.assert_close(second, base[1])


@pytest.mark.parametrize(
    ("target", "error", "sentence"),
    [
        ("drop", ValueError, "Target module drop: Dropout has no width of its own and Twice .*give adapter_width"),
        ("batch", TypeError, "Target module batch of type BatchNorm1d is not supported: only linear layers"),
        ("image", TypeError, "Target module image of type Conv2d is not supported"),
        ("embedding", TypeError, "Target module embedding of type Embedding is not supported"),
    ],
)
def test_other_modules_are_refused_in_one_sentence(target, error, sentence):
    with pytest.raises(error, match=sentence) as refused:
        adapter(Twice(), target_modules=[target])
    assert "\n" not in str(refused.value)


# --- projections of the weight form -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "blocks", "o", "mlp"),
    [
        (tiny_bert, "bert.encoder.layer", "attention.output.dense", ("intermediate.dense", "output.dense")),
        (MODELS["roberta"][0], "encoder.layer", "attention.output.dense", ("intermediate.dense", "output.dense")),
        (MODELS["vit"][0], "layers", "attention.o_proj", ("mlp.fc1", "mlp.fc2")),
        (MODELS["dinov2"][0], "encoder.layer", "attention.o_proj", ("mlp.fc1", "mlp.fc2")),
        (timm_vit, "blocks", "attn.proj", ("mlp.fc1", "mlp.fc2")),
        (lambda: timm_vit(global_pool="map"), "blocks", "attn.proj", ("mlp.fc1", "mlp.fc2")),
    ],
    ids=["bert", "roberta", "vit", "dinov2", "timm", "timm with attention pooling"],
)
def test_output_and_feed_forward_projections_are_known(make, blocks, o, mlp):
    for parts, endings in ((["o"], (o,)), (["mlp"], mlp)):
        model = adapt(make(), target_modules=projection_names(make(), parts))
        found = {name for name, module in model.base_model.model.named_modules() if isinstance(module, SurmLinear)}
        assert found == names(blocks, *endings)
    model = adapt(make(), target_modules=projection_names(make(), ["q", "k", "v", "o", "mlp"]))
    fused = any(name.endswith("qkv") for name in model.peft_config["default"].target_modules)
    assert len([m for m in model.modules() if isinstance(m, SurmLinear)]) == 2 * (4 if fused else 6)
