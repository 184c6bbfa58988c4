"""Which modules of a model take a matrix: the projections of the weight form, the sites of the adapter form."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
from torch import nn
from transformers.pytorch_utils import Conv1D

from surm.structures.options import is_count
from surm.tuners import architectures
from surm.tuners.architectures import PARTS as PARTS
from surm.tuners.architectures import Endings
from surm.tuners.checks import POSITIONS, SITES
from surm.tuners.config import SurmConfig
from surm.tuners.patterns import FUSED_PARTS as FUSED_PARTS
from surm.tuners.patterns import Split, matching, split_rows


def default_targets(model: nn.Module) -> set[str] | str:
    """What `target_modules=None` means: the query, key and value projections, or PEFT's expression for the model type.

    Raises:
        ValueError: the model has no such layers.
    """
    kind = _model_type(model)
    known = LORA_TARGETS.get(kind) if kind not in architectures.PROJECTIONS else None
    return known if isinstance(known, str) else set(projection_names(model))


def projection_names(model: nn.Module, parts: Sequence[str] = FUSED_PARTS) -> list[str]:
    """The name endings of a model's projections, as `target_modules` takes them.

    Known are the models of `surm.tuners.architectures`, and the transformers of timm, there also after their fused
    layer was split. Of models that PEFT alone knows, q, k and v together are what it picks for LoRA, mostly without k.
    A fused layer is named whichever of q, k and v are asked for; `fused_parts` selects inside.

    Args:
        model: with or without a PEFT adapter.
        parts: which of "q", "k", "v" (query, key, value), "o" (the attention's output) and "mlp" (the linear layers of
            the feed-forward network).

    Raises:
        ValueError: an unknown part; the model has no such layer, or its parts are not known.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"parts={list(parts)} is not known: give some of {', '.join(PARTS)}.")
    kind = _model_type(model)
    names = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer) or _outputs(module)]
    if kind not in architectures.PROJECTIONS and kind in LORA_TARGETS:
        if set(parts) != set(FUSED_PARTS):
            raise ValueError(
                f"parts={list(parts)} of model type {kind!r} are not known: give {', '.join(FUSED_PARTS)} for the "
                "layers that PEFT picks for LoRA, or pass target_modules."
            )
        known = LORA_TARGETS[kind]
        if isinstance(known, str):
            return sorted(name for name in names if re.fullmatch(known, name))
        return _endings(model, names, [tuple(known)])
    table = architectures.PROJECTIONS.get(kind, architectures.TIMM_PROJECTIONS)
    return _endings(model, names, [table[part] for part in parts])


