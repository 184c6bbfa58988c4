"""Which layers hold the query, key and value projections of a model."""

from collections.abc import Sequence

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

PARTS = ("q", "k", "v")

Names = tuple[str, str, str]  # how a module name ends: for the query, the key and the value

_BERT: Names = ("attention.self.query", "attention.self.key", "attention.self.value")
_VIT: Names = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_VIT_UNTIL_TRANSFORMERS_4: Names = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_CLIP: Names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_TIMM_FUSED: Names = ("attn.qkv", "attn.qkv", "attn.qkv")
_TIMM_SEPARATE: Names = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
_TIMM_SPLIT: Names = ("attn.qkv.q_proj", "attn.qkv.k_proj", "attn.qkv.v_proj")

# By `config.model_type` of transformers. timm's models have no such field; theirs are what is looked for otherwise.
_BY_MODEL_TYPE: dict[str, tuple[Names, ...]] = {
    "bert": (_BERT,),
    "roberta": (_BERT,),
    "vit": (_VIT, _VIT_UNTIL_TRANSFORMERS_4),
    "dinov2": (_VIT, _VIT_UNTIL_TRANSFORMERS_4),
    "clip": (_CLIP,),
    "clip_text_model": (_CLIP,),
    "clip_vision_model": (_CLIP,),
}
_TIMM = (_TIMM_FUSED, _TIMM_SEPARATE, _TIMM_SPLIT)


def projection_names(model: nn.Module, parts: Sequence[str] = PARTS) -> list[str]:
    """The name endings of a model's query, key and value projections, as `target_modules` takes them.

    Known are BERT, RoBERTa, ViT, DINOv2 and CLIP of transformers and the transformers of timm, there also after their
    fused layer was split. A fused layer is named whichever parts are asked for; `fused_parts` selects inside it.

    Args:
        model: with or without a PEFT adapter.
        parts: which of "q", "k" and "v".

    Raises:
        ValueError: the model has no such layer.
    """
    model_type = BaseTuner.get_model_config(model).get("model_type", "")
    candidates = _BY_MODEL_TYPE.get(model_type, _TIMM)
    wanted = sorted({names[PARTS.index(part)] for names in candidates for part in parts})
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, BaseTunerLayer))]
    found = [ending for ending in wanted if any(f".{name}".endswith(f".{ending}") for name in layers)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} of model type {model_type!r} has no layers called {', '.join(wanted)}, "
            "which are the default: pass target_modules."
        )
    return found


def fused_parts(name: str, layer: nn.Linear) -> dict[str, int]:
    """The parts of a fused query-key-value projection with the outputs of each, in the order of the weight's rows.

    A layer counts as fused when its name ends in "qkv" and it has three outputs for each input; others have no parts.
    """
    if name.endswith("qkv") and layer.out_features == 3 * layer.in_features:
        return dict.fromkeys(PARTS, layer.in_features)
    return {}
