"""What a user can set, and the checks of it."""

import copy
import dataclasses
import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from peft import LoraConfig, PeftConfig
from peft.utils import PeftType

from surm.structures import Structure, structure_class
from surm.structures.backends import BACKENDS
from surm.structures.hypercomplex import Hypercomplex
from surm.structures.options import Option, count, is_count
from surm.tuners.patterns import FUSED_PARTS, as_splits, check_patterns, matching, part_names
from surm.tuners.saving import OLD_PEFT, note_import

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

IN_PLACE_OF_LORAS = {
    "r": "give the size in structure_options, such as {'terms': 4}, or structure='low_rank' with {'rank': 8}",
    "lora_alpha": "give alpha, the factor itself, which LoRA has as lora_alpha / r",
    "lora_dropout": "give dropout",
    "lora_bias": "give bias='surm_only' to train the biases of the adapted layers",
    "init_lora_weights": "give init_weights",
    "rank_pattern": "give structure_pattern",
    "use_rslora": "give alpha, the factor itself",
    "fan_in_fan_out": "leave it out, as the layer tells how its weight is stored",
    "target_parameters": "name linear layers in target_modules",
    "loftq_config": "leave it out: a quantised model is adapted as it is",
}
OTHERWISE = "leave it out, or use LoraConfig"

Config = TypeVar("Config")


