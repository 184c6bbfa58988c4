"""Kernels for a GPU, written in Triton, and loaded where they are used alone: not every torch comes with Triton.

The plain ways of `surm.structures.kernels` give the same numbers up to rounding, on every device.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch

OLDEST = (8, 0)  # compute capability: what Triton supports, and tensor cores that know bfloat16 and tf32


def available(device: torch.device) -> bool:
    """Whether these kernels run on tensors of this device: new GPUs of NVIDIA, or any with TRITON_INTERPRET=1."""
    if not _has_triton():
        return False
    on_gpu = device.type == "cuda" and torch.version.hip is None and _new_enough()
    return on_gpu or os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _new_enough() -> bool:
    """Whether all GPUs are: which way a layer goes is chosen for a process, and its layers may be on several."""
    return all(torch.cuda.get_device_capability(index) >= OLDEST for index in range(torch.cuda.device_count()))
