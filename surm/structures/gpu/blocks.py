"""Gradients of matrices made of diagonals from g and x, without H = g^T x in memory.

H is made in blocks of B x B. Blocks (I, J) with the same I - J have their diagonals in the same places, so that one
program adds all of them up, as one long product over I and the tokens, and only their sum is written. For float32 that
product is made of three in tf32 on the tensor cores, which have float32's digits; cuBLAS does not use them for float32.

Letters: T tokens, m outputs, n inputs, K = max(m, n), P parts that share x, N = ceil(K / B).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm.structures.gpu.form import (
    COLUMNS,
    DTYPES,
    SINGLE,
    SKEW_CIRCULANT,
    SYMMETRIC,
    TOEPLITZ,
    Factors,
    product_rule,
)
from surm.structures.gpu.parts import MOST_PARTS

BLOCK, TOKENS, WARPS, STAGES = 64, 32, 4, 3
FLOAT32 = "tf32x3"  # how float32 is multiplied
PROGRAMS = 264  # two for each multiprocessor of an H100; fixed, so that sums have the same order on every card


def supports(kind: str, parts: int, dtype: torch.dtype) -> bool:
    return kind in SINGLE and parts <= MOST_PARTS and dtype in DTYPES


def gradients_by_blocks(
    kind: str, factors: Factors, g: Tensor, x: Tensor, m: int, alpha: float = 1.0
) -> list[list[Tensor]]:
    """alpha times the gradients of all parameters, part by part, in their dtype: g (T, P m), x (T, n).

    Three launches, 2 T P m n operations, and 8 B K floats a split of the tokens in memory. Last strides are 1.
    """
    parts, (tokens, n), size = len(factors), x.shape, factors[0][0].shape[1]
    blocks = triton.cdiv(max(m, n), BLOCK)
    splits = max(1, min(PROGRAMS // (blocks * parts), triton.cdiv(tokens, 4 * TOKENS)))
    length = triton.cdiv(triton.cdiv(tokens, splits), TOKENS) * TOKENS
    sums = torch.empty(splits, parts, 2, blocks, BLOCK, BLOCK, dtype=torch.float32, device=x.device)
    _block_sums[(blocks, splits, parts)](
        g,
        x,
        sums,
        tokens,
        m,
        n,
        g.stride(0),
        x.stride(0),
        length,
        BLOCK=BLOCK,
        TOKENS=TOKENS,
        PRECISION=FLOAT32 if x.dtype == torch.float32 else "tf32",
        num_warps=WARPS,
        num_stages=STAGES,
    )
    partials = torch.empty(splits, parts, size, dtype=torch.float32, device=x.device)
    columns = min(COLUMNS, 4096 // BLOCK)
    _sums_along[(triton.cdiv(size, columns), splits, parts)](
        sums, partials, m, n, size, blocks, KIND=SINGLE[kind], BLOCK=BLOCK, COLUMNS=columns
    )
    return product_rule(factors, partials, alpha)


@triton.jit
def _block_sums(
    g, x, sums, tokens, m, n, g_row, x_row, length,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of the blocks with I - J = shift, and of those with I - J = shift - N, over a split of the tokens.

    Together they are as many for each shift, so that all programs take as long.
    """
    shift, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks, down, across = tl.num_programs(0), tl.cdiv(m, BLOCK), tl.cdiv(n, BLOCK)
    g += part * m
    first, last = split * length, tl.minimum(tokens, split * length + length)
    at = (split * tl.num_programs(2) + part).to(tl.int64) * 2 * blocks + shift
    inner = tl.arange(0, BLOCK)
    own = sums + at * BLOCK * BLOCK + inner[:, None] * BLOCK + inner[None, :]
    below = _sum_of_products(
        g, x, shift, tl.minimum(down, shift + across), shift, first, last, m, n, g_row, x_row, BLOCK, TOKENS, PRECISION
    )
    tl.store(own, below)
    above = _sum_of_products(
        g, x, 0, tl.minimum(down, shift - blocks + across), shift - blocks, first, last, m, n, g_row, x_row,
        BLOCK, TOKENS, PRECISION,
    )  # fmt: skip
    tl.store(own + blocks * BLOCK * BLOCK, above)


@triton.jit
def _sum_of_products(
    g, x, start, stop, shift, first, last, m, n, g_row, x_row,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    inner = tl.arange(0, BLOCK)
    for block in range(start, stop):
        i, j = block * BLOCK + inner, (block - shift) * BLOCK + inner
        for token in range(first, last, TOKENS):
            t = (token + tl.arange(0, TOKENS))[:, None].to(tl.int64)
            G = tl.load(g + t * g_row + i[None, :], mask=(t < last) & (i < m)[None, :], other=0.0)
            X = tl.load(x + t * x_row + j[None, :], mask=(t < last) & (j < n)[None, :], other=0.0)
            total = tl.dot(tl.trans(G.to(tl.float32)), X.to(tl.float32), total, input_precision=PRECISION)
    return total


@triton.jit
def _sums_along(
    sums, partials, m, n, size, blocks, KIND: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """For a split of the tokens and a few entries k of the generator: the sum over the diagonals that k stands at."""
    split, part = tl.program_id(1), tl.program_id(2)
    which = split * tl.num_programs(2) + part
    sums += which.to(tl.int64) * 2 * blocks * BLOCK * BLOCK
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if KIND == TOEPLITZ:
        total = _along(sums, k - n + 1, k < size, blocks, BLOCK)
    elif KIND == SYMMETRIC:
        total = _along(sums, k, k < m, blocks, BLOCK) + _along(sums, -k, (k > 0) & (k < n), blocks, BLOCK)
    else:
        above = _along(sums, k - size, (k > size - n) & (k < size), blocks, BLOCK)
        if KIND == SKEW_CIRCULANT:
            above = -above
        total = _along(sums, k, k < m, blocks, BLOCK) + above
    tl.store(partials + which * size + k, total, mask=k < size)


@triton.jit
def _along(sums, d, wanted, blocks, BLOCK: tl.constexpr):
    """The sums along the diagonals d = i - j of H, each of which passes through two of the summed blocks."""
    a = tl.arange(0, BLOCK)[:, None]
    d = d[None, :] + blocks * BLOCK  # not negative, as division would round towards zero
    place, offset = d // BLOCK, d % BLOCK
    place += tl.where(a < offset, 1, 0) - blocks  # I - J of the block that row a of the diagonal lies in
    b = (a + BLOCK - offset) % BLOCK
    inside = wanted[None, :] & (place < blocks)
    place = tl.where(place < 0, place + 2 * blocks, place)  # those above stand behind those below
    return tl.sum(tl.load(sums + (place * BLOCK + a) * BLOCK + b, mask=inside, other=0.0), axis=0)
