"""Products inside and outside of `torch.autocast`."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Of these devices a graph knows it without a call: torch.compile of torch 2.11 breaks at `is_autocast_available`.
COMPILED = ("cpu", "cuda", "mps", "xpu", "hpu", "xla")


def _enabled(x: Tensor) -> bool:
    device = x.device.type
    known = device in COMPILED if torch.compiler.is_compiling() else torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def autocasts(x: Tensor) -> bool:
    """Whether products with x are computed in the dtype of `torch.autocast` now."""
    return _enabled(x) and x.dtype != torch.float64


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """For products on the device of x in the dtype of their factors; nothing, which takes no time, where it is off."""
    return torch.autocast(x.device.type, enabled=False) if _enabled(x) else nullcontext()
