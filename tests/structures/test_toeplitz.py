import numpy as np
import pytest
import scipy.linalg
import torch

from surm.structures import build, projection, structure_class
from surm.structures.functional import fast_length


def test_printed_symmetric_projection_needs_a_symmetric_matrix() -> None:
    """Appendix A.6 averages the upper diagonals only: right for a symmetric matrix, wrong for another."""
    n = 6
    a = np.random.default_rng(0).normal(size=(n, n))
    basis = np.array([scipy.linalg.toeplitz(unit).ravel() for unit in np.eye(n)]).T

    for matrix, printed_is_right in ((a + a.T, True), (a, False)):
        least_squares = np.linalg.lstsq(basis, matrix.ravel(), rcond=None)[0]
        printed = np.array([np.diagonal(matrix, k).mean() for k in range(n)])
        ours = structure_class("toeplitz").nearest(torch.from_numpy(matrix), factors=1).dense()[0].detach().numpy()
        np.testing.assert_allclose(ours, least_squares, atol=1e-12)
        assert np.allclose(printed, least_squares) == printed_is_right


@pytest.mark.parametrize("symmetric", [True, False])
def test_two_factors_come_at_least_as_near_as_one(symmetric: bool) -> None:
    matrix = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, two = (structure_class("toeplitz").nearest(matrix, symmetric=symmetric, factors=factors) for factors in (1, 2))
    assert two.fit is not None
    assert two.fit.relative_error < ((one.dense() - matrix).norm() / matrix.norm()).item()


def test_the_best_of_several_starts_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.randn(24, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrices = drawn[[4, 6, 17, 22]]  # in the first two a random start wins, in the others the first start
    several = [structure_class("toeplitz").nearest(matrix).fit for matrix in matrices]
    monkeypatch.setattr(projection, "RANDOM_STARTS", 0)
    alone = [structure_class("toeplitz").nearest(matrix).fit for matrix in matrices]
    gains = [one.relative_error - best.relative_error for one, best in zip(alone, several, strict=True)]
    assert min(gains) > -1e-9
    assert max(gains) > 1e-3


@pytest.mark.parametrize(("symmetric", "factors", "expected"), [
    (True, 2, 1536), (False, 2, 3070), (True, 1, 768), (False, 1, 1535),
])  # fmt: skip
def test_parameters_at_768(symmetric: bool, factors: int, expected: int) -> None:
    assert structure_class("toeplitz").num_parameters(768, 768, symmetric=symmetric, factors=factors) == expected


def test_general_pair_is_larger_than_the_symmetric_one() -> None:
    structure = build("toeplitz", 16, 16, symmetric=False, dtype=torch.float64)
    structure.reset_parameters(False)
    W = structure.dense().detach().numpy()
    # The displacement of a product of two Toeplitz matrices has rank at most 4.
    Z = np.roll(np.eye(16), 1, axis=0)
    Z_skew = Z - 2 * Z * np.triu(np.ones((16, 16)))
    assert np.linalg.matrix_rank(Z @ W - W @ Z_skew) == 4
    assert np.linalg.matrix_rank(W) == 16


def test_fast_length_has_small_prime_factors_only() -> None:
    assert [fast_length(length) for length in (1, 7, 11, 767, 1535, 4097)] == [1, 8, 12, 768, 1536, 4320]
