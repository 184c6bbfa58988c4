"""The kernels of `surm.structures.gpu.transform`, in its letters: a program takes pairs of tokens, one after the other.

A matrix is a tuple of six float16 tensors: the real part, the imaginary part and its negative, each as a high and a low
part, of which the low ones are read only with SPLIT.
"""

import triton
import triton.language as tl

from surm.structures.gpu.launch import Launcher


@triton.jit
def _matrix(tables, SIZE: tl.constexpr):
    at = tables + tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    area: tl.constexpr = SIZE * SIZE
    return (
        tl.load(at),
        tl.load(at + area),
        tl.load(at + 2 * area),
        tl.load(at + 3 * area),
        tl.load(at + 4 * area),
        tl.load(at + 5 * area),
    )


@triton.jit
def _conjugate(F):
    return F[0], F[1], F[4], F[5], F[2], F[3]


@triton.jit
def _adjoint(F):
    return tl.trans(F[0]), tl.trans(F[1]), tl.trans(F[4]), tl.trans(F[5]), tl.trans(F[2]), tl.trans(F[3])


@triton.jit
def _halves(v, SPLIT: tl.constexpr):
    high = v.to(tl.float16)
    low = high
    if SPLIT:
        low = (v - high.to(tl.float32)).to(tl.float16)
    return high, low


@triton.jit
def _dot(a, a_low, b, b_low, total, SPLIT: tl.constexpr):
    if SPLIT:  # the small ones first
        total = tl.dot(a, b_low, total)
        total = tl.dot(a_low, b, total)
    return tl.dot(a, b, total)


@triton.jit
def _from_left(F, real, imag, SPLIT: tl.constexpr):
    """F z, for a complex F."""
    r, r_low = _halves(real, SPLIT)
    i, i_low = _halves(imag, SPLIT)
    zero = tl.zeros((F[0].shape[0], real.shape[1]), tl.float32)
    y_real = _dot(F[4], F[5], i, i_low, _dot(F[0], F[1], r, r_low, zero, SPLIT), SPLIT)
    y_imag = _dot(F[2], F[3], r, r_low, _dot(F[0], F[1], i, i_low, zero, SPLIT), SPLIT)
    return y_real, y_imag


@triton.jit
def _from_right(real, imag, F, SPLIT: tl.constexpr):
    """z F, for a complex F."""
    r, r_low = _halves(real, SPLIT)
    i, i_low = _halves(imag, SPLIT)
    zero = tl.zeros((real.shape[0], F[0].shape[1]), tl.float32)
    y_real = _dot(i, i_low, F[4], F[5], _dot(r, r_low, F[0], F[1], zero, SPLIT), SPLIT)
    y_imag = _dot(r, r_low, F[2], F[3], _dot(i, i_low, F[0], F[1], zero, SPLIT), SPLIT)
    return y_real, y_imag


@triton.jit
def _complex(at, P: tl.constexpr, Q: tl.constexpr):
    place = at + tl.arange(0, P)[:, None] * Q + tl.arange(0, Q)[None, :]
    return tl.load(place).to(tl.float32), tl.load(place + P * Q).to(tl.float32)


@triton.jit
def _transform(real, imag, F, F_q, twiddles, P: tl.constexpr, Q: tl.constexpr, SPLIT: tl.constexpr):
    real, imag = _from_left(F, real, imag, SPLIT)
    t_real, t_imag = _complex(twiddles, P, Q)  # read anew each time, since registers are short and the cache is near
    return _from_right(real * t_real - imag * t_imag, real * t_imag + imag * t_real, F_q, SPLIT)


@triton.jit
def _inverse(real, imag, F, F_q, twiddles, P: tl.constexpr, Q: tl.constexpr, SPLIT: tl.constexpr):
    """K times the inverse transform."""
    real, imag = _from_right(real, imag, _conjugate(F_q), SPLIT)
    t_real, t_imag = _complex(twiddles, P, Q)
    return _from_left(_adjoint(F), real * t_real + imag * t_imag, imag * t_real - real * t_imag, SPLIT)


