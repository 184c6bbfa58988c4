"""Kernels for a GPU, in Triton, which comes with the CUDA builds of torch; each has a twin in plain torch elsewhere.

Nothing here imports Triton before a kernel's file is imported, which callers do where `available` says so.
"""

import os
from importlib.util import find_spec

import torch


def available(device: torch.device) -> bool:
    """Whether Triton is installed and runs on the device: on a GPU of NVIDIA, or anywhere in its interpreter."""
    if find_spec("triton") is None:
        return False
    return os.environ.get("TRITON_INTERPRET") == "1" or (device.type == "cuda" and torch.version.hip is None)
