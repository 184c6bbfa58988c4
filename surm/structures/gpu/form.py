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

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm.structures.gpu.parts import MOST_PARTS, chosen, pointers

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
STRIP, COLUMNS, SUM_WARPS = 32, 128, 4  # rows of H that one program sums, and how many diagonals
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
    w = out if weight is None else weight
    rows, columns = TILE
    _form[(triton.cdiv(n, columns), triton.cdiv(m, rows), parts)](
        out,
        w,
        *pointers(factors),
        m,
        n,
        first.shape[1],
        w.stride(0),
        w.stride(1),
        alpha,
        KIND=SINGLE[kind],
        PRODUCT=len(factors[0]) == 2,
        WEIGHTED=weight is not None,
        TERMS=first.shape[0],
        PARTS=parts,
        ROWS=rows,
        COLUMNS=columns,
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
    tiles = max(triton.cdiv(m, rows) * triton.cdiv(K, columns), triton.cdiv(K, rows) * triton.cdiv(n, columns))
    one, two = PAIRS[kind]
    _form_pair[(tiles, 2, parts * terms)](
        T1,
        T2,
        *pointers(factors),
        m,
        n,
        K,
        first.shape[1],
        second.shape[1],
        KIND1=SINGLE[one],
        KIND2=SINGLE[two],
        TERMS=terms,
        PARTS=parts,
        ROWS=rows,
        COLUMNS=columns,
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

    Two launches; for pairs four and two products of 2 r K P m n operations each.

    Args:
        H: g^T x, in any dtype of `DTYPES`; its last stride is 1.
        pair: what `form_pair` gives in the dtype of H, if it is there already.
    """
    if kind in PAIRS:
        T1, T2 = pair or form_pair(kind, factors, m, n, H.dtype)
        H = H.view(len(factors), m, n)
        return pair_gradients(kind, factors, torch.bmm(H, T2.mT), torch.bmm(T1.mT, H), m, n, alpha)
    size = factors[0][0].shape[1]
    partials = _partial_sums(kind, H, (m * H.stride(0), 0), len(factors), 1, m, n, size)
    return product_rule(factors, partials, alpha)


def product_rule(factors: Factors, partials: Tensor, alpha: float) -> list[list[Tensor]]:
    """alpha times the gradients of all parameters from parts (S, P, size) of that of the generators; one launch."""
    parts, first = len(factors), factors[0][0]
    size = first.shape[1]
    gradients = [[torch.empty_like(factor) for factor in part] for part in factors]
    _product_rule[(triton.cdiv(size, SUMMED), parts)](
        partials,
        *pointers(factors),
        *pointers(gradients),
        size,
        len(partials),
        alpha,
        PRODUCT=len(factors[0]) == 2,
        TERMS=first.shape[0],
        PARTS=parts,
        COLUMNS=SUMMED,
    )
    return gradients


def pair_gradients(
    kind: str, factors: Factors, H1: Tensor, H2: Tensor, m: int, n: int, alpha: float
) -> list[list[Tensor]]:
    """alpha times the gradients of a pair's parameters from those of T1, H1 (P, m, r K), and T2, H2 (P, r K, n)."""
    (one, two), (first, second) = PAIRS[kind], factors[0]
    parts, terms, K = len(factors), first.shape[0], max(m, n)
    strides1, strides2 = (H1.stride(0), K), (H2.stride(0), K * n)
    sums1 = _partial_sums(one, H1[0], strides1, parts, terms, m, K, first.shape[1])
    sums2 = _partial_sums(two, H2[0], strides2, parts, terms, K, n, second.shape[1])
    gradients = [[torch.empty_like(factor) for factor in part] for part in factors]
    largest = max(first.shape[1], second.shape[1])
    _sum_partials[(triton.cdiv(largest, SUMMED), 2, parts * terms)](
        sums1,
        sums2,
        *pointers(gradients),
        first.shape[1],
        second.shape[1],
        sums1.shape[0],
        sums2.shape[0],
        alpha,
        TERMS=terms,
        PARTS=parts,
        COLUMNS=SUMMED,
    )
    return gradients


def _partial_sums(
    kind: str, H: Tensor, strides: tuple[int, int], parts: int, terms: int, m: int, n: int, size: int
) -> Tensor:
    """For strips of rows of each H of a part and a term, the sums for each entry of the generator, in float32."""
    strips = triton.cdiv(m, STRIP)
    partials = torch.empty(strips, parts * terms, size, dtype=torch.float32, device=H.device)
    _diagonal_sums[(triton.cdiv(size, COLUMNS), strips, parts * terms)](
        H,
        partials,
        m,
        n,
        size,
        H.stride(0),
        *strides,
        terms,
        KIND=SINGLE[kind],
        ROWS=STRIP,
        COLUMNS=COLUMNS,
        num_warps=SUM_WARPS,
    )
    return partials


def pair_forward(
    kind: str, factors: Factors, x: Tensor, m: int, alpha: float = 1.0, out: Tensor | None = None
) -> Tensor:
    """alpha x D^T of a pair by its two factors, without D: x (T, n) -> (T, P m), added into `out` if that is given.

    One launch and P + 1 products of 2 r K T operations an entry of a row; `pair_pays` says when D is the cheaper way.
    """
    T1, T2 = form_pair(kind, factors, m, x.shape[1], x.dtype)
    z = x @ T2.flatten(0, 1).mT
    if out is None:
        out, beta = x.new_empty(len(x), len(factors) * m), 0
    else:
        beta = 1
    for part, z_part, own in zip(T1, z.chunk(len(factors), dim=1), out.split(m, dim=1), strict=True):
        own.addmm_(z_part, part.mT, beta=beta, alpha=alpha)
    return out


def pair_backward(
    kind: str, factors: Factors, g: Tensor, x: Tensor, m: int, alpha: float = 1.0, dx: Tensor | None = None
) -> list[list[Tensor]]:
    """The adjoint of `pair_forward`: the gradients of the parameters; alpha g D is added into dx (T, n), if given.

    z = x T2^T is computed again, so that nothing of the size of the tokens is kept.
    """
    parts, n = len(factors), x.shape[1]
    T1, T2 = form_pair(kind, factors, m, n, x.dtype)
    stacked = T2.flatten(0, 1)
    z, dz = x @ stacked.mT, x.new_empty(len(x), len(stacked))
    H1 = torch.empty_like(T1)
    width = T1.shape[-1]
    for part in range(parts):
        own, columns = g[:, part * m : part * m + m], slice(part * width, part * width + width)
        torch.mm(own, T1[part], out=dz[:, columns])
        torch.mm(own.mT, z[:, columns], out=H1[part])
    if dx is not None:
        dx.addmm_(dz, stacked, alpha=alpha)
    return pair_gradients(kind, factors, H1, (dz.mT @ x).view(T2.shape), m, n, alpha)


def pair_pays(rows: int, m: int, n: int, terms: int = 1) -> bool:
    """Whether a training step by the two factors takes fewer operations than one by D.

    In units of 2 r K: by the factors 2 products with `rows` tokens and 5 in the backward pass; by D as many as a dense
    matrix, and D itself twice, and its two gradients.
    """
    K = max(m, n)
    by_factors = rows * terms * K * (3 * m + 4 * n)
    by_matrix = 3 * rows * m * n + 4 * terms * K * m * n
    return by_factors < by_matrix


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
def _form(
    out, w, a0, a1, a2, a3, b0, b1, b2, b3, m, n, size, w_row, w_column, alpha,
    KIND: tl.constexpr, PRODUCT: tl.constexpr, WEIGHTED: tl.constexpr, TERMS: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
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
        D += tl.load(w + row * w_row + j * w_column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + j, D.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _form_pair(
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
def _diagonal_sums(
    H, partials, m, n, size, row, part_stride, term_stride, terms,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """For a strip of rows and a few entries k of the generator: the sum over the entries of H that k stands at.

    Row i is read from j = i - k on, so that diagonals are columns of the tile and loads of a row are neighbours.
    """
    strip, which = tl.program_id(1), tl.program_id(2)
    H += (which // terms).to(tl.int64) * part_stride + (which % terms).to(tl.int64) * term_stride
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    i = (strip * ROWS + tl.arange(0, ROWS))[:, None]
    start = H + i.to(tl.int64) * row
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
    at = (strip * tl.num_programs(2) + which).to(tl.int64) * size + k
    tl.store(partials + at, tl.sum(tile, axis=0), mask=k < size)


@triton.jit
def _total(partials, which, count, strips, size, k, COLUMNS: tl.constexpr):
    """The sum over strips, many at a time, as one after the other would wait for the memory each time."""
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, strips, COLUMNS):
        strip = (start + tl.arange(0, COLUMNS))[:, None]
        inside = (strip < strips) & (k < size)[None, :]
        total += tl.sum(tl.load(partials + (strip * count + which) * size + k[None, :], mask=inside, other=0.0), axis=0)
    return total


@triton.jit
def _product_rule(
    partials, a0, a1, a2, a3, b0, b1, b2, b3, da0, da1, da2, da3, db0, db1, db2, db3, size, strips, alpha,
    PRODUCT: tl.constexpr, TERMS: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of c = sum_t a_t b_t, or of each c_t where there is no b, from that of the generator."""
    part = tl.program_id(1)
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = alpha * _total(partials, part, PARTS, strips, size, k, COLUMNS)
    da = chosen(da0, da1, da2, da3, part, PARTS)
    if PRODUCT:
        a, b = chosen(a0, a1, a2, a3, part, PARTS), chosen(b0, b1, b2, b3, part, PARTS)
        db = chosen(db0, db1, db2, db3, part, PARTS)
    for term in range(TERMS):
        at = term * size + k
        if PRODUCT:
            first = total * tl.load(b + at, mask=k < size, other=0.0).to(tl.float32)
            second = total * tl.load(a + at, mask=k < size, other=0.0).to(tl.float32)
            tl.store(da + at, first.to(da.dtype.element_ty), mask=k < size)
            tl.store(db + at, second.to(db.dtype.element_ty), mask=k < size)
        else:
            tl.store(da + at, total.to(da.dtype.element_ty), mask=k < size)


@triton.jit
def _sum_partials(
    sums1, sums2, da0, da1, da2, da3, db0, db1, db2, db3, size1, size2, strips1, strips2, alpha,
    TERMS: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of a pair's two parameters."""
    which = tl.program_id(2)
    part, term = which // TERMS, which % TERMS
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if tl.program_id(1) == 0:
        own = chosen(da0, da1, da2, da3, part, PARTS) + term * size1 + k
        total = alpha * _total(sums1, which, PARTS * TERMS, strips1, size1, k, COLUMNS)
        tl.store(own, total.to(own.dtype.element_ty), mask=k < size1)
    else:
        own = chosen(db0, db1, db2, db3, part, PARTS) + term * size2 + k
        total = alpha * _total(sums2, which, PARTS * TERMS, strips2, size2, k, COLUMNS)
        tl.store(own, total.to(own.dtype.element_ty), mask=k < size2)
