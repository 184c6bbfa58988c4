"""Matrices of low displacement rank: sums of circulants times skew-circulants, and products of two Toeplitz matrices.

Down a diagonal such a matrix changes by the entries of a matrix of low rank q. With A (P, q, m) and B (P, q, n),

    D[i, j] = D[i - 1, j - 1] + A[:, i] . B[:, j],    D[-1, j - 1] = row[j - 1],    D[i - 1, -1] = column[i],

where row (P, n - 1) and column (P, m) stand outside of D, above it and to its left.

Rows are taken in blocks of b. From the row above a block, s + 1 steps down a diagonal lead to its row s:

    D[start + s, j] = D[start - 1, j - s - 1] + sum_{v = 0..s} A[:, start + s - v] . B[:, j - v].

The sum is a product of a matrix of m x (q b) with one of (q b) x n, for all blocks at once. The rows above the blocks
follow from each other by running sums along diagonals, of m / b rows only: a product with a triangle of ones, which
for many rows is faster than `cumsum`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from surm.structures.functional import fast_length, symmetric_diagonals
from surm.structures.kernels.diagonals import folded
from surm.structures.kernels.kernel import Kernel, Tensors
from surm.structures.kernels.shifts import (
    BLOCK,
    above_blocks,
    block_sums,
    in_blocks,
    outer,
    shifted,
    shifted_gradient,
    straight,
    with_room,
)


class Displacement(NamedTuple):
    """What D follows from by running sums down its diagonals, or the gradients of these four."""

    row: Tensor
    column: Tensor
    A: Tensor
    B: Tensor


def _blocks(given: Displacement) -> tuple[Tensor, Tensor]:
    """The two factors of the sums within blocks: (P, rows, q BLOCK) and (P, q BLOCK, n), rows a multiple of BLOCK."""
    parts, q, _ = given.A.shape
    n = given.B.shape[-1]
    left = shifted(pad(in_blocks(given.A), (BLOCK - 1, 0)), BLOCK).permute(0, 2, 4, 1, 3)
    right = shifted(pad(given.B, (BLOCK - 1, 0)), n)
    return left.reshape(parts, -1, q * BLOCK), right.reshape(parts, q * BLOCK, n)


def _dense(given: Displacement) -> Tensor:
    """D (P, m, n)."""
    parts, _, m = given.A.shape
    n = given.B.shape[-1]
    left, right = _blocks(given)
    blocks = left.shape[1] // BLOCK
    above, skewed = above_blocks(parts, blocks, n, given.A)
    # A diagonal starts in the first row or in the first column. BLOCK entries of the column stand to the left of each
    # row above a block, last one first, since the diagonals of the block's own rows pass through them.
    above[:, :, :BLOCK] = in_blocks(given.column).flip(-1)
    above[:, 0, BLOCK:-1] = given.row
    above[:, 1:, BLOCK:] = left[:, BLOCK - 1 : -1 : BLOCK] @ right  # the last row of each block but for what is above
    # In memory each of these rows lies BLOCK further to the left than the one before, so that diagonals are columns,
    # and a running sum down a diagonal is a product with a triangle of ones.
    above = straight(skewed.new_ones(blocks, blocks).tril() @ skewed, n)
    # Read shifted, the row above a block gives what all of its rows start from; in this new tensor the sums are added.
    D = shifted(above[..., :-1], n).flatten(1, 2)
    return D.baddbmm_(left, right)[:, :m].contiguous()


def _gradients(given: Displacement, g: Tensor, x: Tensor) -> Displacement:
    """Of row, column, A and B."""
    _, parts, m = g.shape
    q, n = given.B.shape[1:]
    left, right = _blocks(given)
    blocks = left.shape[1] // BLOCK
    H = outer(g, x, given.A)
    # The adjoint of each line of `_dense`, from its last line to its first. By hand, as autograd would keep and copy
    # tensors of the size of D where `shifted` is a view: 1.2 to 1.6 times as long (`Kernel._pulled_back`).
    skewed = block_sums(H)
    above = straight(skewed.new_ones(blocks, blocks).triu() @ skewed, n)
    row, column = above[:, 0, BLOCK:-1], above[:, :, :BLOCK].flip(-1).flatten(1)[:, :m]
    H[:, BLOCK - 1 : -1 : BLOCK] += above[:, 1:, BLOCK:]
    # Products are copied to where the rows have room between them, for `shifted_gradient` sums them by strides alone.
    A = with_room((parts, q, blocks, BLOCK), BLOCK, H)
    A.copy_((H @ right.mT).view(parts, blocks, BLOCK, q, BLOCK).permute(0, 3, 1, 4, 2))
    B = with_room((parts, q, BLOCK), n, H)
    B.copy_((left.mT @ H).view(B.shape))
    A, B = (shifted_gradient(of)[..., BLOCK - 1 :] for of in (A, B))
    return Displacement(row, column, A.flatten(2)[..., :m], B)


# sum_i Z_1(g_i) Z_{-1}(h_i) with G, H (P, r, K): down a diagonal the one is periodic, the other but for a sign. With
# the linear convolution v = sum_i g_i * h_i, its first column is v[i] + v[K + i], its first row, for j = 1 ... n - 1,
# v[K - j] - v[2 K - j] - 2 sum_i g_i[0] h_i[K - j].


def _ldr_displacement(tensors: Tensors, m: int, n: int) -> Displacement:
    G, H = tensors
    K = G.shape[-1]
    v = _convolution(G, H, 2 * K)
    row = (v[:, K - n + 1 : K] - v[:, 2 * K - n + 1 : 2 * K]).flip(-1)
    B = pad(H[..., K - n + 1 :].flip(-1), (1, 0))
    return Displacement(row, v[:, :m] + v[:, K : K + m], -2 * G[..., :m], B)


def _ldr_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return _dense(_ldr_displacement(tensors, m, n))


def _ldr_gradients(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    G, H = tensors
    K, m, n = G.shape[-1], g.shape[-1], x.shape[-1]
    row, column, A, B = _gradients(_ldr_displacement(tensors, m, n), g, x)
    v = G.new_zeros(len(G), 2 * K)
    v[:, :m] = column
    v[:, K : K + m] += column
    v[:, K - n + 1 : K] += row.flip(-1)
    v[:, 2 * K - n + 1 :] -= row.flip(-1)
    G_gradient, H_gradient = _convolution_gradients(v, G, H)
    G_gradient[..., :m] -= 2 * A
    H_gradient[..., K - n + 1 :] += B[..., 1:].flip(-1)
    return [G_gradient, H_gradient]


# sum_i T1_i T2_i with T1 of diagonals d1 (P, r, m + K - 1), T2 of d2 (P, r, K + n - 1): down a diagonal the sum over k
# of T1[i, k] T2[k, j] shifts by one. Its first row is a convolution of d1's first K entries with d2, its first column
# one of d1 with d2's last K.


def _pair_displacement(tensors: Tensors, m: int, n: int) -> Displacement:
    d1, d2 = tensors
    K = max(m, n)
    row = _convolution(d1[..., :K], d2, 2 * K)[:, K - 1 : K + n - 2].flip(-1)
    column = _convolution(d1, d2[..., n - 1 :], 2 * K)[:, K - 1 : K + m - 1]
    A = pad(torch.cat((d1[..., K:], -d1[..., : m - 1]), dim=1), (1, 0))
    B = pad(torch.cat((d2[..., : n - 1], d2[..., K:]), dim=1).flip(-1), (1, 0))
    return Displacement(row, column, A, B)


def _pair_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return _dense(_pair_displacement(tensors, m, n))


def _pair_gradients(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    d1, d2 = tensors
    m, n = g.shape[-1], x.shape[-1]
    K, r = max(m, n), d1.shape[1]
    row, column, A, B = _gradients(_pair_displacement(tensors, m, n), g, x)
    row_convolution, column_convolution = d1.new_zeros(2, len(d1), 2 * K)
    row_convolution[:, K - 1 : K + n - 2] = row.flip(-1)
    column_convolution[:, K - 1 : K + m - 1] = column
    first, d2_gradient = _convolution_gradients(row_convolution, d1[..., :K], d2)
    d1_gradient, last = _convolution_gradients(column_convolution, d1, d2[..., n - 1 :])
    d1_gradient[..., :K] += first
    d2_gradient[..., n - 1 :] += last
    A, B = A[..., 1:], B[..., 1:].flip(-1)
    d1_gradient[..., K:] += A[:, :r]
    d1_gradient[..., : m - 1] -= A[:, r:]
    d2_gradient[..., : n - 1] += B[:, :r]
    d2_gradient[..., K:] += B[:, r:]
    return [d1_gradient, d2_gradient]


# The same with symmetric T1 and T2, of parameters t1, t2 (P, r, K).


def _from_symmetric(tensors: Tensors, m: int, n: int) -> list[Tensor]:
    t1, t2 = tensors
    K = max(m, n)
    return [symmetric_diagonals(t1, m, K), symmetric_diagonals(t2, K, n)]


def _symmetric_pair_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return _pair_dense(_from_symmetric(tensors, m, n), m, n)


def _symmetric_pair_gradients(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    m, n = g.shape[-1], x.shape[-1]
    K = max(m, n)
    d1, d2 = _pair_gradients(_from_symmetric(tensors, m, n), g, x)
    return [folded(d1, m, K), folded(d2, K, n)]


# Linear convolutions by transforms of at least `length` = 2 K. Some are longer than that; of those only entries are
# used, and have gradients, that nothing wraps around to.


def _convolution(a: Tensor, b: Tensor, length: int) -> Tensor:
    """sum_i a_i * b_i of a and b (P, r, ...): (P, at least `length`)."""
    n = fast_length(length)
    v: Tensor = torch.fft.irfft((torch.fft.rfft(a, n=n) * torch.fft.rfft(b, n=n)).sum(dim=1), n=n)
    return v


def _convolution_gradients(v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of a and b, from the gradient v (P, length) of their convolution."""
    n = fast_length(v.shape[-1])
    spectra = torch.stack((torch.fft.rfft(b, n=n), torch.fft.rfft(a, n=n))).conj_physical_()
    back = torch.fft.irfft(spectra * torch.fft.rfft(v, n=n).unsqueeze(1), n=n)
    return back[0, ..., : a.shape[-1]], back[1, ..., : b.shape[-1]]


LDR = Kernel(_ldr_dense, by_outer=_ldr_gradients, passes=12)
TOEPLITZ_PAIR = Kernel(_pair_dense, by_outer=_pair_gradients, passes=12)
SYMMETRIC_TOEPLITZ_PAIR = Kernel(_symmetric_pair_dense, by_outer=_symmetric_pair_gradients, passes=12)
