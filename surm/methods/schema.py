"""What a method and its placement are asked: the schemas of `conf/structure` and `conf/placement`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class StructureConfig:
    """Which method, and what several of them have; `registry.AnyMethodConfig` adds each one's own options."""

    name: str = "circulant"
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
