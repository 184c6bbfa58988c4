"""Products inside and outside of `torch.autocast`."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# These are known without a question, which takes time, and at which torch.compile of torch 2.11 breaks.
KNOWN = ("cpu", "cuda", "mps", "xpu")


def _enabled(x: Tensor) -> bool:
    device = x.device.type
    if device not in KNOWN and (torch.compiler.is_compiling() or not torch.amp.is_autocast_available(device)):
        return False
    return torch.is_autocast_enabled(device)


def autocasts(x: Tensor) -> bool:
    """Whether products with x are computed in the dtype of `torch.autocast` now."""
    return _enabled(x) and x.dtype != torch.float64


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """For products on the device of x in the dtype of their factors; nothing, which takes no time, where it is off."""
    return torch.autocast(x.device.type, enabled=False) if _enabled(x) else nullcontext()
