"""Parameter-free products and dense forms of the structured matrices.

Letters: m outputs, n inputs, K = max(m, n), r terms. A generator is the first column of a K x K matrix; an m x n matrix
is its leading block. A Toeplitz matrix is given by its diagonals d, with entry (i, j) = d[i - j + n - 1].
The products keep the dtype of their arguments, which must be float32 or float64: FFTs know no bfloat16.
Leading dimensions of generators and inputs broadcast against each other.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, pad


def fast_length(length: int) -> int:
    """Smallest FFT length of at least `length` without a prime factor above 5."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest = rest // prime  # not in place: torch.jit.trace gives sizes as tensors
        if rest == 1:
            return length
        length = length + 1


def _convolve(a: Tensor, b: Tensor, length: int) -> Tensor:
    """Circular convolution of the last dimensions, each padded with zeros to `length`."""
    product: Tensor = torch.fft.irfft(torch.fft.rfft(a, n=length) * torch.fft.rfft(b, n=length), n=length)
    return product


def circulant_product(c: Tensor, x: Tensor, m: int) -> Tensor:
    """y = Z_1(c) x (paper section 3): c (..., K), x (..., n) -> (..., m). O(K log K) a row."""
    return _convolve(x, c, c.shape[-1])[..., :m]


def skew_circulant_product(c: Tensor, x: Tensor, m: int) -> Tensor:
    """y = Z_{-1}(c) x (paper appendix A): c (..., K), x (..., n) -> (..., m). O(K log K) a row.

    A product of polynomials modulo z^K + 1. Odd K: z -> -z turns it into a circulant product. Even K: with the two
    halves as real and imaginary part it is a complex product modulo z^(K/2) - i, and z -> eta z with eta^(K/2) = i
    turns that into a circular convolution of half the length.
    """
    K = c.shape[-1]
    if K % 2:
        signs = 1 - 2 * (torch.arange(K, device=x.device) % 2)
        return signs[:m] * circulant_product(signs * c, signs[: x.shape[-1]] * x, m)
    y = torch.fft.ifft(torch.fft.fft(skew_fold(x, K)) * torch.fft.fft(skew_fold(c, K)))
    return skew_unfold(y)[..., :m]


def _eta(half: int, like: Tensor, sign: int = 1) -> Tensor:
    angles = torch.arange(half, device=like.device, dtype=like.dtype) * (sign * torch.pi / (2 * half))
    return torch.polar(torch.ones_like(angles), angles)


def skew_fold(v: Tensor, K: int) -> Tensor:
    """(..., <= K) -> complex (..., K / 2), K even, whose transforms multiply as polynomials do modulo z^K + 1."""
    low, high = pad(v, (0, K - v.shape[-1])).chunk(2, dim=-1)
    return torch.complex(low, high).mul_(_eta(K // 2, v))


def skew_unfold(v: Tensor) -> Tensor:
    """The inverse of `skew_fold`: complex (..., K / 2) -> (..., K)."""
    v = v * _eta(v.shape[-1], v.real, sign=-1)
    return torch.cat((v.real, v.imag), dim=-1)


def toeplitz_product(d: Tensor, x: Tensor, m: int) -> Tensor:
    """y = T x (paper section 3): diagonals d (..., m + n - 1), x (..., n) -> (..., m). O((m + n) log(m + n)) a row."""
    n = x.shape[-1]
    # What wraps around at this length falls on the first n - 1 entries, which are not part of y.
    return _convolve(x, d, fast_length(m + n - 1))[..., n - 1 : n - 1 + m]


def ldr_product(G: Tensor, H: Tensor, x: Tensor, m: int) -> Tensor:
    """y = sum_i Z_1(g_i) Z_{-1}(h_i) x (paper section 3): G, H (r, K), x (..., n) -> (..., m). O(r K log K) a row."""
    z = skew_circulant_product(H, x.unsqueeze(-2), H.shape[-1])
    return circulant_product(G, z, m).sum(dim=-2)


def kronecker_product(A: Tensor, B: Tensor, x: Tensor) -> Tensor:
    """y = sum_i (A_i kron B_i) x, as A_i X B_i^T with X = x as n1 x n2 (paper appendix A.3).

    A (r, m1, n1), B (r, m2, n2), x (..., n1 n2) -> (..., m1 m2). O(r m2 n1 (n2 + m1)) a row.
    """
    r, m1, n1 = A.shape
    m2, n2 = B.shape[1:]
    batch = x.shape[:-1]
    XB = linear(x.reshape(*batch, n1, n2), B.reshape(r * m2, n2)).reshape(*batch, n1 * r, m2)
    return torch.matmul(A.permute(1, 2, 0).reshape(m1, n1 * r), XB).flatten(-2)


def circulant_diagonals(c: Tensor, m: int, n: int, sign: int = 1) -> Tensor:
    """Diagonals of the leading block of Z_sign(c): c (..., K) -> (..., m + n - 1)."""
    return torch.cat((sign * c[..., c.shape[-1] - n + 1 :], c[..., :m]), dim=-1)


def symmetric_diagonals(t: Tensor, m: int, n: int) -> Tensor:
    """Diagonals of the leading block of the symmetric Toeplitz matrix of t: t (..., K) -> (..., m + n - 1)."""
    return torch.cat((t[..., 1:n].flip(-1), t[..., :m]), dim=-1)


def dense_kronecker(A: Tensor, B: Tensor) -> Tensor:
    """sum_i A_i kron B_i: A (..., r, m1, n1), B (..., r, m2, n2) -> (..., m1 m2, n1 n2)."""
    if A.shape[-3] == 1:  # one product an entry, where `einsum` makes it and then moves it
        blocks = A.squeeze(-3)[..., :, None, :, None] * B.squeeze(-3)[..., None, :, None, :]
    else:
        blocks = torch.einsum("...tij,...tkl->...ikjl", A, B)
    return blocks.flatten(-2).flatten(-3, -2)


def dense_toeplitz(d: Tensor, n: int) -> Tensor:
    """The Toeplitz matrix of diagonals d: (..., m + n - 1) -> (..., m, n)."""
    return d.unfold(-1, n, 1).flip(-1)
