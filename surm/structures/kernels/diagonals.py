"""Matrices with constant diagonals: the gradient is a correlation of g and x, summed over rows in frequencies."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from surm.structures.functional import circulant_diagonals, dense_toeplitz, fast_length, skew_fold, skew_unfold
from surm.structures.kernels.kernel import Kernel, Tensors, chunks


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
    for g_rows, x_rows in chunks(like, parts * length, g, x):
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
    for g_rows, x_rows in chunks(c, parts * K, g, x):
        total += _cross_spectrum(torch.fft.fft(skew_fold(g_rows, K)), torch.fft.fft(skew_fold(x_rows, K)))
    return [skew_unfold(torch.fft.ifft(total))]


def _wrapped(d: Tensor, m: int, n: int, sign: int) -> Tensor:
    """The gradient of c from that of the diagonals of its circulant, the adjoint of `circulant_diagonals`."""
    K = max(m, n)
    c = pad(d[:, n - 1 :], (0, K - m))
    c[:, K - n + 1 :] += sign * d[:, : n - 1]
    return c


TOEPLITZ = Kernel(1, _toeplitz_dense, _toeplitz_gradients)
CIRCULANT = Kernel(1, _circulant_dense, _circulant_gradients)
SKEW_CIRCULANT = Kernel(1, _skew_circulant_dense, _skew_circulant_gradients)
