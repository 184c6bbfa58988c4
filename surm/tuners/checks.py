"""The checks of a configuration that need no model."""

import json
import math
import re
from typing import Any

from surm.structures import structure_class
from surm.structures.backends import BACKENDS
from surm.structures.hypercomplex import Hypercomplex
from surm.structures.options import Option, count, is_count
from surm.tuners.patterns import FUSED_PARTS, check_patterns, part_names
from surm.tuners.saving import OLD_PEFT

Configuration = Any  # a SurmConfig, whose file imports this one

FORMS = ("weight", "adapter")
SITES = ("houlsby", "pfeiffer")
POSITIONS = ("after", "before")
SIDES = ("output", "input")
BIASES = ("none", "all", "surm_only")
ACTIVATIONS = ("gelu", "silu", "tanh", "identity")
WEIGHT_FORM_ONLY = ("alpha", "alpha_pattern", "fused", "fused_parts", "keep_base_weight")
ADAPTERS: dict[str, dict[str, Option]] = {
    "bottleneck": {"size": count(16)},
    "compacter": {"size": count(None), **Hypercomplex.option_rules},
}
"""What structured adapters are compared with, and their options: two matrices with an activation, so no structures."""


def check(config: Configuration) -> None:
    """Raises ValueError or TypeError for a value that is impossible whatever the model."""
    if config.form not in FORMS:
        raise ValueError(f"form={config.form!r} is not available: give {' or '.join(FORMS)}.")
    _check_structures(config)
    _check_training(config)
    _check_adapter(config)
    _check_targets(config)
    _check_fused(config)


def family(value: Any) -> tuple[Any, Any]:
    """Structure and options that a value of `structure_pattern` stands for."""
    return (value["structure"], value.get("structure_options")) if isinstance(value, dict) else (value, None)


def as_names(field: str, value: Any) -> set[str] | str | None:
    """As in PEFT's own configurations, a list of names as a set; a string is a regular expression."""
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{field}={value!r} is no regular expression of module names ({error}).") from None
        return value
    if value is not None and not _is_names(value):
        raise TypeError(f"{field}={value!r} is no selection of modules: give a list of names or a regular expression.")
    return None if value is None else set(value)


