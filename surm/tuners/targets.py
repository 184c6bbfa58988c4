"""Which modules of a model take a matrix: the projections of the weight form, the sites of the adapter form."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

FUSED_PARTS = ("q", "k", "v")  # of a fused projection, in the order of the weight's rows
PARTS = (*FUSED_PARTS, "o", "mlp")
SITES = ("houlsby", "pfeiffer")
POSITIONS = ("after", "before")

Endings = tuple[str, ...]  # of module names; "#" stands for the index of a block

# By `config.model_type` of transformers. timm's models have no such field; theirs are what is looked for otherwise.
# Where a model's modules were renamed, both names stand here (ViT, DINOv2: the second until transformers 4).
_BERT: dict[str, Endings] = {
    "q": ("attention.self.query",),
    "k": ("attention.self.key",),
    "v": ("attention.self.value",),
    "o": ("attention.output.dense",),
    "mlp": ("layer.#.intermediate.dense", "layer.#.output.dense"),
}
_VIT: dict[str, Endings] = {
    "q": ("attention.q_proj", "attention.attention.query"),
    "k": ("attention.k_proj", "attention.attention.key"),
    "v": ("attention.v_proj", "attention.attention.value"),
    "o": ("attention.o_proj", "attention.output.dense"),
    "mlp": ("mlp.fc1", "mlp.fc2", "layer.#.intermediate.dense", "layer.#.output.dense"),
}
_GATED: Endings = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.weights_in", "mlp.weights_out")
_CLIP: dict[str, Endings] = {
    "q": ("self_attn.q_proj",),
    "k": ("self_attn.k_proj",),
    "v": ("self_attn.v_proj",),
    "o": ("self_attn.out_proj",),
    "mlp": ("mlp.fc1", "mlp.fc2"),
}
_PROJECTIONS: dict[str, dict[str, Endings]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "vit": _VIT,
    "dinov2": _VIT | {"mlp": (*_VIT["mlp"], *_GATED)},
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "clip_vision_model": _CLIP,
}
_TIMM_PROJECTIONS: dict[str, Endings] = {
    "q": ("attn.qkv", "attn.q_proj", "attn.qkv.q_proj"),
    "k": ("attn.qkv", "attn.k_proj", "attn.qkv.k_proj"),
    "v": ("attn.qkv", "attn.v_proj", "attn.qkv.v_proj"),
    "o": ("attn.proj",),
    # With the block's index, since a pooling layer has an MLP of the same name.
    "mlp": ("blocks.#.mlp.fc1", "blocks.#.mlp.fc1_g", "blocks.#.mlp.fc1_x", "blocks.#.mlp.fc2"),
}


class _Sites(NamedTuple):
    """Where adapters go, by `position`: what ends the attention's side of a block, and what the feed-forward one's."""

    after: tuple[Endings, Endings]
    before: tuple[Endings, Endings]
    last: Endings = ()  # what ends a block whose normalisation follows the residual


_BERT_SITES = _Sites(
    after=(("layer.#.attention.output.dropout",), ("layer.#.output.dropout",)),
    before=(("layer.#.attention.output.dense",), ("layer.#.output.dense",)),
    last=("layer.#.output.LayerNorm",),
)
_CLIP_SIDES: tuple[Endings, Endings] = (("layers.#.self_attn.out_proj",), ("layers.#.mlp.fc2",))
_CLIP_SITES = _Sites(after=_CLIP_SIDES, before=_CLIP_SIDES)  # there is no hidden dropout
_SITES: dict[str, _Sites] = {
    "bert": _BERT_SITES,
    "roberta": _BERT_SITES,
    "vit": _Sites(
        after=(
            ("layers.#.attention.o_proj", "layer.#.attention.output.dropout"),
            ("layers.#.mlp.fc2", "layer.#.output.dropout"),
        ),
        before=(
            ("layers.#.attention.o_proj", "layer.#.attention.output.dense"),
            ("layers.#.mlp.fc2", "layer.#.output.dense"),
        ),
    ),
    "dinov2": _Sites(
        after=(("layer.#.layer_scale1",), ("layer.#.layer_scale2",)),
        before=(
            ("layer.#.attention.o_proj", "layer.#.attention.output.dense"),
            ("layer.#.mlp.fc2", "layer.#.mlp.down_proj", "layer.#.mlp.weights_out"),
        ),
    ),
    "clip": _CLIP_SITES,
    "clip_text_model": _CLIP_SITES,
    "clip_vision_model": _CLIP_SITES,
}
_TIMM_SITES = _Sites(
    after=(("blocks.#.ls1",), ("blocks.#.ls2",)),  # LayerScale, or what stands in its place
    before=(("blocks.#.attn.proj",), ("blocks.#.mlp.fc2",)),
)


def projection_names(model: nn.Module, parts: Sequence[str] = FUSED_PARTS) -> list[str]:
    """The name endings of a model's projections, as `target_modules` takes them.

    Known are BERT, RoBERTa, ViT, DINOv2 and CLIP of transformers and the transformers of timm, there also after their
    fused layer was split. A fused layer is named whichever of q, k and v are asked for; `fused_parts` selects inside.

    Args:
        model: with or without a PEFT adapter.
        parts: which of "q", "k", "v" (query, key, value), "o" (the attention's output) and "mlp" (the linear layers of
            the feed-forward network).

    Raises:
        ValueError: an unknown part; the model has no such layer.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"parts={list(parts)} is not known: give some of {', '.join(PARTS)}.")
    table = _PROJECTIONS.get(_model_type(model), _TIMM_PROJECTIONS)
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, BaseTunerLayer))]
    return _found(model, names, [table[part] for part in parts])


