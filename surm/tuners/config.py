"""What a user can set."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils import PeftType

from surm.structures import structure_class
from surm.structures.options import is_count
from surm.tuners.targets import FUSED_PARTS, POSITIONS, SITES

FORMS = ("weight", "adapter")
BIASES = ("none", "all", "surm_only")
ACTIVATIONS = ("gelu", "silu", "tanh", "identity")
BOTTLENECK, BOTTLENECK_SIZE = "bottleneck", 16  # the adapter that structured ones are compared with; it is no matrix


@dataclass
class SurmConfig(PeftConfig):
    """Configuration of a structured matrix S of the family `structure`, in one of two forms.

    Weight form: W x becomes W x + alpha S x (paper section 4: S takes the place of LoRA's B A). Adapter form: a
    module's output X becomes X + act(S X) + b (paper section 5.2), or X + up act(down X) with the classic bottleneck.
    Values are JSON values: a saved configuration loads equal.

    Args:
        structure: a name of `surm.structures.STRUCTURES`, several joined by "+" for their sum, or, in adapter form,
            "bottleneck".
        structure_options: the family's options, such as {"terms": 4}; what is missing keeps its default. The
            bottleneck's is {"size": 16}.
        form: "weight", an update beside a layer's weight; "adapter", a matrix and an activation behind a module.
        target_modules: name endings or a regular expression of the layers to adapt, or "all-linear"; None picks the
            query, key and value projections of models that `surm.tuners.targets` knows. In adapter form also
            "houlsby", which None means, and "pfeiffer": the sites of `surm.tuners.targets.adapter_sites`.
        exclude_modules: name endings or a regular expression of layers to leave out.
        layers_to_transform: the indices of the only blocks to adapt; needs `target_modules` as a list.
        layers_pattern: name of the list of blocks that the indices count in.
        modules_to_save: further modules that are trained and saved whole, such as the task head.
        alpha: factor of the update, in weight form.
        dropout: probability, in [0, 1), of dropping an input of the update; in adapter form, of dropping an output of
            the activation.
        bias: which biases of the model are trained: "none", "all", or "surm_only" for those of the adapted layers.
        init_weights: True: the update is exactly zero at the start; False: it is random; "authors": zero, at the scales
            of the authors' code.
        fused_parts: which of "q", "k", "v" to adapt in a fused projection, None for all; other layers ignore it.
        adapter_bias: whether an adapter has a bias b (the bottleneck: one behind each of its two matrices).
        adapter_activation: "gelu", "silu", "tanh" or "identity".
        adapter_position: "after" or "before" the hidden dropout or LayerScale, for "houlsby" and "pfeiffer".
        adapter_width: features of adapted modules that have no width of their own, such as a dropout; None: as the
            model's `config.hidden_size` or `embed_dim` says.

    Raises:
        ValueError, TypeError: one sentence, for a value that is impossible whatever the model.
    """

    structure: str = field(default="circulant", metadata={"help": "Family of the update, or several joined by '+'."})
    structure_options: dict[str, Any] | None = field(default=None, metadata={"help": "Options of the family."})
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
    alpha: float = field(default=1.0, metadata={"help": "Factor of the update, in weight form."})
    dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the input of the update, or on an adapter's activation."}
    )
    bias: str = field(default="none", metadata={"help": "Biases to train: 'none', 'all' or 'surm_only'."})
    init_weights: bool | str = field(
        default=True, metadata={"help": "True: zero update at the start; False: random; 'authors': zero, their scales."}
    )
    fused_parts: list[str] | None = field(
        default=None, metadata={"help": "Which of 'q', 'k', 'v' to adapt in a fused projection; None: all."}
    )
    adapter_bias: bool = field(default=True, metadata={"help": "Whether an adapter has a bias."})
    adapter_activation: str = field(
        default="gelu", metadata={"help": "Behind an adapter's matrix: gelu, silu, tanh or identity."}
    )
    adapter_position: str = field(
        default="after", metadata={"help": "'after' or 'before' the hidden dropout or LayerScale."}
    )
    adapter_width: int | None = field(
        default=None, metadata={"help": "Features of adapted modules that have no width of their own."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType("SURM")
        # As in PEFT's own configurations: a list of names is looked up as a set.
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is not available: give {' or '.join(FORMS)}.")
        self._check_structure()
        self._check_training()
        self._check_adapter()
        self._check_targets()

    def _check_structure(self) -> None:
        if not isinstance(self.structure, str):
            raise TypeError(f"structure={self.structure!r} is not a name: give one such as 'circulant'.")
        family = None if self.structure == BOTTLENECK else structure_class(self.structure)
        if self.structure_options is not None:
            if not isinstance(self.structure_options, dict):
                raise TypeError(f"structure_options={self.structure_options!r} is not a dictionary of options.")
            self.structure_options = _as_json("structure_options", self.structure_options)
        if not isinstance(self.init_weights, bool) and self.init_weights != "authors":
            raise ValueError(f"init_weights={self.init_weights!r} is not known: give True, False or 'authors'.")
        options = self.structure_options or {}
        if family is None:
            self._check_bottleneck(**options)
            return
        # Whether a shape divides a layer's sizes is checked with the layer; here the sizes are those it does divide.
        shape, rule = options.get("factor_shape"), family.option_rules.get("factor_shape")
        m, n = shape if shape and rule and rule.accepts(shape) else (1, 1)
        family.check_options(m, n, **options)

    def _check_bottleneck(self, size: Any = BOTTLENECK_SIZE, **unknown: Any) -> None:
        if self.form != "adapter":
            raise ValueError(
                "structure='bottleneck' is no update of a weight, as it holds an activation: give form='adapter'."
            )
        if unknown or not is_count(size):
            raise ValueError(
                f"bottleneck: structure_options={self.structure_options!r} is not possible; give one option, size, an "
                "integer of at least 1."
            )
        if self.init_weights == "authors":
            raise ValueError("init_weights='authors' is not possible: the authors' code has no bottleneck.")

    def _check_training(self) -> None:
        if not _is_number(self.alpha) or not math.isfinite(self.alpha):
            raise ValueError(f"alpha={self.alpha!r} is not a finite number: give a factor such as alpha=1.0.")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} is not a probability of at least 0 and below 1.")
        if self.bias not in BIASES:
            raise ValueError(f"bias={self.bias!r} is not known: give one of {', '.join(BIASES)}.")

    def _check_adapter(self) -> None:
        if self.form == "weight":
            fields = self.__dataclass_fields__
            for name in (name for name in fields if name.startswith("adapter_")):
                if getattr(self, name) != fields[name].default:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} is used in adapter form only: give form='adapter'."
                    )
            if self.target_modules in SITES:
                raise ValueError(f"target_modules={self.target_modules!r} is for adapters: give form='adapter'.")
            return
        for name, neutral in (("alpha", 1.0), ("fused_parts", None)):
            if getattr(self, name) != neutral:
                raise ValueError(f"{name}={getattr(self, name)!r} is used in weight form only: leave it at {neutral}.")
        if not isinstance(self.adapter_bias, bool):
            raise ValueError(f"adapter_bias={self.adapter_bias!r} is neither True nor False.")
        if self.adapter_activation not in ACTIVATIONS:
            raise ValueError(
                f"adapter_activation={self.adapter_activation!r} is not possible: give {', '.join(ACTIVATIONS)}, which "
                "are zero at zero with a slope, since an adapter starts there and without one, as in relu, never moves."
            )
        if self.adapter_position not in POSITIONS:
            raise ValueError(f"adapter_position={self.adapter_position!r} is not known: give {' or '.join(POSITIONS)}.")
        if self.adapter_width is not None and not is_count(self.adapter_width):
            raise ValueError(f"adapter_width={self.adapter_width!r} is no width: give an integer of at least 1.")

    def _check_targets(self) -> None:
        if self.fused_parts is not None:
            parts = list(self.fused_parts) if isinstance(self.fused_parts, (list, tuple)) else []
            if not parts or parts != [part for part in FUSED_PARTS if part in parts]:
                raise ValueError(
                    f"fused_parts={self.fused_parts!r} is not a selection of {', '.join(FUSED_PARTS)}: give at least "
                    "one, each once and in this order, or None for all."
                )
            self.fused_parts = parts
        indices = self.layers_to_transform if isinstance(self.layers_to_transform, list) else [self.layers_to_transform]
        if self.layers_to_transform is not None and not all(_is_index(index) for index in indices):
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform!r} is no block index: give integers of at least 0."
            )
        if isinstance(self.target_modules, str) and self.target_modules not in SITES:
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} cannot be used when target_modules is a str: give a list of names.")
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError("layers_pattern is used with layers_to_transform only: give that too.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _as_json(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """The value as it will be read from a saved configuration, for instance with lists in place of tuples."""
    try:
        loaded: dict[str, Any] = json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(f"{name}={value!r} holds a value that JSON does not have ({error}).") from None
    return loaded
