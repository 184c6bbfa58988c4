"""What a user can set."""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from peft import LoraConfig, PeftConfig
from peft.utils import PeftType

from surm.structures import Structure, structure_class
from surm.structures.hypercomplex import Hypercomplex
from surm.tuners.checks import as_json, as_names, check, family
from surm.tuners.patterns import as_splits, matching
from surm.tuners.saving import note_import

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
        self.target_modules = as_names("target_modules", self.target_modules)
        self.exclude_modules = as_names("exclude_modules", self.exclude_modules)
        for name in ("structure_options", "structure_pattern", "modules_to_save", "fused_parts"):
            setattr(self, name, as_json(name, getattr(self, name)))
        self.fused = as_splits(self.fused)
        check(self)

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
        names = [self.structure, *(family(value)[0] for value in others)]
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
            config.structure, config.structure_options = family(structure)
        if alpha is not None:
            config.alpha = alpha
        return config
