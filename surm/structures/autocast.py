"""Products inside and outside of `torch.autocast`."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocasts(x: Tensor) -> bool:
    """Whether products with x are computed in the dtype of `torch.autocast` now."""
    device = x.device.type
    known = torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device) and x.dtype != torch.float64


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """For products on the device of x in the dtype of their factors."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
