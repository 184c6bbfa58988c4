"""Which parameters decay, and the learning rate of each step."""

import math
from typing import Any

from torch import nn

from surm.config.schema import OptimConfig
from surm.methods.base import Method


def parameter_groups(method: Method, optim: OptimConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices; not on vectors (biases, norms), nor by default on structure parameters.

    Where the task head has a rate of its own, its groups come last and say so.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in method.trained_parameters():
        decays = optim.decay_structure if method.is_added(name) else parameter.ndim > 1
        apart = optim.head_lr is not None and method.in_head(name)
        groups.setdefault((apart, not decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if plain else optim.weight_decay}
        | ({"lr": optim.head_lr} if apart else {})
        for (apart, plain), parameters in sorted(groups.items())
    ]


def rate_factor(step: int, steps: int, optim: OptimConfig) -> float:
    """Linear warm-up to 1, then the schedule down to 0; a function of the step alone, so nothing needs saving.

    Args:
        step: 0 for the first of `steps`.
    """
    warmup = math.ceil(optim.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[optim.schedule]
