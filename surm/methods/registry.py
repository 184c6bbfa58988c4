"""Every method by its name, and the options of all in one schema."""

from dataclasses import field, make_dataclass

from surm.methods.allocated import AllocatedAdaLora, AllocatedLoraSquared, DynamicDora
from surm.methods.base import Method, Settings
from surm.methods.baselines import AttentionTuning, BitFit, Full, LayerNormTuning, LinearProbe
from surm.methods.hadamard import Hadamard
from surm.methods.peft import PREFIX, AdaLora, Lora, LoraFA, OfPeft, PrefixTuning
from surm.methods.schema import StructureConfig
from surm.methods.structured import (
    AdapterDrop,
    Bottleneck,
    Compacter,
    LoraXS,
    OfWeight,
    SharedStructured,
    Structured,
)
from surm.shared.registry import look_up
from surm.structures import SHARED, STRUCTURES, structure_class

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(Bottleneck, Compacter, AdapterDrop, Lora, LoraFA, AdaLora, PrefixTuning),
        *(BitFit, LayerNormTuning, AttentionTuning, LinearProbe, Full),
        *(LoraXS, Hadamard, DynamicDora, AllocatedAdaLora, AllocatedLoraSquared),
    )
}
"""By name; other structures, their sums and the rest of PEFT's own methods have names beside these."""


def method_class(name: str) -> type[Method]:
    """The class of a method: a structure, several joined by "+", a key of `METHODS`, or `peft_<method>`.

    Raises:
        ValueError: one sentence, for an unknown name.
    """
    if name.startswith(PREFIX):
        return METHODS.get(name, OfPeft)
    if "+" in name:
        for part in name.split("+"):
            look_up(STRUCTURES, part, "structure")
        return OfWeight if structure_class(name).needs_weight else Structured
    structured = dict.fromkeys(STRUCTURES, Structured) | dict.fromkeys(SHARED, SharedStructured)
    return look_up(structured | METHODS, name, "method")


def make_method(settings: Settings) -> Method:
    """The method that a run was asked for.

    Args:
        settings: `asked.structure` of the run.
    """
    return method_class(settings["name"])(settings)


_KINDS = {
    name: option.kind
    for options in (
        *(structure.option_rules for structure in (STRUCTURES | SHARED).values()),
        Structured.options,
        *(method.options for method in METHODS.values()),
    )
    for name, option in options.items()
    if name not in StructureConfig.__dataclass_fields__
}

AnyMethodConfig = make_dataclass(
    "AnyMethodConfig",
    [(name, kind | None, field(default=None)) for name, kind in _KINDS.items()],
    bases=(StructureConfig,),
    namespace={"__module__": __name__},  # so that it can be pickled
)
"""A `StructureConfig` with the options of every method; null is the method's default, so that one sweep covers all."""