def adapter_sites(model: nn.Module, sites: str = "houlsby", position: str = "after") -> list[str]:
    """The name endings of the modules that adapters follow, as `target_modules` takes them (paper section 5.2).

    "houlsby": two in each block, behind the output projections of the attention and of the feed-forward network and
    their dropout or LayerScale, before the residual is added. "pfeiffer": the second of them alone, or, in BERT and
    RoBERTa, behind the block's last LayerNorm. Known are the models of `surm.tuners.architectures`, and timm's.

    Args:
        model: with or without a PEFT adapter.
        sites: "houlsby" or "pfeiffer".
        position: "after" the dropout, LayerScale or, in Gemma 2 and 3, normalisation of a side's output, or "before"
            it, straight behind the projection.

    Raises:
        ValueError: an unknown name; the model has no such modules, or a dropout or scale that they cannot follow.
    """
    for name, value, known in (("sites", sites, SITES), ("position", position, POSITIONS)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known: give {' or '.join(known)}.")
    table = architectures.SITES.get(_model_type(model), architectures.TIMM_SITES)
    sides = getattr(table, position)
    wanted = sides if sites == "houlsby" else [table.last or sides[1]]
    chosen = _endings(model, [name for name, _ in model.named_modules()], wanted)
    config = BaseTuner.get_model_config(model)
    for key in table.unreachable:
        if position == "after" and config.get(key) and not any(name.endswith("dropout") for name in chosen):
            raise ValueError(
                f"{type(model).__name__} applies {key}={config[key]} where no adapter can follow it: give "
                f"adapter_position='before', or a model with {key}=0."
            )
    return chosen


def _model_type(model: nn.Module) -> str:
    return str(BaseTuner.get_model_config(model).get("model_type", ""))


def _endings(model: nn.Module, names: Iterable[str], wanted: Iterable[Endings]) -> list[str]:
    """The wanted endings that names have, "#" filled in; of each group of alternatives there must be one."""
    matched: set[str] = set()
    missing: set[str] = set()
    for endings in wanted:
        group = {match for name in names for ending in endings for match in _match(ending, name)}
        matched |= group
        missing |= set() if group else set(endings)
    if missing:
        raise ValueError(
            f"Please specify `target_modules`: {type(model).__name__} of model type {_model_type(model)!r} has no "
            f"layers called {', '.join(sorted(missing))}, which are the default."
        )
    return sorted(matched)


def _match(ending: str, name: str) -> list[str]:
    return re.findall(rf"(?:^|\.)({re.escape(ending)})$".replace(r"\#", r"\d+"), name)


def input_features(module: nn.Module) -> int:
    """The width of the input of a linear layer.

    Raises:
        ValueError: it is another module.
    """
    inputs = getattr(module, "in_features", None)
    if isinstance(module, Conv1D):
        inputs = module.weight.shape[0]
    if not isinstance(inputs, int):
        raise ValueError(
            f"adapter_side='input' is for linear layers, and {type(module).__name__} is none: leave it at 'output'."
        )
    return inputs


def output_features(module: nn.Module, model: nn.Module, given: int | None) -> int | None:
    """The width of the output of a linear layer, a normalisation, a LayerScale, a dropout or an identity; else None.

    Args:
        module: the module itself, without an adapter.
        model: whose module it is; its `config.hidden_size` or timm's `embed_dim` is the width of the last two.
        given: what the user says that width is.

    Raises:
        ValueError: it has no width of its own, and neither the user nor the model tells one.
    """
    outputs = _outputs(module)
    if outputs is not None:
        return outputs
    if isinstance(module, (nn.Dropout, nn.Identity)):
        # The attribute, since GPT-2's configuration calls it `n_embd` as a dictionary.
        hidden = getattr(getattr(model, "config", None), "hidden_size", None)
        width = given or hidden or getattr(model, "embed_dim", None)
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


def fused_parts(
    name: str, layer: nn.Module, config: SurmConfig | None = None, model: nn.Module | None = None
) -> dict[str, int]:
    """The parts of a fused projection with the outputs of each, in order; nothing for a layer taken as a whole.

    What `config.fused` says, else q, k and v where they are known to be blocks of outputs, one behind the other: names
    in "qkv" with three outputs for each input (timm, ModernBERT), GPT-2's `c_attn`, and Phi-3's `qkv_proj` by the heads
    of the model's `config`. The `query_key_value` of Falcon, GPT-NeoX and BLOOM goes head by head, and is no such one.

    Args:
        name: full name of the layer.
        layer: the layer itself, without an adapter.
        config: with `fused` and `fused_parts`.
        model: whose layer it is.

    Raises:
        ValueError: the sizes given do not add up to the outputs; `fused_parts` names none of the parts.
    """
    rows = _outputs(layer)
    given: Split | None = matching(config.fused, name) if config is not None else None
    if given is None:
        parts = _known_parts(name, layer, model)
    elif rows is None:
        raise ValueError(f"fused has a split for {type(layer).__name__}, which is no linear layer: leave it out there.")
    else:
        parts = split_rows(given, rows)
    if len(parts) < 2:
        return {}
    chosen = config.fused_parts if config is not None else None
    if chosen is not None and not parts.keys() & set(chosen):
        raise ValueError(f"fused_parts={chosen} names none of the layer's parts {', '.join(parts)}: exclude the layer.")
    return parts


def _known_parts(name: str, layer: nn.Module, model: nn.Module | None) -> dict[str, int]:
    rows, last = _outputs(layer), name.rpartition(".")[-1]
    if isinstance(layer, Conv1D):
        inputs = layer.weight.shape[0]
        if last == "c_attn" and rows == 3 * inputs:
            return dict.fromkeys(FUSED_PARTS, inputs)
        return dict.fromkeys(FUSED_PARTS[1:], inputs) if last == "c_attn" and rows == 2 * inputs else {}
    if last.endswith("qkv") and rows == 3 * getattr(layer, "in_features", 0):
        return dict.fromkeys(FUSED_PARTS, rows // 3)
    if last == "qkv_proj" and model is not None and _model_type(model) in ("phi3", "phi4_multimodal"):
        heads = BaseTuner.get_model_config(model)
        q, kv = heads["num_attention_heads"], heads.get("num_key_value_heads") or heads["num_attention_heads"]
        size = heads.get("head_dim") or heads["hidden_size"] // q
        if rows == (q + 2 * kv) * size:
            return {"q": q * size, "k": kv * size, "v": kv * size}
    return {}


def projection(model: nn.Module, layer: str, part: str) -> str:
    """Which of `PARTS` a layer or a part of a fused one is, by the layer's name; nothing where no table has it."""
    if part in FUSED_PARTS:
        return part
    own = architectures.PROJECTIONS.get(_model_type(model), {})
    for table in (own, *architectures.PROJECTIONS.values(), architectures.TIMM_PROJECTIONS):
        for name, endings in table.items():
            if any(_match(ending, layer) for ending in endings):
                return name
    return ""


def head_count(model: nn.Module, layer: str) -> int | None:
    """The number of attention heads that the nearest module around a layer tells, or its `config`; else None."""
    path = layer.split(".")
    for length in reversed(range(len(path))):
        module = model.get_submodule(".".join(path[:length]))
        for owner in (module, getattr(module, "config", None)):
            for name in ("num_attention_heads", "num_heads", "n_heads"):
                heads: Any = getattr(owner, name, None)
                if is_count(heads):
                    return int(heads)
    return None


def _outputs(layer: nn.Module) -> int | None:
    outputs = getattr(layer, "nf" if isinstance(layer, Conv1D) else "out_features", None)
    return outputs if isinstance(outputs, int) else None  # backbones list the names of their stages there
