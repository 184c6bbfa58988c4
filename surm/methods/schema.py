"""What a method and its placement are asked: the schemas of `conf/structure` and `conf/placement`."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from surm.structures import STRUCTURES

C = TypeVar("C")


def with_options(schema: type[C]) -> type[C]:
    """A field for each option of any structure, null by default; a dataclass is made of the class after this."""
    for structure in STRUCTURES.values():
        for name, option in structure.option_rules.items():
            if name not in schema.__annotations__:
                schema.__annotations__[name] = option.kind | None
                setattr(schema, name, None)
    return schema


@dataclass
@with_options
class StructureConfig:
    """Every structure's options in one place; null is the structure's default, so that one sweep covers all."""

    name: str = "circulant"
    rank: int | None = None  # of LoRA too
    size: int | None = None  # of a bottleneck adapter
    arguments: dict[str, Any] = field(default_factory=dict)  # of peft_<method>: those of PEFT's own configuration
    alpha: float = 1.0
    dropout: float = 0.0
    init_weights: str = "default"  # default (zero update) | authors


@dataclass
class PlacementConfig:
    form: str = "weight"  # weight | adapter
    parts: list[str] = field(default_factory=lambda: ["q", "k", "v"])  # weight form: of q, k, v, o, mlp
    sites: str = "houlsby"  # adapter form: houlsby | pfeiffer
    adapter_bias: bool = True
    activation: str = "gelu"  # gelu | silu | tanh | identity
    position: str = "after"  # after | before the hidden dropout
