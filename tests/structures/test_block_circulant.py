import pytest
import torch
from peft.tuners.c3a.utils import get_circulant_fast

from surm.structures import build


@pytest.mark.parametrize(("m", "n"), [(8, 8), (7, 7), (5, 9)])
def test_one_block_of_the_larger_size_is_a_circulant(m: int, n: int) -> None:
    block = build("block_circulant", m, n, block_size=max(m, n), dtype=torch.float64)
    block.reset_parameters(False)
    circulant = build("circulant", m, n, parametrization="direct", dtype=torch.float64)
    circulant.load_state_dict({"c": block.c[0, 0].detach()})
    torch.testing.assert_close(block.dense(), circulant.dense())


def test_is_the_matrix_of_c3a_where_that_has_one() -> None:
    """PEFT's C3A takes first rows, and its layer divides W by n, which this function does not."""
    structure = build("block_circulant", 6, 9, block_size=3, dtype=torch.float64)
    structure.reset_parameters(False)
    first_rows = structure.c[0].flip(-1).roll(1, dims=-1)
    torch.testing.assert_close(structure.dense(), get_circulant_fast(first_rows).to(torch.float64))
