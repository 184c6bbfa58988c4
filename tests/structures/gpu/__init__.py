"""The kernels written in Triton: on a GPU or, where there is none, in Triton's interpreter on the CPU."""

from importlib.util import find_spec

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HAS_TRITON = find_spec("triton") is not None
