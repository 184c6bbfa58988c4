"""Products by a transform, and their gradients, against SciPy's dense matrices in float64."""

from itertools import product

import pytest
import torch
from scipy import linalg
from torch import Tensor

from surm.structures.gpu import transform
from tests.structures.gpu import DEVICE

KINDS = ("circulant", "skew_circulant", "toeplitz", "symmetric_toeplitz")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
QUICK = {  # of m, n: the tile of 256 = 16 x 16 is full, that of 250 = 10 x 25 is padded
    "full": (256, 256),
    "padded": (250, 250),
    "wide": (96, 256),
    "tall": (250, 120),
}
SHAPES = QUICK | {
    f"{m}x{n}": (m, n) for m, n in ((384, 384), (768, 768), (1024, 1024), (4096, 4096), (3072, 768), (768, 3072))
}
TERMS, TOKENS, ALPHA = 2, 5, 0.5  # the last token has no neighbour


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double().cpu() - wanted).norm() / wanted.norm())


def dense(kind: str, c: Tensor, m: int, n: int) -> Tensor:
    column = c.numpy()
    rows = {
        "circulant": lambda: linalg.circulant(column),
        "skew_circulant": lambda: linalg.toeplitz(column, [column[0], *-column[:0:-1]]),
        "toeplitz": lambda: linalg.toeplitz(column[n - 1 :], column[n - 1 :: -1]),
        "symmetric_toeplitz": lambda: linalg.toeplitz(column),
    }
    return torch.tensor(rows[kind]()[:m, :n])


def diagonal_sums(kind: str, H: Tensor, size: int) -> Tensor:
    """Of each number of the generator, the sum of H where D holds it."""
    m, n = H.shape
    k = torch.arange(m).unsqueeze(1) - torch.arange(n)
    place = {"toeplitz": k + n - 1, "symmetric_toeplitz": k.abs()}.get(kind, k % size)
    H = torch.where(k < 0, -H, H) if kind == "skew_circulant" else H
    return torch.zeros(size, dtype=H.dtype).index_add_(0, place.flatten(), H.flatten())


class Case:
    """Factors and tokens of sizes that differ a lot, with what comes out in float64."""

    def __init__(self, kind: str, m: int, n: int, dtype: torch.dtype, factors: int = 2):
        generator = torch.Generator().manual_seed(m + 3 * n)
        size = m + n - 1 if kind == "toeplitz" else max(m, n)
        drawn = [torch.randn(TERMS, size, generator=generator) for _ in range(factors)]
        scales = torch.tensor([1e-3, 1.0, 30.0, 1e-2, 1.0]).unsqueeze(1)
        self.kind, self.m, self.n = kind, m, n
        self.factors = [factor.to(DEVICE) for factor in drawn]
        self.x = (torch.randn(TOKENS, n, generator=generator) * scales).to(dtype).to(DEVICE)
        self.g = (torch.randn(TOKENS, m, generator=generator) * scales.flip(0)).to(dtype).to(DEVICE)
        wide = [factor.double() for factor in drawn]
        D = ALPHA * dense(kind, torch.stack(wide).prod(dim=0).sum(dim=0), m, n)
        x, g = self.x.double().cpu(), self.g.double().cpu()
        self.y, self.dx, H = x @ D.T, g @ D, ALPHA * g.T @ x
        by_generator = diagonal_sums(kind, H, size)
        others = [wide[1], wide[0]] if factors == 2 else [torch.ones_like(wide[0])]
        self.gradients = [by_generator * other for other in others]


def bound(dtype: torch.dtype) -> float:
    """What the kernels promise: of the norm of all that is computed."""
    return 1e-5 if dtype == torch.float32 else 1e-3


def quick(shape: str, kind: str, dtype: torch.dtype) -> bool:
    """Of each small shape every dtype, with the kinds in turn."""
    places = list(SHAPES).index(shape) + DTYPES.index(dtype)
    return shape in QUICK and KINDS.index(kind) == places % len(KINDS)


CASES = [
    pytest.param(*case, marks=[] if quick(*case) else pytest.mark.slow, id="-".join(map(str, case)))
    for case in product(SHAPES, KINDS, DTYPES)
]


@pytest.mark.parametrize(("shape", "kind", "dtype"), CASES)
def test_products_and_gradients(shape, kind, dtype):
    m, n = SHAPES[shape]
    case = Case(kind, m, n, dtype)
    assert transform.supports(kind, m, n, dtype)
    # Added to float32, so that what rounds is the kernel and not the output.
    y, dx = torch.zeros(TOKENS, m, device=DEVICE), torch.zeros(TOKENS, n, device=DEVICE)
    transform.convolve(kind, case.factors, case.x, m, n, ALPHA, out=y)
    gradients = transform.backward(kind, case.factors, case.g, case.x, m, n, ALPHA, dx=dx)
    # Token by token, as their sizes differ by four orders.
    for found, wanted in zip([*y, *dx], [*case.y, *case.dx], strict=True):
        assert error(found, wanted) < bound(dtype)
    for found, wanted in zip(gradients, case.gradients, strict=True):
        assert error(found, wanted) < bound(dtype)


