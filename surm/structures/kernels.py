"""What a linear layer with an update needs of a structured matrix D: D itself, and the gradients of its generators.

A *kernel* stands for one way to write D (m x n) by a few small tensors, its generators, which a structure makes of its
parameters. Both functions cost far less than a product of D with many rows: D takes O(m n) by views and adds, and a
gradient works on a few hundred rows at a time, so that its intermediates stay in the cache.

Letters: m outputs, n inputs, K = max(m, n), T rows (tokens), r terms, P parts. The gradient of D itself is H = g^T x
(m, n) for the output's gradient g (T, m) and the input x (T, n); a generator's gradient is a sum over some of H's
entries. It is computed for P matrices of one kind at once, which share x, as those of queries, keys and values do: then
g is (T, P, m), and P is the first dimension of the tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from surm.structures.functional import (
    circulant_diagonals,
    dense_kronecker,
    dense_toeplitz,
    fast_length,
    skew_fold,
    skew_unfold,
)

Tensors = Sequence[Tensor]

CHUNK = {"cpu": 2**18, "cuda": 2**25}  # entries at a time: on a CPU what is made of them stays in the cache
BLOCK = 32  # rows of D at a time in sums along its diagonals


@dataclass(frozen=True)
class Kernel:
    """One way to write an m x n matrix D.

    Attributes:
        generators: how many tensors it takes.
        dense: (tensors, m, n) -> D, new and contiguous.
        gradients: (tensors, g, x) -> the gradients of the tensors, in their dtype, of several matrices at once.
        passes: about how often D is read or written in memory to form it and add it to a weight.
        needs_outer: whether the gradients are made from H.
    """

    generators: int
    dense: Callable[[Tensors, int, int], Tensor]
    gradients: Callable[[Tensors, Tensor, Tensor], list[Tensor]]
    passes: int = 2
    needs_outer: bool = False


def _chunks(like: Tensor, width: int, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of each, in the dtype of `like`; `width` is that of what is made of a row."""
    size = max(1, CHUNK.get(like.device.type, CHUNK["cuda"]) // width)
    for chunk in zip(*(torch.split(tensor, size) for tensor in rows), strict=True):
        yield tuple(part.to(like.dtype) for part in chunk)


# Matrices with constant diagonals: the gradient is a correlation of g and x, summed over rows in the frequency domain.


def _toeplitz_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return dense_toeplitz(tensors[0], n).contiguous()


def _circulant_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return dense_toeplitz(circulant_diagonals(tensors[0], m, n), n).contiguous()


def _skew_circulant_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return dense_toeplitz(circulant_diagonals(tensors[0], m, n, -1), n).contiguous()


def _correlation(g: Tensor, x: Tensor, length: int, like: Tensor) -> Tensor:
    """r[k] = sum over rows and over i - j = k mod `length` of g_i x_j: (P, length)."""
    parts = g.shape[1]
    total = like.new_zeros(parts, length // 2 + 1, dtype=torch.promote_types(like.dtype, torch.complex64))
    for g_rows, x_rows in _chunks(like, parts * length, g, x):
        total += _cross_spectrum(torch.fft.rfft(g_rows, n=length), torch.fft.rfft(x_rows, n=length))
    r: Tensor = torch.fft.irfft(total, n=length)
    return r


def _cross_spectrum(g: Tensor, x: Tensor) -> Tensor:
    """Sum over rows of g conj(x); both are overwritten.

    Not by `conj` or `vecdot`: their lazy conjugation is lost where the operator runs in a compiled graph.
    """
    return g.mul_(x.conj_physical_().unsqueeze(1)).sum(dim=0)


def _linear_correlation(g: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """The gradient of the diagonals of a Toeplitz matrix: (P, m + n - 1)."""
    m, n = g.shape[-1], x.shape[-1]
    length = fast_length(m + n - 1)
    r = _correlation(g, x, length, like)
    return torch.cat((r[:, length - n + 1 :], r[:, :m]), dim=-1)


def _toeplitz_gradients(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    return [_linear_correlation(g, x, tensors[0])]


def _circulant_gradients(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    [c] = tensors
    K = c.shape[-1]
    if fast_length(K) == K:
        return [_correlation(g, x, K, c)]
    return [_wrapped(_linear_correlation(g, x, c), g.shape[-1], x.shape[-1], sign=1)]


def _skew_circulant_gradients(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    [c] = tensors
    parts, K = c.shape
    half = K // 2
    if K % 2 or fast_length(half) != half:
        return [_wrapped(_linear_correlation(g, x, c), g.shape[-1], x.shape[-1], sign=-1)]
    total = c.new_zeros(parts, half, dtype=torch.promote_types(c.dtype, torch.complex64))
    for g_rows, x_rows in _chunks(c, parts * K, g, x):
        total += _cross_spectrum(torch.fft.fft(skew_fold(g_rows, K)), torch.fft.fft(skew_fold(x_rows, K)))
    return [skew_unfold(torch.fft.ifft(total))]


def _wrapped(d: Tensor, m: int, n: int, sign: int) -> Tensor:
    """The gradient of c from that of the diagonals of its circulant, the adjoint of `circulant_diagonals`."""
    K = max(m, n)
    c = pad(d[:, n - 1 :], (0, K - m))
    c[:, K - n + 1 :] += sign * d[:, : n - 1]
    return c


# Matrices given by their displacement, such as a product of two Toeplitz matrices: D[i, j] = D[i - 1, j - 1] plus an
# entry of a matrix of rank q, A^T B. Generators are the first row (n,), the first column (m,), A (q, m) and B (q, n);
# what A and B have for the first row and column is not used.


def _sums_along_diagonals(write: Callable[[slice, Tensor], Any], m: int, n: int, like: Tensor) -> Tensor:
    """Running sums down the diagonals of an m x n matrix, a block of rows after the other.

    The rows of a block are written one further to the left each, below the sums of the row before the block, so that
    diagonals become columns.

    Args:
        write: (rows, target) writes these rows of the matrix.
        like: dtype and device.
    """
    b = min(BLOCK, m)
    width = n + b - 1
    strides, first = (width - 1, 1), width + b - 1  # of the block in what is skewed
    skewed, sums, result = like.new_zeros(b + 1, width), like.new_empty(b + 1, width), like.new_empty(m, n)
    before, summed = skewed[0, b:], sums.as_strided((b, n), strides, first)
    for start in range(0, m, b):
        count = min(b, m - start)
        rows = slice(start, start + count)
        write(rows, skewed.as_strided((count, n), strides, first))
        torch.cumsum(skewed, dim=0, out=sums)
        result[rows] = summed[:count]
        before.copy_(summed[-1, : n - 1])
    return result


def _displacement_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    row, column, A, B = tensors
    A, B = _without_first(A), _without_first(B)

    def write(rows: slice, target: Tensor) -> None:
        torch.mm(A[:, rows].mT, B, out=target)
        target[:, 0] = column[rows]
        if rows.start == 0:
            target[0] = row

    return _sums_along_diagonals(write, m, n, row)


def _displacement_gradients(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    _, parts, m = g.shape
    H = (g.flatten(1).mT @ x).to(tensors[0].dtype).view(parts, m, -1)
    each = [_displacement_gradient(A, B, own) for A, B, own in zip(*tensors[2:], H, strict=True)]
    return [torch.stack(gradients) for gradients in zip(*each, strict=True)]


def _displacement_gradient(A: Tensor, B: Tensor, H: Tensor) -> list[Tensor]:
    A, B = _without_first(A), _without_first(B)
    m, n = H.shape
    # An entry of what is summed up is in all entries below it: the adjoint sums up from the last row and column.
    turned = _sums_along_diagonals(
        lambda rows, target: target.copy_(H[m - rows.stop : m - rows.start].flip(0, 1)), m, n, H
    )
    column = turned[:, -1].flip(0)
    column[0] = 0  # that entry is the row's
    A_gradient = (B.flip(1) @ turned.mT).flip(1)
    B_gradient = (A.flip(1) @ turned).flip(1)
    return [turned[-1].flip(0), column, _without_first(A_gradient), _without_first(B_gradient)]


def _without_first(factors: Tensor) -> Tensor:
    return pad(factors[:, 1:], (1, 0))


# Kronecker products, sum_t A_t kron B_t with A (r, m1, n1), B (r, m2, n2): one factor shrinks g or x before they meet.


def _kronecker_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return dense_kronecker(*tensors)


def _kronecker_gradients(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    A, B = tensors
    (parts, r, m1, n1), (_, _, m2, n2) = A.shape, B.shape
    A_gradient, B_gradient = torch.zeros_like(A), torch.zeros_like(B)
    for g_rows, x_rows in _chunks(A, max(parts * m1 * m2, n1 * n2), g, x):
        count = len(x_rows)
        X = x_rows.reshape(count * n1, n2)
        for part in range(parts):
            G = g_rows[:, part].reshape(count, m1, m2)
            for t in range(r):
                shrunk = (X @ B[part, t].mT).view(count, n1, m2)
                A_gradient[part, t] += torch.bmm(G, shrunk.mT).sum(dim=0)
                turned = A[part, t].mT @ G
                # In n1 products of equal length, as one of this shape would run on one core.
                pieces = torch.bmm(turned.view(n1, count, m2).mT, X.view(n1, count, n2))
                B_gradient[part, t] += pieces.sum(dim=0)
    return [A_gradient, B_gradient]


# Low rank, sum_t B_t A_t with B (m, r) and A (r, n), the terms side by side.


def _low_rank_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    B, A = tensors
    return B @ A


def _low_rank_gradients(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    B, A = tensors
    B_gradient, A_gradient = torch.zeros_like(B), torch.zeros_like(A)
    for g_rows, x_rows in _chunks(B, max(g.shape[1] * g.shape[2], x.shape[-1]), g, x):
        for part, own in enumerate(g_rows.unbind(1)):
            B_gradient[part].addmm_(own.mT, x_rows @ A[part].mT)
            A_gradient[part].addmm_((own @ B[part]).mT, x_rows)
    return [B_gradient, A_gradient]


KERNELS = {
    "toeplitz": Kernel(1, _toeplitz_dense, _toeplitz_gradients),
    "circulant": Kernel(1, _circulant_dense, _circulant_gradients),
    "skew_circulant": Kernel(1, _skew_circulant_dense, _skew_circulant_gradients),
    "displacement": Kernel(4, _displacement_dense, _displacement_gradients, passes=8, needs_outer=True),
    "kronecker": Kernel(2, _kronecker_dense, _kronecker_gradients),
    "low_rank": Kernel(2, _low_rank_dense, _low_rank_gradients),
}