@triton.jit
def _places(q: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    """j of each entry of a tile, and whether it is one of the p x q; rows beyond p are beyond every width."""
    column = tl.arange(0, Q)[None, :]
    return tl.arange(0, P)[:, None] * q + column, column < q


@triton.jit
def _power(largest):
    """A power of two by which numbers up to `largest` are divided into -1/2 to 1/2."""
    bits = largest.to(tl.int32, bitcast=True) & 0x7F800000  # the exponent
    return tl.maximum(bits.to(tl.float32, bitcast=True), 1e-36) * 4.0


@triton.jit
def _largest(v):
    return tl.max(tl.max(tl.abs(v), axis=1), axis=0)


@triton.jit
def _pair(x, stride, first, tokens, width: tl.constexpr, q: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    """Two tokens, float32; of an odd number the last is with zeros."""
    first = tl.full((), 0, tl.int64) + first  # where all of x has more than 2^31 entries
    j, inside = _places(q, P, Q)
    at = x + first * stride + j
    a = tl.load(at, mask=inside & (j < width), other=0.0)
    b = tl.load(at + stride, mask=inside & (j < tl.where(first + 1 < tokens, width, 0)), other=0.0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def _keep(
    y, stride, first, tokens, a, b,
    width: tl.constexpr, q: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    first = tl.full((), 0, tl.int64) + first
    j, inside = _places(q, P, Q)
    at, both = y + first * stride + j, inside & (j < tl.where(first + 1 < tokens, width, 0))
    inside &= j < width
    if ADD:
        a += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        b += tl.load(at + stride, mask=both, other=0.0).to(tl.float32)
    tl.store(at, a.to(y.dtype.element_ty), mask=inside)
    tl.store(at + stride, b.to(y.dtype.element_ty), mask=both)


@triton.jit(do_not_specialize=["tokens"])  # one compilation for batches of any size
def _convolve_kernel(
    x, y, matrices, twiddles, spectra, tokens, alpha, x_stride, y_stride,
    inputs: tl.constexpr, outputs: tl.constexpr,
    p: tl.constexpr, q: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
    PARTS: tl.constexpr, TRANSPOSE: tl.constexpr, ADD: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    F_q = _matrix(matrices, Q)
    F_0 = _matrix(matrices + 6 * Q * Q, P)
    F_1 = F_0
    if PARTS == 2:
        F_1 = _matrix(matrices + 6 * Q * Q + 6 * P * P, P)
    for pair in tl.range(tl.program_id(0), (tokens + 1) // 2, tl.num_programs(0), num_stages=STAGES):
        a, b = _pair(x, x_stride, 2 * pair, tokens, inputs, q, P, Q)
        a_power, b_power = _power(_largest(a)), _power(_largest(b))
        a, b = a * (1.0 / a_power), b * (1.0 / b_power)
        y_a = tl.zeros((P, Q), tl.float32)
        y_b = tl.zeros((P, Q), tl.float32)
        for part in tl.static_range(PARTS):
            F = F_0
            if part == 1:
                F = F_1
            table, spectrum = twiddles + part * 2 * P * Q, spectra + part * (2 * P * Q + 1)
            real, imag = _transform(a, b, F, F_q, table, P, Q, SPLIT)
            s_real, s_imag = _complex(spectrum, P, Q)
            if TRANSPOSE:
                s_imag = -s_imag
            real, imag = real * s_real - imag * s_imag, real * s_imag + imag * s_real
            real, imag = _inverse(real, imag, F, F_q, table, P, Q, SPLIT)
            scale = tl.load(spectrum + 2 * P * Q) * alpha
            y_a += real * scale
            y_b += imag * scale
        _keep(y, y_stride, 2 * pair, tokens, y_a * a_power, y_b * b_power, outputs, q, P, Q, ADD)


@triton.jit(do_not_specialize=["tokens"])  # one compilation for batches of any size
def _backward_kernel(
    g, x, dx, matrices, twiddles, spectra, partial, tokens, alpha, g_stride, x_stride, dx_stride,
    m: tl.constexpr, n: tl.constexpr,
    p: tl.constexpr, q: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
    PARTS: tl.constexpr, INPUT: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    F_q = _matrix(matrices, Q)
    for part in tl.static_range(PARTS):
        F = _matrix(matrices + 6 * Q * Q + part * 6 * P * P, P)
        table = twiddles + part * 2 * P * Q
        c_real = tl.zeros((P, Q), tl.float32)
        c_imag = tl.zeros((P, Q), tl.float32)
        # Parts one after the other, although that reads tokens twice: registers hold the sums of one.
        for pair in tl.range(tl.program_id(0), (tokens + 1) // 2, tl.num_programs(0), num_stages=STAGES):
            a, b = _pair(g, g_stride, 2 * pair, tokens, m, q, P, Q)
            a_power, b_power = _power(_largest(a)), _power(_largest(b))
            real, imag = _transform(a * (1.0 / a_power), b * (1.0 / b_power), F, F_q, table, P, Q, SPLIT)
            if SPLIT:
                g_real, g_imag = real, imag
            else:  # half the registers, until x is transformed
                g_real, g_imag = real.to(tl.float16), imag.to(tl.float16)
            if INPUT:
                spectrum = spectra + part * (2 * P * Q + 1)
                s_real, s_imag = _complex(spectrum, P, Q)
                d_real, d_imag = real * s_real + imag * s_imag, imag * s_real - real * s_imag
                d_real, d_imag = _inverse(d_real, d_imag, F, F_q, table, P, Q, SPLIT)
                scale = tl.load(spectrum + 2 * P * Q) * alpha
                a, b = d_real * (a_power * scale), d_imag * (b_power * scale)
                _keep(dx, dx_stride, 2 * pair, tokens, a, b, n, q, P, Q, True)
            # x_a g_a + x_b g_b needs one scale for both tokens: x is multiplied by what its g was divided by.
            a, b = _pair(x, x_stride, 2 * pair, tokens, n, q, P, Q)
            x_power, g_power = _power(tl.maximum(_largest(a), _largest(b))), tl.maximum(a_power, b_power)
            a, b = a * (1.0 / x_power) * (a_power / g_power), b * (1.0 / x_power) * (b_power / g_power)
            real, imag = _transform(a, b, F, F_q, table, P, Q, SPLIT)
            weight = x_power * g_power
            g_real, g_imag = g_real.to(tl.float32), g_imag.to(tl.float32)
            c_real += (real * g_real + imag * g_imag) * weight
            c_imag += (real * g_imag - imag * g_real) * weight
        at = partial + (tl.program_id(0) * PARTS + part) * 2 * P * Q
        place = at + tl.arange(0, P)[:, None] * Q + tl.arange(0, Q)[None, :]
        tl.store(place, c_real)
        tl.store(place + P * Q, c_imag)
        tl.debug_barrier()  # the next part adds to the same dx


@triton.jit
def _generator(first, second, j, inside, size: tl.constexpr, TERMS: tl.constexpr, FACTORS: tl.constexpr):
    """Of the places j, float32; zero where they are not inside."""
    total = tl.zeros(j.shape, tl.float32)
    for term in tl.static_range(TERMS):
        value = tl.load(first + term * size + j, mask=inside, other=0.0).to(tl.float32)
        if FACTORS == 2:
            value *= tl.load(second + term * size + j, mask=inside, other=0.0).to(tl.float32)
        total += value
    return total


@triton.jit
def _spectrum_kernel(
    first, second, result, matrices, twiddles, m: tl.constexpr, n: tl.constexpr,
    p: tl.constexpr, q: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
    KIND: tl.constexpr, TERMS: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    """A program for each part."""
    part = tl.program_id(0)
    K: tl.constexpr = p * q
    j, inside = _places(q, P, Q)
    inside &= j < K
    if KIND == "toeplitz" or KIND == "symmetric_toeplitz":
        if KIND == "toeplitz":
            below = _generator(first, second, j + n - 1, inside & (j < m), m + n - 1, TERMS, FACTORS)
            above = _generator(first, second, j - K + n - 1, inside & (j > K - n), m + n - 1, TERMS, FACTORS)
        else:
            below = _generator(first, second, j, inside, K, TERMS, FACTORS)
            above = _generator(first, second, K - j, inside & (j > 0), K, TERMS, FACTORS)
        values = 0.5 * tl.where(part == 0, below + above, below - above)
    else:
        values = _generator(first, second, j, inside, K, TERMS, FACTORS)
    power = _power(_largest(values))
    F_q, F = _matrix(matrices, Q), _matrix(matrices + 6 * Q * Q + part * 6 * P * P, P)
    real, imag = values * (1.0 / power), tl.zeros((P, Q), tl.float32)
    real, imag = _transform(real, imag, F, F_q, twiddles + part * 2 * P * Q, P, Q, True)
    # At most 1 in size, so that a token's spectrum times it is no larger than the token's own.
    scale = _power(tl.maximum(_largest(real), _largest(imag)))
    at = result + part * (2 * P * Q + 1)
    place = at + tl.arange(0, P)[:, None] * Q + tl.arange(0, Q)[None, :]
    tl.store(place, real * (1.0 / scale))
    tl.store(place + P * Q, imag * (1.0 / scale))
    tl.store(at + 2 * P * Q, power * scale * (1.0 / K))


@triton.jit
def _spread(
    first, second, d_first, d_second, j, inside, gradient,
    size: tl.constexpr, TERMS: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    """The generator's gradient at places j, to the factors of every term."""
    for term in tl.static_range(TERMS):
        place = term * size + j
        if FACTORS == 2:
            a = tl.load(first + place, mask=inside, other=0.0).to(tl.float32)
            b = tl.load(second + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(d_first + place, (gradient * b).to(d_first.dtype.element_ty), mask=inside)
            tl.store(d_second + place, (gradient * a).to(d_second.dtype.element_ty), mask=inside)
        else:
            tl.store(d_first + place, gradient.to(d_first.dtype.element_ty), mask=inside)


@triton.jit
def _correlation(total, matrices, twiddles, part: tl.constexpr, EVEN: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    """K times the inverse transform of a sum of spectra, its real part; or that of its values at j and -j, halved."""
    real, imag = _complex(total + part * 2 * P * Q, P, Q)
    if EVEN:
        imag = tl.zeros((P, Q), tl.float32)
    power = _power(tl.maximum(_largest(real), _largest(imag)))
    F_q, F = _matrix(matrices, Q), _matrix(matrices + 6 * Q * Q + part * 6 * P * P, P)
    real, imag = real * (1.0 / power), imag * (1.0 / power)
    real, imag = _inverse(real, imag, F, F_q, twiddles + part * 2 * P * Q, P, Q, True)
    return real * power


@triton.jit
def _gradient_kernel(
    total, first, second, d_first, d_second, matrices, twiddles, alpha, m: tl.constexpr, n: tl.constexpr,
    p: tl.constexpr, q: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
    KIND: tl.constexpr, PARTS: tl.constexpr, TERMS: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = p * q
    j, inside = _places(q, P, Q)
    inside &= j < K
    scale = alpha * (1.0 / K)
    c = _correlation(total, matrices, twiddles, 0, KIND == "symmetric_toeplitz", P, Q) * scale
    if PARTS == 2:
        e = _correlation(total, matrices, twiddles, 1, KIND == "symmetric_toeplitz", P, Q) * scale
        if KIND == "toeplitz":
            below, above = 0.5 * (c + e), 0.5 * (c - e)
            size: tl.constexpr = m + n - 1
            _spread(first, second, d_first, d_second, j + n - 1, inside & (j < m), below, size, TERMS, FACTORS)
            _spread(first, second, d_first, d_second, j - K + n - 1, inside & (j > K - n), above, size, TERMS, FACTORS)
        else:  # the diagonals j and -j have one value, and the main one stands once
            c = tl.where(j == 0, 0.5, 1.0) * (c + e)
            _spread(first, second, d_first, d_second, j, inside, c, K, TERMS, FACTORS)
    else:
        _spread(first, second, d_first, d_second, j, inside, c, K, TERMS, FACTORS)


spectra, convolve = Launcher(_spectrum_kernel), Launcher(_convolve_kernel)
backward, gradient = Launcher(_backward_kernel), Launcher(_gradient_kernel)
