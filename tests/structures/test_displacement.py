import numpy as np
import pytest
import torch

from surm.structures import build, structure_class


def shift(n: int, sign: int) -> np.ndarray:
    Z = np.diag(np.ones(n - 1), -1)
    Z[0, -1] = sign
    return Z


@pytest.mark.parametrize("n", [15, 16])
@pytest.mark.parametrize("terms", [1, 2, 3])
def test_displacement_rank_is_the_number_of_terms(n: int, terms: int) -> None:
    structure = build("ldr", n, n, terms=terms, dtype=torch.float64)
    structure.reset_parameters(False)
    W = structure.dense().detach().numpy()
    assert np.linalg.matrix_rank(shift(n, 1) @ W - W @ shift(n, -1)) == terms
    assert np.linalg.matrix_rank(W) == n


@pytest.mark.parametrize("n", [16, 15])
def test_n_terms_fit_every_matrix(n: int) -> None:
    matrix = torch.randn(n, n, dtype=torch.float64)
    nearest = structure_class("ldr").nearest(matrix, terms=n)
    assert nearest.fit is not None
    assert nearest.fit.converged
    assert (nearest.dense() - matrix).norm() < 1e-6 * matrix.norm()


@pytest.mark.parametrize(("family", "terms"), [("circulant", 1), ("skew_circulant", 1), ("toeplitz", 2)])
def test_contains_the_families_that_the_paper_names(family: str, terms: int) -> None:
    """Section 3: one term holds circulant and skew-circulant matrices, two hold every Toeplitz matrix."""
    options = {"symmetric": False, "factors": 1} if family == "toeplitz" else {}
    member = build(family, 12, 12, dtype=torch.float64, **options)
    member.reset_parameters(False)
    nearest = structure_class("ldr").nearest(member.dense().detach(), terms=terms)
    torch.testing.assert_close(nearest.dense(), member.dense(), rtol=0, atol=1e-9)


def test_more_terms_come_nearer() -> None:
    matrix = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = [structure_class("ldr").nearest(matrix, terms=terms).fit.relative_error for terms in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("m", "n", "terms", "expected"), [(768, 768, 1, 1536), (512, 768, 4, 6144)])
def test_parameters(m: int, n: int, terms: int, expected: int) -> None:
    assert structure_class("ldr").num_parameters(m, n, terms=terms) == expected
