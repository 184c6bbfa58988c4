"""The kernels written in Triton: on a GPU, or by Triton's interpreter (`make test` starts it)."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