def as_json(field: str, value: Any) -> Any:
    """The value as it will be read from a saved configuration, for instance with lists in place of tuples."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(f"{field}={value!r} holds a value that JSON does not have ({error}).") from None


def _check_structures(config: Configuration) -> None:
    if not isinstance(config.init_weights, bool) and config.init_weights != "authors":
        raise ValueError(f"init_weights={config.init_weights!r} is not known: give True, False or 'authors'.")
    _check_structure(config, config.structure, config.structure_options)
    check_patterns("structure_pattern", config.structure_pattern)
    for key, value in (config.structure_pattern or {}).items():
        if isinstance(value, dict) and not {"structure"} <= value.keys() <= {"structure", "structure_options"}:
            raise ValueError(
                f"structure_pattern: {value!r} for {key!r} is not possible: give a name, or a dictionary of "
                "structure and, if need be, structure_options."
            )
        if value is not None:
            _check_structure(config, *family(value))


def _check_structure(config: Configuration, structure: Any, structure_options: Any) -> None:
    if not isinstance(structure, str):
        raise TypeError(f"structure={structure!r} is not a name: give one such as 'circulant'.")
    known = None if structure in ADAPTERS else structure_class(structure)
    if structure_options is not None and not isinstance(structure_options, dict):
        raise TypeError(f"structure_options={structure_options!r} is not a dictionary of options.")
    options = structure_options or {}
    if known is None:
        _check_compared(config, structure, options)
        return
    if known.needs_weight and config.form == "adapter":
        raise ValueError(
            f"structure={structure!r} is made from the weight that it updates, and form='adapter' has none: give "
            "form='weight'."
        )
    known.check_start(config.init_weights)
    known.check_without_size(**options)  # whether they fit a layer's sizes is checked with the layer


def _check_compared(config: Configuration, adapter: str, options: dict[str, Any]) -> None:
    """Of an adapter that structured ones are compared with."""
    if config.form != "adapter":
        raise ValueError(
            f"structure={adapter!r} is no update of a weight, as it holds an activation: give form='adapter'."
        )
    rules = ADAPTERS[adapter]
    for name, value in options.items():
        if name not in rules or not (value is None or rules[name].accepts(value)):
            raise ValueError(
                f"{adapter}: structure_options={options!r} is not possible; give {' or '.join(rules)}, an integer of "
                "at least 1."
            )
    if config.init_weights == "authors":
        raise ValueError(f"init_weights='authors' is not possible: the authors' code has no {adapter}.")


def _check_training(config: Configuration) -> None:
    check_patterns("alpha_pattern", config.alpha_pattern)
    for alpha in (config.alpha, *(config.alpha_pattern or {}).values()):
        if not _is_number(alpha) or not math.isfinite(alpha):
            raise ValueError(f"alpha={alpha!r} is not a finite number: give a factor such as alpha=1.0.")
    if not _is_number(config.dropout) or not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout!r} is not a probability of at least 0 and below 1.")
    if config.bias not in BIASES:
        raise ValueError(f"bias={config.bias!r} is not known: give one of {', '.join(BIASES)}.")
    if config.bias != "none" and OLD_PEFT:
        raise ValueError(
            f"bias={config.bias!r} needs peft >= 0.21, since older ones do not save the biases: update peft, or leave "
            "bias at 'none'."
        )
    if config.backend not in BACKENDS:
        raise ValueError(f"backend={config.backend!r} is not known: give one of {', '.join(BACKENDS)}.")
    for name in ("inference_mode", "ensure_weight_tying", "keep_base_weight"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name}={getattr(config, name)!r} is neither True nor False.")
    tokens = config.trainable_token_indices
    rows = list(tokens.values()) if isinstance(tokens, dict) else [tokens]
    if tokens is not None and not all(isinstance(row, list) and all(map(_is_index, row)) for row in rows):
        raise ValueError(
            f"trainable_token_indices={tokens!r} is no selection of tokens: give a list of integers of at least 0, "
            "or a dictionary of such lists by layer name."
        )


def _check_adapter(config: Configuration) -> None:
    if config.form == "weight":
        fields = config.__dataclass_fields__
        for name in (name for name in fields if name.startswith("adapter_")):
            if getattr(config, name) != fields[name].default:
                raise ValueError(f"{name}={getattr(config, name)!r} is used in adapter form only: give form='adapter'.")
        if config.target_modules in SITES:
            raise ValueError(f"target_modules={config.target_modules!r} is for adapters: give form='adapter'.")
        return
    for name in WEIGHT_FORM_ONLY:
        neutral = config.__dataclass_fields__[name].default
        if getattr(config, name) != neutral:
            raise ValueError(f"{name}={getattr(config, name)!r} is used in weight form only: leave it at {neutral}.")
    if config.backend == "fused":
        raise ValueError("backend='fused' adds to a weight, and form='adapter' has none: give auto, fft or dense.")
    if not isinstance(config.adapter_bias, bool):
        raise ValueError(f"adapter_bias={config.adapter_bias!r} is neither True nor False.")
    if config.adapter_activation not in ACTIVATIONS:
        raise ValueError(
            f"adapter_activation={config.adapter_activation!r} is not possible: give {', '.join(ACTIVATIONS)}, which "
            "are zero at zero with a slope, since an adapter starts there and without one, as in relu, never moves."
        )
    if config.adapter_position not in POSITIONS:
        raise ValueError(f"adapter_position={config.adapter_position!r} is not known: give {' or '.join(POSITIONS)}.")
    if config.adapter_side not in SIDES:
        raise ValueError(f"adapter_side={config.adapter_side!r} is not known: give {' or '.join(SIDES)}.")
    if config.adapter_width is not None and not is_count(config.adapter_width):
        raise ValueError(f"adapter_width={config.adapter_width!r} is no width: give an integer of at least 1.")


def _check_targets(config: Configuration) -> None:
    if config.modules_to_save is not None and not _is_names(config.modules_to_save):
        raise TypeError(f"modules_to_save={config.modules_to_save!r} is no list of names: give ['classifier'].")
    blocks = config.layers_to_transform
    if blocks is not None and not all(map(_is_index, blocks if isinstance(blocks, list) else [blocks])):
        raise ValueError(f"layers_to_transform={blocks!r} is no block index: give integers of at least 0.")
    if isinstance(config.target_modules, str) and config.target_modules not in SITES:
        for name in ("layers_to_transform", "layers_pattern"):
            if getattr(config, name) is not None:
                raise ValueError(f"{name} cannot be used when target_modules is a str: give a list of names.")
    if config.layers_pattern is not None and config.layers_to_transform is None:
        raise ValueError("layers_pattern is used with layers_to_transform only: give that too.")


def _check_fused(config: Configuration) -> None:
    if config.fused_parts is None:
        return
    splits = (config.fused or {}).values()
    known = dict.fromkeys([*FUSED_PARTS, *(part for split in splits for part in part_names(split))])
    parts = config.fused_parts if isinstance(config.fused_parts, list) else []
    if not parts or parts != [part for part in known if part in parts]:
        raise ValueError(
            f"fused_parts={config.fused_parts!r} is not a selection of {', '.join(known)}: give at least one, each "
            "once and in this order, or None for all."
        )


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple, set)) and all(isinstance(name, str) for name in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
