"""What all tests on a GPU start from."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _all_digits_of_float32() -> Iterator[None]:
    """Also where the environment lets the tensor cores round float32, as NVIDIA's containers do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
