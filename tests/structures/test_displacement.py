import numpy as np
import pytest
import torch
from scipy.linalg import circulant, toeplitz
from scipy.optimize import minimize

from surm.structures import build, structure_class
from surm.structures.projection import DisplacementProblem


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


def dense_sum(G: np.ndarray, H: np.ndarray) -> np.ndarray:
    """sum_i Z_1(g_i) Z_{-1}(h_i) for the columns of G and H."""
    return sum(circulant(g) @ toeplitz(h, -np.roll(h[::-1], 1)) for g, h in zip(G.T, H.T, strict=True))


@pytest.mark.parametrize("n", [7, 8])
def test_error_in_the_transformed_coordinates_is_that_of_the_dense_sum(n: int) -> None:
    matrix, G, H = (torch.randn(n, size, dtype=torch.float64) for size in (n, 3, 3))
    expected = np.linalg.norm(matrix.numpy() - dense_sum(G.numpy(), H.numpy())) / np.linalg.norm(matrix)
    assert DisplacementProblem(matrix).relative_error(G, H).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 15, 16])
def test_alternating_least_squares_with_n_random_terms_fits_every_matrix(n: int) -> None:
    matrix, H = torch.randn(2, n, n, dtype=torch.float64)
    G, H, fit = DisplacementProblem(matrix).alternate(H)
    assert np.linalg.norm(matrix.numpy() - dense_sum(G.numpy(), H.numpy())) < 1e-6 * matrix.norm().item()
    assert fit.relative_error < 1e-6
    assert fit.converged


@pytest.mark.parametrize("n", [4, 5])
def test_alternating_least_squares_comes_as_near_as_a_general_optimiser(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    starts = torch.randn(4, 2, n, 2, generator=generator, dtype=torch.float64)
    problem = DisplacementProblem(matrix)
    found = min(problem.alternate(H, tolerance=1e-10)[-1].relative_error for _, H in starts)

    def squared_error(x: np.ndarray) -> float:
        return np.square(matrix.numpy() - dense_sum(*x.reshape(2, n, 2))).sum()

    best = min(minimize(squared_error, start.flatten().numpy()).fun for start in starts)
    assert found == pytest.approx(np.sqrt(best) / matrix.norm().item(), rel=1e-5)


def test_more_terms_than_columns_are_harmless() -> None:
    matrix = torch.randn(3, 3, dtype=torch.float64)
    torch.testing.assert_close(structure_class("ldr").nearest(matrix, terms=7).dense(), matrix)


def test_more_terms_come_nearer() -> None:
    matrix = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = [structure_class("ldr").nearest(matrix, terms=terms).fit.relative_error for terms in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("m", "n", "terms", "expected"), [(768, 768, 1, 1536), (512, 768, 4, 6144)])
def test_parameters(m: int, n: int, terms: int, expected: int) -> None:
    assert structure_class("ldr").num_parameters(m, n, terms=terms) == expected
