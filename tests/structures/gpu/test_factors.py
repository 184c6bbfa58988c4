"""Triton's kernels for Kronecker products, against NumPy's `kron` in float64."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from surm.structures.gpu import factors as kernels
from tests.structures.gpu import DEVICE

# (m1, n1, m2, n2): full tiles, padded ones, wide, tall, of one side only
SHAPES = [(16, 16, 16, 16), (24, 24, 32, 32), (16, 32, 24, 16), (32, 16, 16, 24), (20, 18, 17, 31)]
HALF = (torch.bfloat16, torch.float16)
# Of the update alone, before it is rounded to the dtype of y. Half precision: three operands are rounded to tf32, by
# at most 2^-11 each. Float32: of each of two products three tf32 ones leave out at most 5 * 2^-22 where small parts are
# cut off, and a tensor core, which cuts sums off at each of at most 9 * 64 / 8 steps, 72 * 2^-24.
TOLERANCE = dict.fromkeys(HALF, 3 * 2**-11) | {torch.float32: 2 * (5 * 2**-22 + 72 * 2**-24)}
# To bfloat16 the interpreter cuts digits off, a GPU and float16 there round to the nearest.
ROUNDING = {dtype: torch.finfo(dtype).eps / 2 for dtype in TOLERANCE}
if DEVICE.type == "cpu":
    ROUNDING[torch.bfloat16] *= 2
SUM = 4 * 2**-24  # of W + alpha a b: three operations, in float32


SIZES = kernels._sizes


@pytest.fixture(autouse=True)
def _plans_anew():
    torch.manual_seed(0)
    for plans in (kernels._product_plan, kernels._gradients_plan):
        plans.cache_clear()


def draw(*shape, dtype=torch.float32):
    """On the CPU, so that every device sees the same numbers."""
    return torch.randn(shape).to(DEVICE, dtype)


def relative_error(found, expected):
    return float((found.double().cpu() - expected).norm() / expected.norm())


def twin(A, B):
    return torch.from_numpy(np.kron(A.double().cpu().numpy(), B.double().cpu().numpy()))


@pytest.mark.parametrize(("shape", "dtype"), [(shape, dtype) for shape in SHAPES for dtype in TOLERANCE])
@pytest.mark.sample(6)
def test_product_and_gradients_are_those_of_the_dense_matrix(shape, dtype):
    check(shape, dtype, tokens=9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_largest_factors(dtype):
    check((kernels.LARGEST,) * 4, dtype, tokens=5)


# Fewer programs than tiles, so that each takes several.
@patch.object(kernels, "_sizes", lambda *arguments: (*SIZES(*arguments)[:2], 2))
def check(shape, dtype, tokens):
    m1, n1, m2, n2 = shape
    parts, alpha, m, n = 2, 0.5, m1 * m2, n1 * n2
    factors = [(draw(m1, n1), draw(m2, n2)) for _ in range(parts)]
    x, g = draw(tokens, n, dtype=dtype), draw(tokens, parts * m, dtype=dtype)
    D = torch.cat([twin(A, B) for A, B in factors])
    x64, g64 = x.double().cpu(), g.double().cpu()
    assert relative_error(kernels.kronecker_product(factors, x), x64 @ D.T) < TOLERANCE[dtype] + ROUNDING[dtype]
    weight = draw(n, parts * m, dtype=dtype).T  # of other strides
    total = weight.double().cpu() + alpha * D
    assert relative_error(kernels.kronecker_form(factors, alpha, weight, dtype), total) < SUM + ROUNDING[dtype]
    assert relative_error(kernels.kronecker_form(factors), D) < SUM
    y, dx = draw(tokens, parts * m, dtype=dtype), draw(tokens, n, dtype=dtype)
    expected_y, expected_dx = y.double().cpu() + alpha * x64 @ D.T, dx.double().cpu() + alpha * g64 @ D
    assert kernels.kronecker_product(factors, x, alpha, y) is y
    assert relative_error(y, expected_y) < TOLERANCE[dtype] + ROUNDING[dtype]
    found = kernels.kronecker_gradients(factors, g, x, alpha, dx)
    assert relative_error(dx, expected_dx) < TOLERANCE[dtype] + 2 * ROUNDING[dtype]  # rounded once a part
    # Without dx it is another compilation, which may round otherwise; a launch of one repeats to the last bit.
    without, again = (kernels.kronecker_gradients(factors, g, x, alpha) for _ in range(2))
    for index, (A, B) in enumerate(factors):
        H = (g64[:, index * m : index * m + m].T @ x64).view(m1, m2, n1, n2)
        by_A = alpha * torch.einsum("ikjl,kl->ij", H, B.double().cpu())
        by_B = alpha * torch.einsum("ikjl,ij->kl", H, A.double().cpu())
        for dA, dB in (found[index], without[index]):
            assert relative_error(dA, by_A) < TOLERANCE[dtype]
            assert relative_error(dB, by_B) < TOLERANCE[dtype]
        assert all(map(torch.equal, without[index], again[index]))


def test_rows_that_stand_apart_and_none_at_all():
    factors = [(draw(16, 16), draw(16, 16))]
    x = draw(5, 300)[:, :256]
    expected = x.double().cpu() @ twin(*factors[0]).T
    assert relative_error(kernels.kronecker_product(factors, x), expected) < TOLERANCE[torch.float32]
    assert kernels.kronecker_product(factors, x[:0]).shape == (0, 256)
    [(dA, dB)] = kernels.kronecker_gradients(factors, x[:0], x[:0])
    assert dA.count_nonzero() == dB.count_nonzero() == 0


def test_a_nan_stays_where_operands_are_rounded():
    factors = [(draw(16, 16), draw(16, 16))]
    x = draw(2, 256, dtype=torch.bfloat16)
    x[0, 3] = torch.tensor([0x7FFF], dtype=torch.int16).view(torch.bfloat16)[0]  # all bits of a NaN
    y = kernels.kronecker_product(factors, x)
    assert y[0].isnan().any()
    assert not y[1].isnan().any()


def test_what_is_refused_goes_the_plain_way():
    assert kernels.supports(24, 24, 32, 32, 1, 1, torch.bfloat16)
    assert not kernels.supports(24, 24, 32, 32, 2, 1, torch.bfloat16)
    assert not kernels.supports(24, 24, 32, 32, 1, 5, torch.bfloat16)
    assert not kernels.supports(24, 24, 32, 32, 1, 1, torch.float64)
    assert not kernels.supports(128, 32, 32, 128, 1, 1, torch.float32)
    assert not kernels.supports(768, 1, 1, 768, 1, 1, torch.float32)