def test_output_is_added_to_between_its_neighbours_and_transposed():
    m, n = 96, 256
    case = Case("circulant", m, n, torch.float32, factors=1)
    known = transform.spectrum("circulant", case.factors, m, n)
    wide = torch.ones(TOKENS, 3 * m, device=DEVICE)
    transform.convolve("circulant", case.factors, case.x, m, n, ALPHA, out=wide[:, m : 2 * m], known=known)
    assert error(wide[:, m : 2 * m] - 1, case.y) < 1e-4  # where 1 is added to small numbers
    assert wide[:, :m].eq(1).all()
    assert wide[:, 2 * m :].eq(1).all()
    dx = transform.convolve("circulant", case.factors, case.g, m, n, ALPHA, transpose=True, known=known)
    assert error(dx, case.dx) < 1e-5


def test_gradients_alone_repeat_to_the_last_bit_and_are_right_beside_those_of_x():
    case = Case("toeplitz", 64, 64, torch.bfloat16, factors=1)
    alone, again = (transform.correlate("toeplitz", case.factors, case.g, case.x, 64, 64, ALPHA) for _ in range(2))
    dx = torch.zeros_like(case.x)
    both = transform.backward("toeplitz", case.factors, case.g, case.x, 64, 64, ALPHA, dx=dx)
    assert torch.equal(alone[0], again[0])
    assert error(alone[0], case.gradients[0]) < bound(torch.bfloat16)
    # Another compilation, which may fuse other multiplications with additions.
    assert error(both[0], case.gradients[0]) < bound(torch.bfloat16)


def test_zero_start_leaves_the_output_and_gives_a_gradient():
    case = Case("circulant", 64, 64, torch.bfloat16)
    first, second = torch.zeros_like(case.factors[0]), case.factors[1]
    y = case.g.clone()
    transform.convolve("circulant", [first, second], case.x, 64, 64, out=y)
    assert torch.equal(y, case.g)
    by_first, by_second = transform.correlate("circulant", [first, second], case.g, case.x, 64, 64, ALPHA)
    assert error(by_first, case.gradients[0]) < 1e-3
    assert by_second.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e-7, 6e4])
def test_largest_and_smallest_numbers_of_float16(dtype, size):
    """A constant token has all of its energy in one frequency, the largest number that a transform can give."""
    x = torch.full((2, 64), size, dtype=dtype, device=DEVICE)
    c = torch.full((1, 64), 1e-3, device=DEVICE)
    y = torch.zeros(2, 64, device=DEVICE)
    transform.convolve("circulant", [c], x, 64, 64, out=y)
    assert error(y, 64 * 1e-3 * x.double().cpu()) < bound(dtype)


def test_another_default_dtype_takes_no_digits():
    case = Case("toeplitz", 64, 64, torch.float32, factors=1)
    dx = torch.zeros(TOKENS, 64, device=DEVICE)
    torch.set_default_dtype(torch.bfloat16)
    try:
        [gradient] = transform.backward("toeplitz", case.factors, case.g, case.x, 64, 64, ALPHA, dx=dx)
    finally:
        torch.set_default_dtype(torch.float32)
    assert error(dx, case.dx) < 1e-5
    assert error(gradient, case.gradients[0]) < 1e-5


def test_no_tokens():
    c, none = torch.ones(1, 64, device=DEVICE), torch.ones(0, 64, device=DEVICE)
    assert transform.convolve("circulant", [c], none, 64, 64).shape == (0, 64)
    assert transform.correlate("circulant", [c], none, none, 64, 64)[0].eq(0).all()


def test_what_is_not_supported_is_refused_in_one_sentence():
    assert not transform.supports("circulant", 64, 64, torch.float64)
    assert not transform.supports("kronecker", 64, 64, torch.float32)
    assert not transform.supports("circulant", 197, 64, torch.float32)  # a prime
    assert not transform.supports("circulant", 8192, 8192, torch.float32)  # no tile
    c, x = torch.ones(1, 64, device=DEVICE), torch.ones(2, 64, device=DEVICE)
    with pytest.raises(ValueError, match=r"no kernel for circulant matrices of 197 x 64"):
        transform.convolve("circulant", [torch.ones(1, 197)], x, 197, 64)
    with pytest.raises(ValueError, match=r"has one or two factors of \(terms, 64\), given \[\(64,\)\]"):
        transform.convolve("circulant", [c[0]], x, 64, 64)
    with pytest.raises(ValueError, match=r"x must be \(2, 64\) with contiguous rows"):
        transform.convolve("circulant", [c], x.double(), 64, 64)
    with pytest.raises(ValueError, match=r"out must be \(2, 64\)"):
        transform.convolve("circulant", [c], x, 64, 64, out=torch.ones(2, 63))
