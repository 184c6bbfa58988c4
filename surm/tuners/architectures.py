"""Where the projections and the sublayers' ends are, by `config.model_type` of transformers, and in timm."""

from typing import NamedTuple

from surm.tuners.patterns import FUSED_PARTS

PARTS = (*FUSED_PARTS, "o", "mlp")

Endings = tuple[str, ...]  # of module names; "#" stands for the index of a block

# Where a model's modules were renamed, both names stand here (ViT and its kin: the second until transformers 4).


def _attention(q: str, k: str, v: str, o: str, *mlp: str) -> dict[str, Endings]:
    return {"q": (q,), "k": (k,), "v": (v,), "o": (o,), "mlp": mlp}


_BERT = _attention(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "layer.#.intermediate.dense",
    "layer.#.output.dense",
)
_VIT: dict[str, Endings] = {
    "q": ("attention.q_proj", "attention.attention.query"),
    "k": ("attention.k_proj", "attention.attention.key"),
    "v": ("attention.v_proj", "attention.attention.value"),
    "o": ("attention.o_proj", "attention.output.dense"),
    "mlp": ("mlp.fc1", "mlp.fc2", "layer.#.intermediate.dense", "layer.#.output.dense"),
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED: Endings = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_DINOV2 = _VIT | {"mlp": (*_VIT["mlp"], *_GATED, "mlp.weights_in", "mlp.weights_out")}
_CLIP = _attention(*_QKV, "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
_LLAMA = _attention(*_QKV, "self_attn.o_proj", *_GATED)
_PHI = _attention(*_QKV, "self_attn.dense", "mlp.fc1", "mlp.fc2")
_PHI3 = _attention(*["self_attn.qkv_proj"] * 3, "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_GPT2 = _attention(*["attn.c_attn"] * 3, "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_MODERNBERT = _attention(*["attn.Wqkv"] * 3, "attn.Wo", "mlp.Wi", "mlp.Wo")

# The decoder of masks has layers of these names, too, but for the fused one.
_SAM: dict[str, Endings] = {
    **{part: ("attn.qkv", f"attn.qkv.{part}_proj") for part in FUSED_PARTS},
    "o": ("vision_encoder.layers.#.attn.proj",),
    "mlp": ("vision_encoder.layers.#.mlp.lin1", "vision_encoder.layers.#.mlp.lin2"),
}

PROJECTIONS: dict[str, dict[str, Endings]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
    "modernbert": _MODERNBERT,
    **dict.fromkeys(("vit", "deit", "beit", "swin"), _VIT),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _DINOV2),
    **dict.fromkeys(("clip", "clip_text_model", "clip_vision_model"), _CLIP),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
    "phi": _PHI,
    "phi3": _PHI3,
    "gpt2": _GPT2,
    "sam": _SAM,
}
TIMM_PROJECTIONS: dict[str, Endings] = {
    "q": ("attn.qkv", "attn.q_proj", "attn.qkv.q_proj"),
    "k": ("attn.qkv", "attn.k_proj", "attn.qkv.k_proj"),
    "v": ("attn.qkv", "attn.v_proj", "attn.qkv.v_proj"),
    "o": ("attn.proj",),
    # With the block's index, since a pooling layer has an MLP of the same name.
    "mlp": ("blocks.#.mlp.fc1", "blocks.#.mlp.fc1_g", "blocks.#.mlp.fc1_x", "blocks.#.mlp.fc2"),
}


class Sites(NamedTuple):
    """Where adapters go, by `position`: what ends the attention's side of a block, and what the feed-forward one's."""

    after: tuple[Endings, Endings]
    before: tuple[Endings, Endings]
    last: Endings = ()  # what ends a block whose normalisation follows the residual
    unreachable: tuple[str, ...] = ()  # the config's numbers that, not zero, put what no module holds behind `after`


def _sites(attention: str, mlp: str, *unreachable: str) -> Sites:
    """Where nothing, or no module that an adapter could follow, is behind the projections."""
    return Sites(((attention,), (mlp,)), ((attention,), (mlp,)), unreachable=unreachable)


_BERT_SITES = Sites(
    after=(("layer.#.attention.output.dropout",), ("layer.#.output.dropout",)),
    before=(("layer.#.attention.output.dense",), ("layer.#.output.dense",)),
    last=("layer.#.output.LayerNorm",),
)
_VIT_SITES = Sites(
    after=(
        ("layers.#.attention.o_proj", "layer.#.attention.output.dropout"),
        ("layers.#.mlp.fc2", "layer.#.output.dropout"),
    ),
    before=(
        ("layers.#.attention.o_proj", "layer.#.attention.output.dense"),
        ("layers.#.mlp.fc2", "layer.#.output.dense"),
    ),
    unreachable=("hidden_dropout_prob",),
)
_DINOV2_SITES = Sites(
    after=(("layer.#.layer_scale1",), ("layer.#.layer_scale2",)),
    before=(
        ("layer.#.attention.o_proj", "layer.#.attention.output.dense"),
        ("layer.#.mlp.fc2", "layer.#.mlp.down_proj", "layer.#.mlp.weights_out"),
    ),
)
_LLAMA_SITES = _sites("layers.#.self_attn.o_proj", "layers.#.mlp.down_proj")
_GEMMA2_SITES = _LLAMA_SITES._replace(
    after=(("layers.#.post_attention_layernorm",), ("layers.#.post_feedforward_layernorm",))
)

SITES: dict[str, Sites] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT_SITES),
    "modernbert": Sites(
        after=(("layers.#.attn.out_drop",), ("layers.#.mlp.Wo",)),
        before=(("layers.#.attn.Wo",), ("layers.#.mlp.Wo",)),
    ),
    **dict.fromkeys(("vit", "deit"), _VIT_SITES),
    "beit": _VIT_SITES._replace(unreachable=("hidden_dropout_prob", "layer_scale_init_value")),
    "swin": _sites("blocks.#.attention.o_proj", "blocks.#.mlp.fc2", "hidden_dropout_prob"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _DINOV2_SITES),
    **dict.fromkeys(
        ("clip", "clip_text_model", "clip_vision_model"), _sites("layers.#.self_attn.out_proj", "layers.#.mlp.fc2")
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA_SITES),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA2_SITES),
    "sam": _sites("vision_encoder.layers.#.attn.proj", "vision_encoder.layers.#.mlp.lin2"),
    "phi": _sites("layers.#.self_attn.dense", "layers.#.mlp.fc2", "resid_pdrop"),
    "phi3": _LLAMA_SITES._replace(after=(("layers.#.resid_attn_dropout",), ("layers.#.resid_mlp_dropout",))),
    "gpt2": Sites(
        after=(("h.#.attn.resid_dropout",), ("h.#.mlp.dropout",)),
        before=(("h.#.attn.c_proj",), ("h.#.mlp.c_proj",)),
    ),
}
TIMM_SITES = Sites(
    after=(("blocks.#.ls1",), ("blocks.#.ls2",)),  # LayerScale, or what stands in its place
    before=(("blocks.#.attn.proj",), ("blocks.#.mlp.fc2",)),
)