def _refuses_lora_options(config: type[Config]) -> type[Config]:
    """Let a configuration's `__init__` say in one sentence what takes the place of an option of LoRA's.

    Other unknown names keep Python's own TypeError, by which PEFT knows configurations of a newer version.
    """
    init = config.__init__
    own = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    refused = {field.name for field in dataclasses.fields(LoraConfig)} | IN_PLACE_OF_LORAS.keys()

    @functools.wraps(init)
    def checked(self: Config, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name in refused - own:
                raise TypeError(
                    f"{name}={kwargs[name]!r} is an option of LoRA that SURM does not have: "
                    f"{IN_PLACE_OF_LORAS.get(name, OTHERWISE)}."
                )
        init(self, *args, **kwargs)

    config.__init__ = checked  # type: ignore[method-assign,assignment]
    return config


@_refuses_lora_options
@dataclass
class SurmConfig(PeftConfig):
    """Configuration of a structured matrix S of the family `structure`, in one of two forms.

    Weight form: W x becomes W x + alpha S x (paper section 4: S takes the place of LoRA's B A). Adapter form: a
    module's output X becomes X + act(S X) + b (paper section 5.2), or X + up act(down X) with the classic bottleneck
    or Compacter.
    Values are JSON values: a saved configuration loads equal. In the patterns and in `fused` a key is the ending of
    module names, or a regular expression of one; where several match, the longest counts.

    Args:
        structure: a name of `surm.structures.STRUCTURES`, several joined by "+" for their sum, or, in adapter form,
            "bottleneck" or "compacter".
        structure_options: the family's options, such as {"terms": 4}; what is missing keeps its default. The
            bottleneck's is {"size": 16}; Compacter's are size, by default a sixteenth of the width, terms and rank.
        form: "weight", an update beside a layer's weight; "adapter", a matrix and an activation behind a module.
        structure_pattern: by module name, a structure in place of `structure`, with its default options, or
            {"structure": ..., "structure_options": {...}}, or None to leave the module out. A part of a fused
            projection has its own name behind the module's, such as "qkv.v".
        target_modules: name endings or a regular expression of the layers to adapt, or "all-linear"; None picks the
            query, key and value projections of models that `surm.tuners.targets` knows, or PEFT's layers for LoRA. In
            adapter form also "houlsby", which None means, and "pfeiffer": `surm.tuners.targets.adapter_sites`.
        exclude_modules: name endings or a regular expression of layers to leave out.
        layers_to_transform: the indices of the only blocks to adapt; needs `target_modules` as a list.
        layers_pattern: name of the list of blocks that the indices count in.
        modules_to_save: further modules that are trained and saved whole, such as the task head.
        trainable_token_indices: rows of the embedding that are trained and saved too, or such rows by layer name.
        ensure_weight_tying: whether what is tied in the model stays tied in `modules_to_save` and trained tokens.
        alpha: factor of the update, in weight form.
        alpha_pattern: by module name, a factor in place of `alpha`.
        dropout: probability, in [0, 1), of dropping an input of the update; in adapter form, of dropping an output of
            the activation.
        bias: which biases of the model are trained: "none", "all", or "surm_only" for those of the adapted layers.
        init_weights: True: the update is exactly zero at the start; False: it is random; "authors": zero, at the scales
            of the authors' code.
        fused: by module name, how the outputs of a fused projection are split into parts, each with a matrix of its
            own: a number of equal parts (1: the layer as a whole), their sizes in order, or {name: size} in order;
            three parts without names are "q", "k" and "v", others "0", "1", ... Layers that no key matches are split
            where the blocks are known: `surm.tuners.targets.fused_parts`.
        fused_parts: which parts of fused projections to adapt, None for all; other layers ignore it.
        keep_base_weight: whether merging keeps a copy of the weight, which unmerging restores bit for bit; costs its
            memory while merged.
        backend: how a product with S is computed: "fused" adds S to a frozen weight for one product with both, where
            that is possible; "dense" and "fft" multiply by S apart; "auto" takes what costs least (docs/speed.md).
        adapter_bias: whether an adapter has a bias b (bottleneck, Compacter: one behind each of the two matrices).
        adapter_activation: "gelu", "silu", "tanh" or "identity".
        adapter_position: "after" or "before" the hidden dropout or LayerScale, for "houlsby" and "pfeiffer".
        adapter_side: "output": an adapter takes a module's output X; "input": a linear layer's input, which it changes
            before the layer sees it, as in W (X + act(S X) + b).
        adapter_width: features of adapted modules that have no width of their own, such as a dropout; None: as the
            model's `config.hidden_size` or `embed_dim` says.
        shared_order: the matrices that share tensors, in the order of their indices; filled in when a model is adapted.

    Raises:
        ValueError, TypeError: one sentence, for a value that is impossible whatever the model.
    """

    structure: str = field(default="circulant", metadata={"help": "Family of the update, or several joined by '+'."})
    structure_options: dict[str, Any] | None = field(default=None, metadata={"help": "Options of the family."})
    structure_pattern: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Structures of single modules or parts, by name: a name, or with structure_options; None: none."
        },
    )
    form: str = field(
        default="weight", metadata={"help": "'weight': beside a layer's weight; 'adapter': behind a module."}
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "Names or regular expression of the layers to adapt, 'houlsby', 'pfeiffer', None: default."},
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names or regular expression of the layers to leave out."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the blocks to adapt; needs target_modules as a list."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of blocks that layers_to_transform counts in."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules that are trained and saved whole."}
    )
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "Rows of the embedding to train and save, or such rows by layer name."}
    )
    ensure_weight_tying: bool = field(
        default=False, metadata={"help": "Whether tied layers stay tied in modules_to_save and trained tokens."}
    )
    alpha: float = field(default=1.0, metadata={"help": "Factor of the update, in weight form."})
    alpha_pattern: dict[str, float] | None = field(
        default=None, metadata={"help": "Factors of single modules, by name."}
    )
    dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the input of the update, or on an adapter's activation."}
    )
    bias: str = field(default="none", metadata={"help": "Biases to train: 'none', 'all' or 'surm_only'."})
    init_weights: bool | str = field(
        default=True, metadata={"help": "True: zero update at the start; False: random; 'authors': zero, their scales."}
    )
    fused: dict[str, Any] | None = field(
        default=None, metadata={"help": "Parts of fused projections, by name: their number, sizes, or sizes by name."}
    )
    fused_parts: list[str] | None = field(
        default=None, metadata={"help": "Which parts of fused projections to adapt, such as 'q'; None: all."}
    )
    keep_base_weight: bool = field(
        default=False, metadata={"help": "Whether merging keeps the weight, to restore it bit for bit."}
    )
    backend: str = field(
        default="auto", metadata={"help": "How products are computed: 'auto', 'fused', 'fft' or 'dense'."}
    )
    adapter_bias: bool = field(default=True, metadata={"help": "Whether an adapter has a bias."})
    adapter_activation: str = field(
        default="gelu", metadata={"help": "Behind an adapter's matrix: gelu, silu, tanh or identity."}
    )
    adapter_position: str = field(
        default="after", metadata={"help": "'after' or 'before' the hidden dropout or LayerScale."}
    )
    adapter_side: str = field(
        default="output", metadata={"help": "Which an adapter changes: a module's 'output' or a layer's 'input'."}
    )
    adapter_width: int | None = field(
        default=None, metadata={"help": "Features of adapted modules that have no width of their own."}
    )
    shared_order: list[str] | None = field(
        default=None, metadata={"help": "Matrices that share tensors, in their order; filled in on adapting a model."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType("SURM")
        self.target_modules = _as_names("target_modules", self.target_modules)
        self.exclude_modules = _as_names("exclude_modules", self.exclude_modules)
        for name in ("structure_options", "structure_pattern", "modules_to_save", "fused_parts"):
            setattr(self, name, _as_json(name, getattr(self, name)))
        self.fused = as_splits(self.fused)
        _check(self)

    was_read = False  # from a file; no annotation, since it is no field

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As in PEFT; the tuner knows such a configuration, for which weights are mostly loaded next."""
        config: Self = super().from_pretrained(*args, **kwargs)
        config.was_read = True
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As in PEFT; a model card in the folder then says that `surm` is imported before the adapter is loaded."""
        super().save_pretrained(save_directory, **kwargs)
        note_import(Path(save_directory))

    def structures(self) -> list[type[Structure]]:
        """The classes of structures that modules may get; of the bottleneck none, of Compacter that of its matrices."""
        others = [value for value in (self.structure_pattern or {}).values() if value is not None]
        names = [self.structure, *(_family(value)[0] for value in others)]
        own = {"compacter": [Hypercomplex], "bottleneck": []}
        return [kind for name in names for kind in (own[name] if name in own else [structure_class(name)])]

    def leaves_out(self, name: str) -> bool:
        """Whether `structure_pattern` has None for the module, or the part of one, of this full name."""
        return matching(self.structure_pattern, name, missing="") is None

    def for_parts(self, name: str, parts: Sequence[str]) -> dict[str, Self | None]:
        """By part of the fused module of this full name, what the patterns say of it alone; None: it has no structure.

        Raises:
            ValueError: all parts are left out.
        """
        found: dict[str, Self | None] = {}
        chosen = [part for part in parts if part in (self.fused_parts or parts)] or parts
        for part in chosen:
            full = f"{name}.{part}"
            if matching(self.structure_pattern, full, missing="") != "":
                found[part] = None if self.leaves_out(full) else self.for_module(full)
        if chosen and all(found.get(part, self) is None for part in chosen):
            raise ValueError("structure_pattern leaves out all of its parts: give None for the module itself.")
        return found

    def for_module(self, name: str) -> Self:
        """The configuration of the module of this full name: without patterns, and self where none matches."""
        structure, alpha = matching(self.structure_pattern, name), matching(self.alpha_pattern, name)
        if structure is None and alpha is None:
            return self
        config = copy.copy(self)
        config.structure_pattern = config.alpha_pattern = None
        if structure is not None:
            config.structure, config.structure_options = _family(structure)
        if alpha is not None:
            config.alpha = alpha
        return config


def _check(config: SurmConfig) -> None:
    """Raises ValueError or TypeError for a value that is impossible whatever the model."""
    if config.form not in FORMS:
        raise ValueError(f"form={config.form!r} is not available: give {' or '.join(FORMS)}.")
    _check_structures(config)
    _check_training(config)
    _check_adapter(config)
    _check_targets(config)
    _check_fused(config)


def _family(value: Any) -> tuple[Any, Any]:
    """Structure and options that a value of `structure_pattern` stands for."""
    return (value["structure"], value.get("structure_options")) if isinstance(value, dict) else (value, None)


def _as_names(field: str, value: Any) -> set[str] | str | None:
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


def _as_json(field: str, value: Any) -> Any:
    """The value as it will be read from a saved configuration, for instance with lists in place of tuples."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(f"{field}={value!r} holds a value that JSON does not have ({error}).") from None


def _check_structures(config: SurmConfig) -> None:
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
            _check_structure(config, *_family(value))


def _check_structure(config: SurmConfig, structure: Any, structure_options: Any) -> None:
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


def _check_compared(config: SurmConfig, adapter: str, options: dict[str, Any]) -> None:
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


def _check_training(config: SurmConfig) -> None:
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


def _check_adapter(config: SurmConfig) -> None:
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


def _check_targets(config: SurmConfig) -> None:
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


def _check_fused(config: SurmConfig) -> None:
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
