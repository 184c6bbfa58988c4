"""Triton's kernels for matrices made of diagonals, against SciPy's dense matrices in float64."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import linalg

from surm.structures.gpu import form
from tests.structures.gpu import DEVICE

# One rounding of the result. To bfloat16 the interpreter cuts digits off, a GPU and float16 there round to the nearest.
TOLERANCE = {dtype: torch.finfo(dtype).eps / 2 + 1e-6 for dtype in (torch.float32, torch.bfloat16, torch.float16)}
if DEVICE.type == "cpu":
    TOLERANCE[torch.bfloat16] *= 2
SIZES = [(32, 128), (24, 40), (50, 130), (130, 24), (1, 7), (7, 1), (33, 33)]


def circulant(c, m, n, sign=1):
    K = len(c)
    matrix = linalg.circulant(c)
    matrix[np.triu_indices(K, 1)] *= sign
    return matrix[:m, :n]


def general(t, m, n):
    return linalg.toeplitz(t[n - 1 :], t[:n][::-1])


def symmetric(t, m, n):
    return linalg.toeplitz(t[:m], t[:n])


TWINS = {
    "circulant": circulant,
    "skew_circulant": lambda c, m, n: circulant(c, m, n, -1),
    "toeplitz": general,
    "symmetric_toeplitz": symmetric,
}
KINDS = [*form.SINGLE, *form.PAIRS]


def draw(*shape, dtype=torch.float32):
    """On the CPU and by a seed of the shape, so that every device sees the same numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])).to(DEVICE, dtype)


def generator_size(kind, m, n):
    return m + n - 1 if kind == "toeplitz" else max(m, n)


def drawn(kind, m, n, terms=1, parts=1, product=False, dtype=torch.float32):
    """Parameters of a kind, and their D in float64."""
    random, K = np.random.default_rng(m * 1000 + n + terms), max(m, n)
    if kind in form.PAIRS:
        one, two = form.PAIRS[kind]
        sizes = (generator_size(one, m, K), generator_size(two, K, n))
    else:
        sizes = (generator_size(kind, m, n),) * (2 if product else 1)
    factors = [
        [torch.tensor(random.standard_normal((terms, size)), dtype=dtype, device=DEVICE) for size in sizes]
        for _ in range(parts)
    ]
    return factors, np.concatenate([dense(kind, part, m, n) for part in factors])


def dense(kind, part, m, n):
    arrays, K = [factor.double().cpu().numpy() for factor in part], max(m, n)
    if kind in form.PAIRS:
        one, two = form.PAIRS[kind]
        return sum(TWINS[one](a, m, K) @ TWINS[two](b, K, n) for a, b in zip(*arrays, strict=True))
    return TWINS[kind](np.prod(arrays, axis=0).sum(axis=0), m, n)


def gradients_at(kind, part, H, m, n):
    """By perturbing each entry: D is linear in each parameter, so that differences of one are exact."""
    arrays = [factor.double().cpu() for factor in part]
    found = []
    for place, array in enumerate(arrays):
        gradient, base = torch.zeros_like(array), dense(kind, arrays, m, n)
        for index in np.ndindex(*array.shape):
            moved = [other.clone() for other in arrays]
            moved[place][index] += 1
            gradient[index] = float(((dense(kind, moved, m, n) - base) * H).sum())
        found.append(gradient)
    return found


def relative_error(found, expected):
    expected = torch.as_tensor(expected)
    return float((found.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("kind", "size", "dtype"),
    [(kind, size, dtype) for kind in KINDS for size in SIZES for dtype in TOLERANCE],
)
@pytest.mark.sample(14)
def test_the_matrix_and_its_sum_with_a_weight_are_those_of_scipy(kind, size, dtype):
    m, n = size
    factors, D = drawn(kind, m, n, terms=2, parts=2, product="circulant" in kind)
    weight = draw(2 * m, n, dtype=dtype)
    tolerance = TOLERANCE[dtype] * (3 if kind in form.PAIRS else 1)  # whose two operands are rounded, too
    if DEVICE.type == "cpu" and dtype != torch.float32 and kind in form.PAIRS:
        tolerance *= 2  # a CPU's products in half precision round between, too
    assert relative_error(form.form(kind, factors, m, n, dtype=dtype), D) < tolerance
    total = form.form(kind, factors, m, n, 0.5, weight, dtype)
    assert total.dtype == dtype
    assert relative_error(total, weight.double().cpu() + 0.5 * torch.tensor(D)) < tolerance


def test_a_weight_may_be_transposed_and_parameters_of_half_precision():
    factors, D = drawn("circulant", 24, 40, parts=3, product=True, dtype=torch.bfloat16)
    weight = draw(40, 72).T
    assert (
        relative_error(form.form("circulant", factors, 24, 40, 1.0, weight), weight.double().cpu() + torch.tensor(D))
        < 1e-6
    )


@pytest.mark.parametrize(
    ("kind", "size", "dtype"),
    [(kind, size, dtype) for kind in KINDS for size in [(9, 13), (40, 7), (33, 33), (1, 5)] for dtype in TOLERANCE],
)
@pytest.mark.parametrize("strip", [1024, 8], ids=["whole", "strips"])
@pytest.mark.sample(14)
def test_gradients_of_all_parameters_are_those_of_differences(kind, size, dtype, strip):
    m, n = size
    factors, _ = drawn(kind, m, n, terms=2, parts=2, product="circulant" in kind)
    H = draw(2 * m, n, dtype=dtype)
    few = form.Sums(strip, 8, 16, 4)
    with patch.object(form, "LOW", few), patch.object(form, "HIGH", few):
        found = form.diagonal_gradients(kind, factors, H, m, n, alpha=0.5)
    tolerance = TOLERANCE[dtype] * 6 if kind in form.PAIRS else 1e-5  # pairs have products in the dtype of H
    for part, own, rows in zip(factors, found, H.double().cpu().numpy().reshape(2, m, n), strict=True):
        for gradient, parameter, expected in zip(own, part, gradients_at(kind, part, rows, m, n), strict=True):
            assert gradient.dtype == parameter.dtype
            assert relative_error(gradient, 0.5 * expected) < tolerance


def test_what_is_refused_goes_the_plain_way():
    factors, _ = drawn("circulant", 8, 8)
    assert form.supports("circulant", factors, torch.bfloat16)
    assert not form.supports("kronecker", factors, torch.bfloat16)
    assert not form.supports("circulant", factors, torch.float64)
    assert not form.supports("circulant", factors * 5, torch.float32)
    assert not form.supports("circulant", [[factor.mT for factor in factors[0]], *factors], torch.float32)
