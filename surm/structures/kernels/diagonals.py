"""Matrices with constant diagonals, from the parameters that a structure trains.

The gradient is a correlation of g and x, summed over rows in frequencies; or H is summed along diagonals. `sign` is 1
for a circulant and -1 for a skew-circulant matrix.

A circulant has the parameters r1, r2 (P, r, K), and is that of c = sum_t r1_t r2_t, or c (P, r, K) alone; a Toeplitz
matrix has t (P, r, m + n - 1), a symmetric one t (P, r, K).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from surm.structures.functional import (
    circulant_diagonals,
    dense_toeplitz,
    fast_length,
    skew_fold,
    skew_unfold,
    symmetric_diagonals,
)
from surm.structures.kernels.kernel import Gradients, Kernel, Tensors, chunks
from surm.structures.kernels.shifts import diagonal_sums, outer


def _generator(tensors: Tensors) -> Tensor:
    """The sum over the terms: (P, K)."""
    first, *second = tensors
    terms = first * second[0] if second else first
    return terms.squeeze(1) if terms.shape[1] == 1 else terms.sum(dim=1)


def _of_terms(tensors: Tensors, gradient: Tensor) -> list[Tensor]:
    """The gradients of the parameters from that of their generator (P, K), the adjoint of `_generator`."""
    first, *second = tensors
    gradient = gradient.unsqueeze(1)
    if second:
        return [gradient * second[0], gradient * first]
    return [gradient if first.shape[1] == 1 else gradient.repeat(1, first.shape[1], 1)]


def _toeplitz_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return dense_toeplitz(_generator(tensors), n).contiguous()


def _symmetric_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return dense_toeplitz(symmetric_diagonals(_generator(tensors), m, n), n).contiguous()


def _circulant_dense(tensors: Tensors, m: int, n: int, *, sign: int) -> Tensor:
    return dense_toeplitz(circulant_diagonals(_generator(tensors), m, n, sign), n).contiguous()


def _correlation(g: Tensor, x: Tensor, length: int, like: Tensor) -> Tensor:
    """r[k] = sum over rows and over i - j = k mod `length` of g_i x_j: (P, length)."""
    total = _cross_spectrum(lambda rows: torch.fft.rfft(rows, n=length), length, g, x, like)
    r: Tensor = torch.fft.irfft(total, n=length)
    return r


def _cross_spectrum(transform: Callable[[Tensor], Tensor], width: int, g: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """Sum over rows of the transform of g times the conjugate of that of x, each (..., width) or smaller: (P, ...)."""
    total = None
    for g_rows, x_rows in chunks(like, (g.shape[1] + 1) * width, g, x):
        total = _add_products(total, transform(g_rows), transform(x_rows))
    assert total is not None  # without rows there is one chunk of none
    return total.sum(dim=0)


def _add_products(total: Tensor | None, g: Tensor, x: Tensor) -> Tensor:
    """total + g conj(x), in place: all are lost. Only the first chunk starts a total, and none is longer.

    Not by `conj` or `vecdot`: their lazy conjugation is lost where the operator runs in a compiled graph.
    """
    x = x.conj_physical_().unsqueeze(1)
    if total is None:
        return g.mul_(x)
    total[: len(g)].addcmul_(g, x)
    return total


def _linear_correlation(g: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """The gradient of the diagonals of a Toeplitz matrix: (P, m + n - 1)."""
    m, n = g.shape[-1], x.shape[-1]
    length = fast_length(m + n - 1)
    r = _correlation(g, x, length, like)
    return torch.cat((r[:, length - n + 1 :], r[:, :m]), dim=-1)


def _toeplitz_by_rows(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    return _of_terms(tensors, _linear_correlation(g, x, tensors[0]))


def _symmetric_by_rows(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    d = _linear_correlation(g, x, tensors[0])
    return _of_terms(tensors, folded(d, g.shape[-1], x.shape[-1]))


def _circulant_by_rows(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    like = tensors[0]
    K = like.shape[-1]
    if fast_length(K) == K:
        return _of_terms(tensors, _correlation(g, x, K, like))
    return _of_terms(tensors, _wrapped(_linear_correlation(g, x, like), g.shape[-1], x.shape[-1], sign=1))


def _skew_circulant_by_rows(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    like = tensors[0]
    K = like.shape[-1]
    half = K // 2
    if K % 2 or fast_length(half) != half:
        return _of_terms(tensors, _wrapped(_linear_correlation(g, x, like), g.shape[-1], x.shape[-1], sign=-1))
    total = _cross_spectrum(lambda rows: torch.fft.fft(skew_fold(rows, K)), K, g, x, like)
    return _of_terms(tensors, skew_unfold(torch.fft.ifft(total)))


def _wrapped(d: Tensor, m: int, n: int, sign: int) -> Tensor:
    """The gradient of c from that of the diagonals of its circulant, the adjoint of `circulant_diagonals`."""
    K = max(m, n)
    c = pad(d[:, n - 1 :], (0, K - m))
    c[:, K - n + 1 :].add_(d[:, : n - 1], alpha=sign)
    return c


def folded(d: Tensor, m: int, n: int) -> Tensor:
    """The adjoint of `symmetric_diagonals`: (..., m + n - 1) -> (..., K)."""
    t = pad(d[..., n - 1 :], (0, max(m, n) - m))
    t[..., 1:n].add_(d[..., : n - 1].flip(-1))
    return t


def _sums(tensors: Tensors, g: Tensor, x: Tensor) -> Tensor:
    """The gradient of all diagonals, from H."""
    return diagonal_sums(outer(g, x, tensors[0]), g.shape[-1])


def _toeplitz_by_outer(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    return _of_terms(tensors, _sums(tensors, g, x))


def _symmetric_by_outer(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    return _of_terms(tensors, folded(_sums(tensors, g, x), g.shape[-1], x.shape[-1]))


def _circulant_by_outer(tensors: Tensors, g: Tensor, x: Tensor, *, sign: int) -> list[Tensor]:
    return _of_terms(tensors, _wrapped(_sums(tensors, g, x), g.shape[-1], x.shape[-1], sign))


def _circulant_kernel(by_rows: Gradients, sign: int) -> Kernel:
    return Kernel(partial(_circulant_dense, sign=sign), by_rows, partial(_circulant_by_outer, sign=sign))


TOEPLITZ = Kernel(_toeplitz_dense, _toeplitz_by_rows, _toeplitz_by_outer)
SYMMETRIC_TOEPLITZ = Kernel(_symmetric_dense, _symmetric_by_rows, _symmetric_by_outer)
CIRCULANT = _circulant_kernel(_circulant_by_rows, sign=1)
SKEW_CIRCULANT = _circulant_kernel(_skew_circulant_by_rows, sign=-1)
