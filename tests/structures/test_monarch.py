import numpy as np
import pytest
import torch

from surm.structures import build, structure_class


@pytest.mark.parametrize(
    ("size", "blocks"), [((768, 768), 24), ((768, 3072), 24), ((49, 49), 7), ((1, 5), 1), ((7, 7), 2)]
)
def test_number_of_blocks(size: tuple[int, int], blocks: int) -> None:
    assert structure_class("monarch").check_options(*size)["blocks"] == blocks


def test_one_term_reaches_full_rank() -> None:
    structure = build("monarch", 16, 16, dtype=torch.float64)
    structure.reset_parameters(False)
    assert np.linalg.matrix_rank(structure.dense().detach().numpy()) == 16


@pytest.mark.parametrize(("m", "n"), [(16, 16), (7, 7), (10, 13)])
def test_the_nearest_member_leaves_the_least_of_each_block(m: int, n: int) -> None:
    """Blocks of rank one, cut where the matrix ends: the rest of each is its second to last singular values."""
    matrix = torch.randn(m, n, dtype=torch.float64)
    nearest = structure_class("monarch").nearest(matrix, blocks=4)
    p = -(-n // 4)
    blocks = [matrix[i::4, j * p : (j + 1) * p].numpy() for i in range(4) for j in range(4)]
    least = sum((np.linalg.svd(block, compute_uv=False)[1:] ** 2).sum() for block in blocks if block.size)
    assert (nearest.dense() - matrix).square().sum().item() == pytest.approx(least)
