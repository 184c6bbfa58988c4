"""Which parameters decay, and the learning rate of each step."""

import math
from typing import Any

from torch import nn

from surm.config.schema import OptimConfig
from surm.methods.apply import is_structure, trainable_parameters


def parameter_groups(module: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices; not on vectors (biases, norms), nor by default on structure parameters."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in trainable_parameters(module):
        wanted = optim.decay_structure if is_structure(name) else parameter.ndim > 1
        (decayed if wanted else plain).append(parameter)
    groups = ((decayed, optim.weight_decay), (plain, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


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