def adapter_sites(model: nn.Module, sites: str = "houlsby", position: str = "after") -> list[str]:
    """The name endings of the modules that adapters follow, as `target_modules` takes them (paper section 5.2).

    "houlsby": two in each block, behind the output projections of the attention and of the feed-forward network and
    their dropout or LayerScale, before the residual is added. "pfeiffer": the second of them alone, or, in BERT and
    RoBERTa, behind the block's last LayerNorm. Known are the models of `projection_names`.

    Args:
        model: with or without a PEFT adapter.
        sites: "houlsby" or "pfeiffer".
        position: "after" the dropout or LayerScale, or "before" it, straight behind the projection.

    Raises:
        ValueError: an unknown name; the model has no such modules, or one dropout for both sides of a block.
    """
    for name, value, known in (("sites", sites, SITES), ("position", position, POSITIONS)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known: give {' or '.join(known)}.")
    table = _SITES.get(_model_type(model), _TIMM_SITES)
    sides = getattr(table, position)
    wanted = sides if sites == "houlsby" else [table.last or sides[1]]
    found = _found(model, [name for name, _ in model.named_modules()], wanted)
    shared = BaseTuner.get_model_config(model).get("hidden_dropout_prob") if _model_type(model) == "vit" else 0
    if position == "after" and shared and not any(name.endswith("dropout") for name in found):
        raise ValueError(
            f"{type(model).__name__} has one dropout for both sides of a block, so that no adapter can follow it: give "
            "adapter_position='before', or a model with hidden_dropout_prob=0."
        )
    return found


def _model_type(model: nn.Module) -> str:
    return str(BaseTuner.get_model_config(model).get("model_type", ""))


def _found(model: nn.Module, names: Iterable[str], wanted: Iterable[Endings]) -> list[str]:
    """The wanted endings that names have, "#" filled in; of each group of alternatives there must be one."""
    found: set[str] = set()
    missing: set[str] = set()
    for endings in wanted:
        group = {match for name in names for ending in endings for match in _match(ending, name)}
        found |= group
        missing |= set() if group else set(endings)
    if missing:
        raise ValueError(
            f"{type(model).__name__} of model type {_model_type(model)!r} has no layers called "
            f"{', '.join(sorted(missing))}, which are the default: pass target_modules."
        )
    return sorted(found)


def _match(ending: str, name: str) -> list[str]:
    return re.findall(rf"(?:^|\.)({re.escape(ending)})$".replace(r"\#", r"\d+"), name)


def output_features(module: nn.Module, model: nn.Module, given: int | None) -> int | None:
    """The width of the output of a linear layer, a normalisation, a LayerScale, a dropout or an identity; else None.

    Args:
        module: the module itself, without an adapter.
        model: whose module it is; its `config.hidden_size` or timm's `embed_dim` is the width of the last two.
        given: what the user says that width is.

    Raises:
        ValueError: it has no width of its own, and neither the user nor the model tells one.
    """
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, (nn.Dropout, nn.Identity)):
        width = given or BaseTuner.get_model_config(model).get("hidden_size") or getattr(model, "embed_dim", None)
        if not isinstance(width, int):
            raise ValueError(
                f"{type(module).__name__} has no width of its own and {type(model).__name__} does not tell one: "
                "give adapter_width."
            )
        return width
    if "2d" in type(module).__name__:  # the features of an image are not its last dimension
        return None
    shape: Sequence[int] | None = getattr(module, "normalized_shape", None)
    if shape is not None:
        return shape[-1]
    sizes = [parameter.shape for parameter in module.parameters()]
    is_scale = len(sizes) == 1 and len(sizes[0]) == 1 and not list(module.buffers())
    return sizes[0].numel() if is_scale else None


def fused_parts(name: str, layer: nn.Linear) -> dict[str, int]:
    """The parts of a fused query-key-value projection with the outputs of each, in the order of the weight's rows.

    A layer counts as fused when its name ends in "qkv" and it has three outputs for each input; others have no parts.
    """
    if name.endswith("qkv") and layer.out_features == 3 * layer.in_features:
        return dict.fromkeys(FUSED_PARTS, layer.in_features)
    return {}
