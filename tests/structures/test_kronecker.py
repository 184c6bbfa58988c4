import numpy as np
import pytest
import torch

from surm.structures import build, structure_class


@pytest.mark.parametrize(
    ("m", "n", "shape"),
    [
        (768, 768, [32, 24]),  # the paper's: B is 24 x 32
        (6, 6, [3, 2]),
        (7, 7, [7, 1]),
        (7, 5, [7, 1]),
        (1, 1, [1, 1]),
    ],
)
def test_default_factor_shape(m: int, n: int, shape: list[int]) -> None:
    assert structure_class("kronecker").check_options(m, n)["factor_shape"] == shape


def test_rank_at_768_is_the_papers() -> None:
    structure = build("kronecker", 768, 768, dtype=torch.float64)
    structure.reset_parameters(False)
    assert structure.B.shape == (1, 24, 32)
    ranks = [np.linalg.matrix_rank(factor[0].detach().numpy()) for factor in (structure.A, structure.B)]
    assert np.prod(ranks) == 576
    assert np.linalg.matrix_rank(structure.dense().detach().numpy()) == 576


@pytest.mark.parametrize(("terms", "shape"), [(1, [2, 3]), (2, [2, 3]), (3, [4, 2])])
def test_nearest_has_the_error_of_the_truncated_rearrangement(terms: int, shape: list[int]) -> None:
    """Van Loan and Pitsianis: the squared error is the sum of the squared singular values that are left out."""
    m1, n1 = shape
    W = np.random.default_rng(0).normal(size=(8, 6))
    m2, n2 = 8 // m1, 6 // n1
    blocks = np.array([W[i * m2 : (i + 1) * m2, j * n2 : (j + 1) * n2].ravel() for i in range(m1) for j in range(n1)])
    left_out = np.linalg.svd(blocks, compute_uv=False)[terms:]
    nearest = structure_class("kronecker").nearest(torch.from_numpy(W), factor_shape=shape, terms=terms)
    error = np.linalg.norm(nearest.dense().detach().numpy() - W)
    assert error == pytest.approx(np.linalg.norm(left_out))


def test_more_terms_than_the_rearrangement_has_rank() -> None:
    matrix = torch.randn(4, 4, dtype=torch.float64)
    nearest = structure_class("kronecker").nearest(matrix, terms=9)
    torch.testing.assert_close(nearest.dense(), matrix)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ([5, 24], "m1=5 does not divide m=768; give one of 1, 2, 3, 4, 6, 8, 12"),
        ([32, 7], "n1=7 does not divide n=96; give one of 1, 2, 3, 4, 6, 8, 12"),
        ([32], "give two integers"),
        ([0, 2], "give two integers"),
        ("ab", "give two integers"),
    ],
)
def test_impossible_factor_shape(shape: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build("kronecker", 768, 96, factor_shape=shape)
