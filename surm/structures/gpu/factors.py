"""Products by a Kronecker product A kron B, one token's row as a matrix X (n1, n2): Y = A X B^T (paper appendix A.3).

Both products of a token, and in the backward pass all five, are made in one kernel, so that x and g are read once and
what lies between the products stays on the chip: memory is the limit, not the arithmetic.

Letters: T tokens, A (m1, n1), B (m2, n2), m = m1 m2, n = n1 n2, P parts of one size that share x. Tensor cores multiply
in tf32, to which operands are rounded here (to nearest, 2^-11; the hardware would cut them off), and whose range is
float32's, so that no scaling is needed; for float32 inputs three such products give float32's digits.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm.structures.gpu.launch import Launcher, blocks_of
from surm.structures.gpu.parts import chosen, pointers
from surm.structures.ways import MOST_PARTS

LARGEST = 64  # factor, in either direction: a tile of one token and the sums for both gradients stay in registers
SMALLEST = 16  # side of a matrix that tensor cores multiply; smaller factors are padded
LARGE = 4096  # entries of a token's matrix from which on the second line of each table holds


class Tiles(NamedTuple):
    """Tiles of tokens of a program, and its size.

    Attributes:
        entries: of a tile with its padding, in half precision; half as many in float32.
        warps: of a program.
        programs: never more, whatever the card, so that sums have one order.
    """

    entries: int
    warps: int
    programs: int


# By the size of a token's matrix, below `LARGE` and from there on. Larger tiles do not fit the registers: compiled for
# an H100, the gradients of factors of 32 x 32 spill 0.6 kB with 4096 entries, and nothing with 1024.
PRODUCT = (Tiles(4096, 4, 528), Tiles(8192, 8, 264))
GRADIENTS = (Tiles(1024, 2, 792), Tiles(4096, 8, 264))
WIDE_GRADIENTS = (Tiles(1024, 2, 1056), Tiles(4096, 8, 264))  # of float32
SUMMED = 32  # entries of the gradients whose partial sums one program adds up, as many at a time
TILE = (32, 128)  # of A kron B where it is written
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Parts = Sequence[Sequence[Tensor]]


@lru_cache(maxsize=256)
def supports(m1: int, n1: int, m2: int, n2: int, terms: int, parts: int, dtype: torch.dtype) -> bool:
    """Whether the kernels take such factors: one term, sides up to `LARGEST`, and not more padding than numbers."""
    fits = max(m1, n1, m2, n2) <= LARGEST
    little_padding = _padded(n1) * _padded(n2) <= 4 * n1 * n2 and _padded(m1) * _padded(m2) <= 4 * m1 * m2
    return terms == 1 and parts <= MOST_PARTS and fits and little_padding and dtype in DTYPES


def kronecker_product(factors: Parts, x: Tensor, alpha: float = 1.0, out: Tensor | None = None) -> Tensor:
    """alpha x (A kron B)^T of each part: x (T, n) -> (T, P m) in the dtype of x, added into `out` if that is given.

    One launch that reads x once for each part and writes y once. Last strides of x and `out` are 1; A and B are
    contiguous (m1, n1) and (m2, n2), or with a first dimension of 1.
    """
    constants, m, block, warps, programs = _product_plan(*_sides(factors), len(factors), x.dtype)
    tokens, parts = len(x), len(factors)
    y = x.new_empty(tokens, parts * m) if out is None else out
    if tokens:
        _product(
            (min(blocks_of(tokens, block), programs), parts, 1),
            (x, y, *pointers(factors)),
            (tokens, float(alpha)),
            (x.stride(0), y.stride(0), *constants, out is not None),
            num_warps=warps,
        )
    return y


def kronecker_gradients(
    factors: Parts, g: Tensor, x: Tensor, alpha: float = 1.0, dx: Tensor | None = None
) -> list[list[Tensor]]:
    """Gradients of A and B of each part, in their dtype; alpha g (A kron B) is added into dx (T, n) if that is given.

    g (T, P m), x (T, n). One launch that reads g and x once and dx once a part, and one that sums what the programs of
    the first leave, in a fixed order.
    """
    constants, sizes, block, warps, programs = _gradients_plan(*_sides(factors), len(factors), x.dtype)
    tokens, parts, size = len(x), len(factors), sizes[0] + sizes[1]
    programs = max(1, min(blocks_of(tokens, block), programs))
    partials = torch.empty(programs, parts, size, dtype=torch.float32, device=x.device)
    _gradients(
        (programs, 1, 1),
        (x, g, dx, partials, *pointers(factors)),
        (tokens, float(alpha)),
        (x.stride(0), g.stride(0), 0 if dx is None else dx.stride(0), *constants, dx is not None),
        num_warps=warps,
    )
    gradients = [[torch.empty_like(A), torch.empty_like(B)] for A, B in factors]
    _sum_partials(
        (blocks_of(size, SUMMED), parts, 1),
        (partials, *pointers(gradients)),
        (programs, float(alpha)),
        (*sizes, parts, SUMMED),
        num_warps=4,
    )
    return gradients


def kronecker_form(
    factors: Parts, alpha: float = 1.0, weight: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """W + alpha (A kron B), or alpha (A kron B), of each part: (P m, n) in `dtype`, in one launch; W of any strides."""
    m1, n1, m2, n2 = _sides(factors)
    m, n, parts = m1 * m2, n1 * n2, len(factors)
    out = torch.empty(parts * m, n, dtype=dtype, device=factors[0][0].device)
    weighted = (False, 0, 0) if weight is None else (True, *weight.stride())
    rows, columns = TILE
    _form(
        (blocks_of(n, columns), blocks_of(m, rows), parts),
        (out, weight, *pointers(factors)),
        (float(alpha),),
        (m, n, m2, n1, n2, *weighted, parts, rows, columns),
        num_warps=4,
    )
    return out


def _sides(factors: Parts) -> tuple[int, int, int, int]:
    A, B = factors[0]
    return *A.shape[-2:], *B.shape[-2:]


def _padded(side: int) -> int:
    return int(max(SMALLEST, triton.next_power_of_2(side)))


@lru_cache(maxsize=256)
def _product_plan(
    m1: int, n1: int, m2: int, n2: int, parts: int, dtype: torch.dtype
) -> tuple[tuple[object, ...], int, int, int, int]:
    """Constants of the kernel, m, tokens of a tile, warps of a program, and most programs."""
    block, warps, programs = _sizes(PRODUCT, m1, n1, m2, n2, dtype)
    return _constants(m1, n1, m2, n2, parts, block, dtype), m1 * m2, block, warps, programs


@lru_cache(maxsize=256)
def _gradients_plan(
    m1: int, n1: int, m2: int, n2: int, parts: int, dtype: torch.dtype
) -> tuple[tuple[object, ...], tuple[int, int], int, int, int]:
    """Constants of the kernel, sizes of A and B, tokens of a tile, warps of a program, and most programs."""
    table = WIDE_GRADIENTS if dtype == torch.float32 else GRADIENTS
    block, warps, programs = _sizes(table, m1, n1, m2, n2, dtype)
    return _constants(m1, n1, m2, n2, parts, block, dtype), (m1 * n1, m2 * n2), block, warps, programs


def _sizes(table: tuple[Tiles, Tiles], m1: int, n1: int, m2: int, n2: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Tokens of a tile, warps of a program, and most programs."""
    largest = max(_padded(n1) * _padded(n2), _padded(n1) * _padded(m2), _padded(m1) * _padded(m2))
    entries, warps, programs = table[largest >= LARGE]
    return max(1, entries // (largest * (2 if dtype == torch.float32 else 1))), warps, programs


def _constants(m1: int, n1: int, m2: int, n2: int, parts: int, block: int, dtype: torch.dtype) -> tuple[object, ...]:
    padded = tuple(map(_padded, (m1, n1, m2, n2)))
    return (m1, n1, m2, n2, *padded, parts, block, "tf32x3" if dtype == torch.float32 else "tf32")


@triton.jit
def _rounded(x, PRECISION: tl.constexpr):
    """To the nearest tf32, ties to even; NaN, whose bits could run over, stays."""
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0xFFF + ((bits >> 13) & 1)) & -8192
        return tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    else:
        return x


