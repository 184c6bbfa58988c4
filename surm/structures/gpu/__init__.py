"""Kernels for a GPU, written in Triton, and loaded where they are used alone: not every torch comes with Triton.

The plain ways of `surm.structures.kernels` give the same numbers up to rounding, on every device.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch


def available(device: torch.device) -> bool:
    """Whether these kernels run on tensors of this device: a GPU of NVIDIA, or any with TRITON_INTERPRET=1."""
    on_gpu = device.type == "cuda" and torch.version.hip is None
    return _has_triton() and (on_gpu or os.environ.get("TRITON_INTERPRET") == "1")


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
