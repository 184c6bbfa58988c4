"""Kernels for a GPU run on it, or, where there is none, in Triton's interpreter on the CPU."""

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="package")
def transform():
    """The file of kernels; Triton asks for its interpreter when a kernel is defined."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        from surm.structures.gpu import transform

        yield transform