@triton.jit
def _matrix(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    loaded = tl.load(pointer + i * columns + j, mask=(i < rows) & (j < columns), other=0.0)
    return _rounded(loaded.to(tl.float32), PRECISION)


@triton.jit
def _places(t, tokens, stride, rows, columns, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets and mask of a tile of tokens as matrices (BLOCK, ROWS, COLUMNS)."""
    t = t[:, None, None]
    i, j = tl.arange(0, ROWS)[None, :, None], tl.arange(0, COLUMNS)[None, None, :]
    return t.to(tl.int64) * stride + i * columns + j, (t < tokens) & (i < rows) & (j < columns)


# Of three indices (token, row, column), the two that a product does not sum over, or does, are made neighbours by a
# permutation, so that all products are of matrices. The last index often stays where it was read.


@triton.jit(do_not_specialize=["tokens"])
def _product_kernel(
    x, y, a0, a1, a2, a3, b0, b1, b2, b3, tokens, alpha, x_row, y_row,
    m1: tl.constexpr, n1: tl.constexpr, m2: tl.constexpr, n2: tl.constexpr,
    M1: tl.constexpr, N1: tl.constexpr, M2: tl.constexpr, N2: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    A = _matrix(chosen(a0, a1, a2, a3, part, PARTS), m1, n1, M1, N1, PRECISION)
    B = tl.trans(_matrix(chosen(b0, b1, b2, b3, part, PARTS), m2, n2, M2, N2, PRECISION))
    y += part * m1 * m2
    for tile in range(tl.program_id(0), tl.cdiv(tokens, BLOCK), tl.num_programs(0)):
        t = tile * BLOCK + tl.arange(0, BLOCK)
        at, inside = _places(t, tokens, x_row, n1, n2, BLOCK, N1, N2)
        X = tl.reshape(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), (BLOCK * N1, N2))
        Z = _rounded(tl.dot(_rounded(X, PRECISION), B, input_precision=PRECISION), PRECISION)
        Z = tl.reshape(tl.permute(tl.reshape(Z, (BLOCK, N1, M2)), (1, 0, 2)), (N1, BLOCK * M2))
        Y = alpha * tl.dot(A, Z, input_precision=PRECISION)
        Y = tl.permute(tl.reshape(Y, (M1, BLOCK, M2)), (1, 0, 2))
        at, inside = _places(t, tokens, y_row, m1, m2, BLOCK, M1, M2)
        if ADDED:
            Y += tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + at, Y.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _gradients_kernel(
    x, g, dx, partials, a0, a1, a2, a3, b0, b1, b2, b3, tokens, alpha, x_row, g_row, dx_row,
    m1: tl.constexpr, n1: tl.constexpr, m2: tl.constexpr, n2: tl.constexpr,
    M1: tl.constexpr, N1: tl.constexpr, M2: tl.constexpr, N2: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, NEEDS_X: tl.constexpr,
):  # fmt: skip
    """With U = A^T G: dX = U B; with Z = X B^T: dA = sum_t G Z^T, dB = sum_t U^T X. One part after the other."""
    for part in range(PARTS):
        A = tl.trans(_matrix(chosen(a0, a1, a2, a3, part, PARTS), m1, n1, M1, N1, PRECISION))
        B = _matrix(chosen(b0, b1, b2, b3, part, PARTS), m2, n2, M2, N2, PRECISION)
        dA = tl.zeros((M1, N1), tl.float32)
        dB = tl.zeros((M2, N2), tl.float32)
        for tile in range(tl.program_id(0), tl.cdiv(tokens, BLOCK), tl.num_programs(0)):
            t = tile * BLOCK + tl.arange(0, BLOCK)
            at, inside = _places(t, tokens, x_row, n1, n2, BLOCK, N1, N2)
            X = tl.reshape(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), (BLOCK * N1, N2))
            X = _rounded(X, PRECISION)
            at, inside = _places(t, tokens, g_row, m1, m2, BLOCK, M1, M2)
            G = tl.load(g + part * m1 * m2 + at, mask=inside, other=0.0).to(tl.float32)
            G = _rounded(tl.reshape(tl.permute(G, (1, 0, 2)), (M1, BLOCK * M2)), PRECISION)
            Z = _rounded(tl.dot(X, tl.trans(B), input_precision=PRECISION), PRECISION)
            Z = tl.reshape(tl.permute(tl.reshape(Z, (BLOCK, N1, M2)), (0, 2, 1)), (BLOCK * M2, N1))
            dA = tl.dot(G, Z, dA, input_precision=PRECISION)
            U = _rounded(tl.dot(A, G, input_precision=PRECISION), PRECISION)
            U = tl.reshape(tl.permute(tl.reshape(U, (N1, BLOCK, M2)), (1, 0, 2)), (BLOCK * N1, M2))
            dB = tl.dot(tl.trans(U), X, dB, input_precision=PRECISION)
            if NEEDS_X:
                dX = alpha * tl.reshape(tl.dot(U, B, input_precision=PRECISION), (BLOCK, N1, N2))
                at, inside = _places(t, tokens, dx_row, n1, n2, BLOCK, N1, N2)
                dX += tl.load(dx + at, mask=inside, other=0.0).to(tl.float32)
                tl.store(dx + at, dX.to(dx.dtype.element_ty), mask=inside)
        own = partials + (tl.program_id(0) * PARTS + part) * (m1 * n1 + m2 * n2)
        i, j = tl.arange(0, M1)[:, None], tl.arange(0, N1)[None, :]
        tl.store(own + i * n1 + j, dA, mask=(i < m1) & (j < n1))
        i, j = tl.arange(0, M2)[:, None], tl.arange(0, N2)[None, :]
        tl.store(own + m1 * n1 + i * n2 + j, dB, mask=(i < m2) & (j < n2))
        if NEEDS_X:
            tl.debug_barrier()  # the next part adds to what this one has written


@triton.jit(do_not_specialize=["programs"])
def _sum_kernel(
    partials, da0, da1, da2, da3, db0, db1, db2, db3, programs, alpha, size1, size2,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    size = size1 + size2
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, programs, COLUMNS):  # many at a time, as one after the other would wait for the memory
        program = (start + tl.arange(0, COLUMNS))[:, None]
        inside = (program < programs) & (k < size)[None, :]
        total += tl.sum(
            tl.load(partials + (program * PARTS + part) * size + k[None, :], mask=inside, other=0.0), axis=0
        )
    total *= alpha
    da = chosen(da0, da1, da2, da3, part, PARTS)
    db = chosen(db0, db1, db2, db3, part, PARTS)
    tl.store(da + k, total.to(da.dtype.element_ty), mask=k < size1)
    tl.store(db + k - size1, total.to(db.dtype.element_ty), mask=(k >= size1) & (k < size))


@triton.jit
def _form_kernel(
    out, w, a0, a1, a2, a3, b0, b1, b2, b3, alpha, m, n, m2, n1, n2, WEIGHTED: tl.constexpr, w_row, w_column,
    PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(2)
    i = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    j = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (i < m) & (j < n)
    a = tl.load(chosen(a0, a1, a2, a3, part, PARTS) + i // m2 * n1 + j // n2, mask=inside, other=0.0)
    b = tl.load(chosen(b0, b1, b2, b3, part, PARTS) + i % m2 * n2 + j % n2, mask=inside, other=0.0)
    D = alpha * (a.to(tl.float32) * b.to(tl.float32))
    row = (part * m + i).to(tl.int64)
    if WEIGHTED:
        D += tl.load(w + row * w_row + j.to(tl.int64) * w_column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + j, D.to(out.dtype.element_ty), mask=inside)


_product, _gradients = Launcher(_product_kernel), Launcher(_gradients_kernel)
_sum_partials, _form = Launcher(_sum_kernel), Launcher(_form_kernel)
