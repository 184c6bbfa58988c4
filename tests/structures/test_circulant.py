import numpy as np
import pytest
import torch

from surm.structures import build, structure_class


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 768])
@pytest.mark.parametrize(("name", "sign"), [("circulant", 1), ("skew_circulant", -1)])
def test_first_column_generates_powers_of_the_shift(name: str, sign: int, n: int) -> None:
    """W = sum_k c_k Z^k, where the shift Z has ones below the diagonal and the sign in the upper right corner."""
    structure = build(name, n, n, parametrization="direct", dtype=torch.float64)
    structure.reset_parameters(False)
    c = structure.c[0].detach().numpy()
    column = np.zeros(n)
    columns = []
    shift = np.roll(np.arange(n), 1)
    for k in range(n):  # column k is Z^k c
        column = c if k == 0 else np.where(np.arange(n) == 0, sign, 1) * column[shift]
        columns.append(column)
    expected = np.stack(columns, axis=1)
    np.testing.assert_array_equal(structure.dense().detach().numpy(), expected)
    np.testing.assert_allclose(structure(torch.eye(n).double()).detach().numpy(), expected.T, atol=1e-12)


def test_projection_formula_of_the_paper() -> None:
    """Appendix A.6, 1-indexed: c_k = 1/n (sum_{j<k} d[j, 1 + j + n - k] + sum_{j>=k} d[j, j - k + 1]), with the first
    sum's column being j + n - k + 1."""
    n = 6
    d = np.random.default_rng(0).normal(size=(n, n))
    expected = [
        (sum(d[j - 1, j + n - k] for j in range(1, k)) + sum(d[j - 1, j - k] for j in range(k, n + 1))) / n
        for k in range(1, n + 1)
    ]
    nearest = structure_class("circulant").nearest(torch.from_numpy(d))
    np.testing.assert_allclose(nearest.dense()[:, 0].detach().numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("n", [16, 17])
def test_full_rank_in_general(n: int) -> None:
    structure = build("circulant", n, n, dtype=torch.float64)
    structure.reset_parameters(False)
    assert np.linalg.matrix_rank(structure.dense().detach().numpy()) == n


@pytest.mark.parametrize("n", [7, 8])
def test_circulant_plus_skew_circulant_is_every_toeplitz_matrix(n: int) -> None:
    d = torch.randn(2 * n - 1, dtype=torch.float64)
    toeplitz = torch.tensor([[d[i - j + n - 1] for j in range(n)] for i in range(n)])
    nearest = structure_class("circulant+skew_circulant").nearest(toeplitz)
    assert nearest.fit is None
    torch.testing.assert_close(nearest.dense(), toeplitz)


@pytest.mark.parametrize(("name", "options"), [("circulant", {}), ("toeplitz", {}), ("kronecker", {}), ("ldr", {})])
@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("n", [96, 768])
def test_a_step_of_the_zero_factor_changes_the_update_by_its_size(name: str, options: dict, terms: int, n: int) -> None:
    """What makes one learning rate suit every structure, width and number of terms."""
    structure = build(name, n, n, terms=terms, **options)
    zero = next(structure.parameters())
    with torch.no_grad():
        zero += 1e-3 * torch.sign(torch.randn(zero.shape, generator=torch.Generator().manual_seed(0)))
    assert structure.dense().square().mean().sqrt().item() == pytest.approx(1e-3, rel=0.35)


@pytest.mark.parametrize(
    ("name", "options", "std"),
    [("circulant", {}, 1.0), ("toeplitz", {}, 0.02), ("ldr", {}, 0.02), ("kronecker", {}, 1 / 96**0.5)],
)
def test_scales_of_the_authors(name: str, options: dict, std: float) -> None:
    """N(0, 1), N(0, 0.02^2) and, for the 24 x 32 factor, Kaiming uniform: within 1 / sqrt(32)."""
    structure = build(name, 768, 768, **options)
    structure.reset_parameters("authors")
    _, second = structure.parameters()
    assert second.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(7, 7), (8, 8), (5, 9), (9, 5)])
@pytest.mark.parametrize("parametrization", ["product", "direct"])
@pytest.mark.parametrize("name", ["circulant", "skew_circulant", "circulant+skew_circulant"])
def test_collapsed_it_is_the_same_matrix_in_one_vector(
    name: str, parametrization: str, m: int, n: int, dtype: torch.dtype
) -> None:
    """Section 5.2: after training, r1 * r2 is all that a circulant needs."""
    structure = build(name, m, n, parametrization=parametrization, terms=3, dtype=dtype)
    structure.reset_parameters(False)
    state = torch.get_rng_state()
    shorter = structure.collapse()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(shorter) is type(structure)
    assert shorter.options == {"parametrization": "direct", "terms": 1}
    assert [tuple(p.shape) for p in shorter.parameters()] == len(name.split("+")) * [(1, max(m, n))]
    assert {p.dtype for p in shorter.parameters()} == {dtype}
    rounding = {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps * structure.dense().abs().max().item()}
    torch.testing.assert_close(shorter.dense(), structure.dense(), **rounding)
    assert not shorter.dense().eq(0).all()


@pytest.mark.parametrize("name", ["toeplitz", "kronecker", "ldr", "low_rank", "circulant+ldr"])
def test_other_structures_do_not_collapse(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name.split('+')[-1]} cannot be collapsed: [^.]*\\.$"):
        build(name, 4, 4).collapse()
