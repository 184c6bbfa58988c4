"""Matrices made of diagonals: written in one launch from the parameters, and their gradients from H = g^T x.

Letters: m outputs, n inputs, K = max(m, n), r terms, P parts of one size, one below the other, as a fused layer's
queries, keys and values are. `factors` has for each part its parameters as the structure keeps them; products over two
parameters and sums over terms are made in the kernels.

| kind | parameters of a part | D |
|---|---|---|
| circulant | r1, r2 (r, K), or c (r, K) alone | D[i, j] = c[(i - j) mod K], c = sum_t r1_t r2_t, or sum_t c_t |
| skew_circulant | the same | the same, negated where i < j |
| toeplitz | t (r, m + n - 1) | D[i, j] = sum_t t[i - j + n - 1] |
| symmetric_toeplitz | t (r, K) | D[i, j] = sum_t t[abs(i - j)] |
| toeplitz_pair, symmetric_toeplitz_pair | t1, t2 | sum_t T1_t T2_t, (m, K) and (K, n), of the two kinds above |
| ldr | G, H (r, K) | D = sum_t Z_1(g_t) Z_{-1}(h_t), a circulant (m, K) times a skew-circulant (K, n) |

All sums are in float32 and in a fixed order, so that a run repeats digit for digit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm.structures.gpu.launch import Launcher, blocks_of
from surm.structures.gpu.parts import chosen, pointers
from surm.structures.ways import MOST_PARTS

Factors = Sequence[Sequence[Tensor]]

CIRCULANT, SKEW_CIRCULANT, TOEPLITZ, SYMMETRIC = (tl.constexpr(number) for number in range(4))
SINGLE = {"circulant": 0, "skew_circulant": 1, "toeplitz": 2, "symmetric_toeplitz": 3}
PAIRS = {
    "toeplitz_pair": ("toeplitz", "toeplitz"),
    "symmetric_toeplitz_pair": ("symmetric_toeplitz", "symmetric_toeplitz"),
    "ldr": ("circulant", "skew_circulant"),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE, WARPS = (32, 128), 4  # of D, rows x columns


class Sums(NamedTuple):
    """How a program adds up along diagonals.

    Attributes:
        strip: rows of H that a program sums; where all are in one strip, it ends with the parameters' gradients.
        rows: of them at a time.
        diagonals: neighbours that a program sums along.
        warps: of a program.
    """

    strip: int
    rows: int
    diagonals: int
    warps: int


LOW, HIGH = Sums(1024, 256, 16, 8), Sums(32, 32, 128, 4)  # for H of at most 1024 rows, and of more
SUMMED = 32  # diagonals whose partial sums one program adds up, as many at a time


def supports(kind: str, factors: Factors, dtype: torch.dtype) -> bool:
    """Whether `form` and `diagonal_gradients` take these; what they refuse goes the plain way."""
    first = factors[0]
    same = all(
        tensor.shape == like.shape and tensor.dtype == first[0].dtype and tensor.is_contiguous()
        for part in factors
        for tensor, like in zip(part, first, strict=True)
    )
    known = kind in SINGLE or kind in PAIRS
    return known and same and len(factors) <= MOST_PARTS and dtype in DTYPES and first[0].dtype in DTYPES


def form(
    kind: str,
    factors: Factors,
    m: int,
    n: int,
    alpha: float = 1.0,
    weight: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """W + alpha D, or alpha D: (P m, n) in `dtype`, rounded once.

    One launch; for pairs one more and a product of 2 r K P m n operations, whose operands are in `dtype`.

    Args:
        weight: W (P m, n), of any strides and floating-point dtype.
    """
    if kind in PAIRS:
        T1, T2 = form_pair(kind, factors, m, n, dtype)
        return _sum_of_products(T1, T2, alpha, weight, dtype)
    parts, first = len(factors), factors[0][0]
    out = torch.empty(parts * m, n, dtype=dtype, device=first.device)
    rows, columns = TILE
    weighted = (False, 0, 0) if weight is None else (True, *weight.stride())
    _form(
        (blocks_of(n, columns), blocks_of(m, rows), parts),
        (out, weight, *pointers(factors)),
        (float(alpha),),
        (m, n, *first.shape, *weighted, SINGLE[kind], len(factors[0]) == 2, parts, rows, columns),
        num_warps=WARPS,
    )
    return out


def _sum_of_products(T1: Tensor, T2: Tensor, alpha: float, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    parts, m, _ = T1.shape
    n = T2.shape[-1]
    if weight is not None and weight.dtype == dtype:
        out = torch.baddbmm(weight.view(parts, m, n), T1, T2, alpha=alpha)
    else:
        out = torch.bmm(T1, T2)
        if alpha != 1:
            out.mul_(alpha)
        if weight is not None:
            out = weight.view(parts, m, n).to(dtype) + out
    return out.view(parts * m, n)


def form_pair(kind: str, factors: Factors, m: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """T1 (P, m, r K) and T2 (P, r K, n), terms side by side, so that D = T1 T2; one launch."""
    parts, (first, second) = len(factors), factors[0]
    terms, K = first.shape[0], max(m, n)
    T1 = torch.empty(parts, m, terms * K, dtype=dtype, device=first.device)
    T2 = torch.empty(parts, terms * K, n, dtype=dtype, device=first.device)
    rows, columns = TILE
    tiles = max(
        blocks_of(m, rows) * blocks_of(K, columns),
        blocks_of(K, rows) * blocks_of(n, columns),
    )
    one, two = PAIRS[kind]
    _form_pair(
        (tiles, 2, parts * terms),
        (T1, T2, *pointers(factors)),
        (),
        (m, n, K, first.shape[1], second.shape[1], SINGLE[one], SINGLE[two], terms, parts, rows, columns),
        num_warps=WARPS,
    )
    return T1, T2


def diagonal_gradients(
    kind: str,
    factors: Factors,
    H: Tensor,
    m: int,
    n: int,
    alpha: float = 1.0,
    pair: tuple[Tensor, Tensor] | None = None,
) -> list[list[Tensor]]:
    """alpha times the gradients of all parameters, part by part, in their dtype: the adjoint of `form` at H (P m, n).

    One launch, or two for many rows; for pairs twice as many and two products of 2 r K P m n operations each.

    Args:
        H: g^T x, in any dtype of `DTYPES`; its last stride is 1.
        pair: what `form_pair` gives in the dtype of H, if it is there already.
    """
    gradients = [[torch.empty_like(factor) for factor in part] for part in factors]
    if kind not in PAIRS:
        _sums(kind, factors, gradients, H, (m * H.stride(0), 0), 1, m, n, len(factors[0]) == 2, alpha)
        return gradients
    T1, T2 = pair or form_pair(kind, factors, m, n, H.dtype)
    (one, two), K, terms, H = PAIRS[kind], max(m, n), factors[0][0].shape[0], H.view(len(factors), m, n)
    H1, H2 = torch.bmm(H, T2.mT), torch.bmm(T1.mT, H)
    firsts, seconds = ([part[:1] for part in gradients], [part[1:] for part in gradients])
    _sums(one, None, firsts, H1[0], (H1.stride(0), K), terms, m, K, False, alpha)
    _sums(two, None, seconds, H2[0], (H2.stride(0), K * n), terms, K, n, False, alpha)
    return gradients


def _sums(
    kind: str,
    factors: Factors | None,
    gradients: Factors,
    H: Tensor,
    strides: tuple[int, int],
    matrices: int,
    m: int,
    n: int,
    product: bool,
    alpha: float,
) -> None:
    """Write the gradients of the parameters from sums along the diagonals of H.

    Args:
        factors: the parameters, where the generator is a sum of products of two.
        gradients: of each part, one for each parameter.
        strides: from the H of a part to that of the next one, and from the H of a term to that of the next one.
        matrices: number of terms that have an H of their own; with one H for all of them it is 1.
    """
    parts, (terms, size) = len(gradients), gradients[0][0].shape
    how = LOW if m <= LOW.strip else HIGH
    strips, groups = blocks_of(m, how.strip), parts * matrices
    partials = None
    if strips > 1:
        partials = torch.empty(strips, groups, size, dtype=torch.float32, device=H.device)
    own, of = pointers(factors if product and factors else gradients), pointers(gradients)
    shared = terms // matrices  # terms that have one H
    _diagonal_sums(
        (blocks_of(size, how.diagonals), strips, groups),
        (H, partials, *own, *of),
        (float(alpha),),
        (m, n, size, H.stride(0), *strides, matrices, SINGLE[kind], product, shared, parts, strips == 1, *how[:3]),
        num_warps=how.warps,
    )
    if partials is not None:
        _product_rule(
            (blocks_of(size, SUMMED), groups, 1),
            (partials, *own, *of),
            (float(alpha),),
            (size, strips, matrices, product, shared, parts, SUMMED),
            num_warps=4,
        )


@triton.jit
def _index(d, n, size, KIND: tl.constexpr):
    """Position in the generator of the diagonal d = i - j of a matrix with n columns."""
    if KIND == TOEPLITZ:
        return d + n - 1
    elif KIND == SYMMETRIC:
        return tl.abs(d)
    else:
        return tl.where(d < 0, d + size, d)


@triton.jit
def _entries(first, second, d, inside, n, size, KIND: tl.constexpr, PRODUCT: tl.constexpr, TERMS: tl.constexpr):
    """Entries of D on the diagonals d, summed over the terms, in float32."""
    at = _index(d, n, size, KIND)
    total = tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    if PRODUCT:
        total *= tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    for term in range(1, TERMS):
        value = tl.load(first + term * size + at, mask=inside, other=0.0).to(tl.float32)
        if PRODUCT:
            value *= tl.load(second + term * size + at, mask=inside, other=0.0).to(tl.float32)
        total += value
    if KIND == SKEW_CIRCULANT:
        total = tl.where(d < 0, -total, total)
    return total


@triton.jit
def _form_kernel(
    out, w, a0, a1, a2, a3, b0, b1, b2, b3, alpha, m, n, TERMS: tl.constexpr, size, WEIGHTED: tl.constexpr, w_row,
    w_column, KIND: tl.constexpr, PRODUCT: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of W + alpha D. Neighbours in a row read neighbours in the generator: the cache has them."""
    part = tl.program_id(2)
    i = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    j = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (i < m) & (j < n)
    first = chosen(a0, a1, a2, a3, part, PARTS)
    second = chosen(b0, b1, b2, b3, part, PARTS)
    D = alpha * _entries(first, second, i - j, inside, n, size, KIND, PRODUCT, TERMS)
    row = (part * m + i).to(tl.int64)
    if WEIGHTED:
        D += tl.load(w + row * w_row + j.to(tl.int64) * w_column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + j, D.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _form_pair_kernel(
    T1, T2, a0, a1, a2, a3, b0, b1, b2, b3, m, n, K, size1, size2,
    KIND1: tl.constexpr, KIND2: tl.constexpr, TERMS: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of T1_t (m, K) or T2_t (K, n)."""
    part, term = tl.program_id(2) // TERMS, tl.program_id(2) % TERMS
    if tl.program_id(1) == 0:
        base = T1 + part.to(tl.int64) * m * TERMS * K + term * K
        own = chosen(a0, a1, a2, a3, part, PARTS) + term * size1
        _write_tile(base, own, m, K, TERMS * K, size1, KIND1, ROWS, COLUMNS)
    else:
        base = T2 + (part * TERMS + term).to(tl.int64) * K * n
        own = chosen(b0, b1, b2, b3, part, PARTS) + term * size2
        _write_tile(base, own, K, n, n, size2, KIND2, ROWS, COLUMNS)


@triton.jit
def _write_tile(
    out, generator, m, n, stride, size, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    across = tl.cdiv(n, COLUMNS)
    i = (tl.program_id(0) // across * ROWS + tl.arange(0, ROWS))[:, None]
    j = (tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (i < m) & (j < n)
    T = _entries(generator, generator, i - j, inside, n, size, KIND, False, 1)
    tl.store(out + i.to(tl.int64) * stride + j, T.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sums_kernel(
    H, partials, a0, a1, a2, a3, b0, b1, b2, b3, da0, da1, da2, da3, db0, db1, db2, db3, alpha,
    m, n, size, stride, part_stride, term_stride, matrices,
    KIND: tl.constexpr, PRODUCT: tl.constexpr, TERMS: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    STRIP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """For a strip of rows and a few entries k of the generator: the sum over the entries of H that k stands at.

    Row i is read from j = i - k on, so that diagonals are columns of the tile and loads of a row are neighbours.
    """
    strip, which = tl.program_id(1), tl.program_id(2)
    part, term = which // matrices, which % matrices
    H += part.to(tl.int64) * part_stride + term.to(tl.int64) * term_stride
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(strip * STRIP, tl.minimum(m, strip * STRIP + STRIP), ROWS):
        i = (first + tl.arange(0, ROWS))[:, None]
        start = H + i.to(tl.int64) * stride
        known = (i < m) & (k < size)[None, :]
        if KIND == TOEPLITZ:
            j = i - k[None, :] + n - 1
            tile = tl.load(start + j, mask=known & (j >= 0) & (j < n), other=0.0).to(tl.float32)
        elif KIND == SYMMETRIC:
            below, above = i - k[None, :], i + k[None, :]
            tile = tl.load(start + below, mask=known & (below >= 0) & (below < n), other=0.0).to(tl.float32)
            tile += tl.load(start + above, mask=known & (above < n) & (k > 0)[None, :], other=0.0).to(tl.float32)
        else:
            d = i - k[None, :]
            j = tl.where(d < 0, d + size, d)
            tile = tl.load(start + j, mask=known & (j < n), other=0.0).to(tl.float32)
            if KIND == SKEW_CIRCULANT:
                tile = tl.where(d < 0, -tile, tile)
        total += tl.sum(tile, axis=0)
    if WHOLE:
        _spread(
            alpha * total, k, size, term, chosen(a0, a1, a2, a3, part, PARTS), chosen(b0, b1, b2, b3, part, PARTS),
            chosen(da0, da1, da2, da3, part, PARTS), chosen(db0, db1, db2, db3, part, PARTS), PRODUCT, TERMS,
        )  # fmt: skip
    else:
        at = (strip * tl.num_programs(2) + which).to(tl.int64) * size + k
        tl.store(partials + at, total, mask=k < size)


@triton.jit
def _ends_kernel(
    partials, a0, a1, a2, a3, b0, b1, b2, b3, da0, da1, da2, da3, db0, db1, db2, db3, alpha, size, strips, matrices,
    PRODUCT: tl.constexpr, TERMS: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sum over strips, many at a time, as one after the other would wait for the memory each time."""
    which = tl.program_id(1)
    part, term = which // matrices, which % matrices
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, strips, COLUMNS):
        strip = (start + tl.arange(0, COLUMNS))[:, None]
        inside = (strip < strips) & (k < size)[None, :]
        at = partials + (strip * tl.num_programs(1) + which).to(tl.int64) * size + k[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0), axis=0)
    _spread(
        alpha * total, k, size, term, chosen(a0, a1, a2, a3, part, PARTS), chosen(b0, b1, b2, b3, part, PARTS),
        chosen(da0, da1, da2, da3, part, PARTS), chosen(db0, db1, db2, db3, part, PARTS), PRODUCT, TERMS,
    )  # fmt: skip


@triton.jit
def _spread(total, k, size, term, a, b, da, db, PRODUCT: tl.constexpr, TERMS: tl.constexpr):
    """The gradients of c = sum_t a_t b_t, or of each c_t where there is no b, for `TERMS` terms from `term` on."""
    for other in tl.static_range(TERMS):
        at = (term + other) * size + k
        if PRODUCT:
            first = total * tl.load(b + at, mask=k < size, other=0.0).to(tl.float32)
            second = total * tl.load(a + at, mask=k < size, other=0.0).to(tl.float32)
            tl.store(da + at, first.to(da.dtype.element_ty), mask=k < size)
            tl.store(db + at, second.to(db.dtype.element_ty), mask=k < size)
        else:
            tl.store(da + at, total.to(da.dtype.element_ty), mask=k < size)


_form, _form_pair = Launcher(_form_kernel), Launcher(_form_pair_kernel)
_diagonal_sums, _product_rule = Launcher(_sums_kernel), Launcher(_ends_kernel)
