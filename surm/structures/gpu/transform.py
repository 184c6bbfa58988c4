"""Products by circulant, skew-circulant and Toeplitz matrices, and their gradients, by a DFT on the tensor cores.

Letters: T tokens, m outputs, n inputs, K = max(m, n) = p q, the length of the transform. D (m, n) is the leading block
of a K x K matrix, so that inputs are padded with zeros to K and outputs cut.

With j = j1 q + j2, k = k1 + p k2 and w_N = exp(-2 pi i / N), the transform of z (K,) at frequencies k + s is

    X[k1, k2] = sum_j2 w_q^(j2 k2) w_K^(j2 (k1 + s)) sum_j1 w_p^(j1 (k1 + s)) z[j1, j2]

a product from the left by a p x p matrix, one by twiddle factors, and a product from the right by a q x q matrix. A
circulant matrix is a product by a spectrum at s = 0, a skew-circulant one at s = 1/2. A Toeplitz matrix is a sum of the
two: what lies on the diagonals k and k - K is c_k + e_k and c_k - e_k. Factors that are no powers of two stand in tiles
that are, with zeros around them.

Two tokens are the real and the imaginary part of z, as D is real: D z = D x_a + i D x_b. For the gradient, the real
part of the inverse transform of sum conj(X) G over pairs is the sum of g_i x_j over i - j = k and over tokens.

Operands of the tensor cores are float16, sums float32. Each token is scaled by a power of two, so that nothing
overflows. For float32 tokens each operand is the sum of two float16 numbers, of whose four products three are taken. A
token that holds an infinity or NaN makes its neighbour in the pair NaN, too.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm.structures.gpu.launch import Launcher

KINDS = ("circulant", "skew_circulant", "toeplitz", "symmetric_toeplitz")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_TILE = 64 * 64  # of which a program holds three, complex, in registers


class Plan(NamedTuple):
    """How a length is transformed: p q = K, in a tile of P x Q."""

    p: int
    q: int
    P: int
    Q: int


class Launch(NamedTuple):
    """Warps of a program, programs on a multiprocessor, and depth of the loop's pipeline."""

    warps: int
    programs: int
    stages: int = 1


@lru_cache(maxsize=256)
def plan(K: int) -> Plan | None:
    """The factors of K whose tile takes the fewest operations, or None: K is too large or has no such factors."""
    plans = [Plan(p, K // p, _tile(p), _tile(K // p)) for p in range(1, K + 1) if K % p == 0]
    fitting = [one for one in plans if max(one.P, one.Q) <= 64 and one.P * one.Q <= LARGEST_TILE]
    return min(fitting, key=lambda one: (one.P * one.Q * (one.P + one.Q), one.Q), default=None)


def supports(kind: str, m: int, n: int, dtype: torch.dtype) -> bool:
    """Whether the functions of this file take such a matrix and tokens of this dtype."""
    return kind in KINDS and dtype in DTYPES and min(m, n) > 0 and plan(max(m, n)) is not None


def launch(P: int, split: bool) -> Launch:
    """By size alone, so that a run repeats on one card to the last bit; of those tried on an H100 the fastest."""
    # A warp for 16 rows: Triton gives all warps of chained products to rows, and more would repeat each other's work.
    return Launch(warps=P // 16, programs=max(1, 128 // P), stages=2 if P == 32 and not split else 1)


class Prepared(NamedTuple):
    """What products by matrices of one kind and size need besides their factors and tokens.

    Attributes:
        sizes: m, n, and the plan's numbers, which the kernels are compiled for.
        matrices: of the transform.
        twiddles: float32, for spectra.
        token_twiddles: those for tokens.
        parts: matrices that D is the sum of: circulant ones and skew-circulant ones.
        spectrum: entries of the spectrum of a part, and of its sum of gradients.
        launch: of the kernels that see tokens.
        most: programs that they have at most.
        split: whether tokens are the sum of two float16 numbers.
    """

    sizes: tuple[int, ...]
    matrices: Tensor
    twiddles: Tensor
    token_twiddles: Tensor
    parts: int
    spectrum: int
    launch: Launch
    most: int
    split: bool


@lru_cache(maxsize=256)
def prepare(
    kind: str, m: int, n: int, shapes: tuple[torch.Size, ...], dtype: torch.dtype, device: torch.device
) -> Prepared:
    """The tables and constants for factors of these shapes and tokens of this dtype; made once.

    Raises:
        ValueError: `supports` says no, or a factor has another size.
    """
    chosen = plan(max(m, n)) if min(m, n) > 0 else None
    if kind not in KINDS or chosen is None:
        raise ValueError(f"no kernel for {kind} matrices of {m} x {n}: ask `supports` first.")
    size = m + n - 1 if kind == "toeplitz" else max(m, n)
    if len(shapes) not in (1, 2) or any(len(shape) != 2 or shape != (shapes[0][0], size) for shape in shapes):
        listed = [tuple(shape) for shape in shapes]
        raise ValueError(f"a {kind} matrix of {m} x {n} has one or two factors of (terms, {size}), given {listed}.")
    shifts, split = _shifts(kind), dtype == torch.float32
    matrices, twiddles, half_twiddles = _tables(chosen, shifts, device)
    # Of half-precision tokens they are float16, which spares registers: a gradient's error is 3.8e-4, not 3.3e-4.
    token_twiddles = twiddles if split else half_twiddles
    how = launch(chosen.P, split)
    most = how.programs * _multiprocessors(device)
    area = 2 * chosen.P * chosen.Q
    return Prepared((m, n, *chosen), matrices, twiddles, token_twiddles, len(shifts), area, how, most, split)


def spectrum(kind: str, factors: Sequence[Tensor], m: int, n: int) -> Tensor:
    """The spectrum of D's generator, in the order and scale that the kernels read: float32, (2 P Q + 1) for each part.

    Args:
        factors: one tensor (terms, size), whose sum over the terms is the generator, or two, whose products are summed.
            The generator is the first column (K,) of a circulant or skew-circulant matrix, the diagonals (m + n - 1,)
            of a Toeplitz matrix, from the upper right to the lower left corner, or the first column (K,) of a symmetric
            Toeplitz matrix. Contiguous.

    Raises:
        ValueError: `supports` says no, or a factor has another size.
    """
    return _spectrum(kind, factors, _prepared(kind, factors, m, n, factors[0]))


def convolve(
    kind: str,
    factors: Sequence[Tensor],
    x: Tensor,
    m: int,
    n: int,
    alpha: float = 1.0,
    out: Tensor | None = None,
    transpose: bool = False,
    known: Tensor | None = None,
) -> Tensor:
    """y = alpha D x, or alpha D^T x: x (T, n) -> (T, m), or (T, m) -> (T, n). 16 K (P + Q) operations for two tokens.

    Args:
        out: y is added to it in place; its rows and those of x may lie apart, but each must be contiguous.
        known: what `spectrum` gave for these factors.

    Raises:
        ValueError: a shape, size or dtype that does not fit.
    """
    how = _prepared(kind, factors, m, n, x)
    inputs, outputs = (m, n) if transpose else (n, m)
    tokens = len(x)
    _check_tokens("x", x, inputs, tokens)
    y = torch.empty(tokens, outputs, device=x.device, dtype=x.dtype) if out is None else out
    if out is not None:
        _check_tokens("out", out, outputs, tokens)
    if tokens:
        spectra = _spectrum(kind, factors, how) if known is None else known
        _convolve(
            (min((tokens + 1) // 2, how.most), 1, 1),
            (x, y, how.matrices, how.token_twiddles, spectra),
            (tokens, float(alpha)),
            (
                *(x.stride(0), y.stride(0), inputs, outputs, *how.sizes[2:]),
                *(how.parts, transpose, out is not None, how.split, how.launch.stages),
            ),
            num_warps=how.launch.warps,
        )
    return y


def backward(
    kind: str,
    factors: Sequence[Tensor],
    g: Tensor,
    x: Tensor,
    m: int,
    n: int,
    alpha: float = 1.0,
    dx: Tensor | None = None,
    known: Tensor | None = None,
) -> list[Tensor]:
    """The gradients of the factors, in their shapes and dtypes, for the gradient g (T, m) of y = alpha D x, x (T, n).

    g is transformed once for both gradients. Sums over tokens are float32, in an order that only the size sets.

    Args:
        dx: (T, n), to which alpha D^T g is added in place; None: not needed.
        known: what `spectrum` gave for these factors; read for `dx` alone.

    Raises:
        ValueError: a shape, size or dtype that does not fit.
    """
    how, tokens = _prepared(kind, factors, m, n, x), len(g)
    _check_tokens("x", x, n, tokens)
    _check_tokens("g", g, m, tokens)
    if dx is not None:
        _check_tokens("dx", dx, n, tokens)
    if not tokens:
        return [torch.zeros_like(factor) for factor in factors]
    spectra = known if known is not None or dx is None else _spectrum(kind, factors, how)
    programs = min((tokens + 1) // 2, how.most)
    partial = torch.empty(programs, how.parts * how.spectrum, device=x.device)
    _backward(
        (programs, 1, 1),
        (g, x, dx, how.matrices, how.token_twiddles, spectra, partial),
        (tokens, float(alpha)),
        (
            *(g.stride(0), x.stride(0), 0 if dx is None else dx.stride(0), *how.sizes),
            *(how.parts, dx is not None, how.split, how.launch.stages),
        ),
        num_warps=how.launch.warps,
    )
    gradients = [torch.empty_like(factor) for factor in factors]
    first, last, terms = factors[0], factors[-1], factors[0].shape[0]
    _gradient(
        (1, 1, 1),
        (partial.sum(dim=0), first, last, gradients[0], gradients[-1], how.matrices, how.twiddles),
        (float(alpha),),
        (*how.sizes, kind, how.parts, terms, len(factors)),
        num_warps=4,
    )
    return gradients


def correlate(
    kind: str, factors: Sequence[Tensor], g: Tensor, x: Tensor, m: int, n: int, alpha: float = 1.0
) -> list[Tensor]:
    """The gradients of the factors alone, as `backward` gives them."""
    return backward(kind, factors, g, x, m, n, alpha)


def _tile(factor: int) -> int:
    """The least size of a tile that holds it; the tensor cores take no less than 16."""
    return max(16, int(triton.next_power_of_2(factor)))


def _shifts(kind: str) -> tuple[float, ...]:
    """Of the frequencies, one for each part of the matrix."""
    return {"circulant": (0.0,), "skew_circulant": (0.5,)}.get(kind, (0.0, 0.5))


def _prepared(kind: str, factors: Sequence[Tensor], m: int, n: int, tokens: Tensor) -> Prepared:
    return prepare(kind, m, n, tuple([factor.shape for factor in factors]), tokens.dtype, factors[0].device)


def _spectrum(kind: str, factors: Sequence[Tensor], how: Prepared) -> Tensor:
    result = torch.empty(how.parts, how.spectrum + 1, device=factors[0].device)
    _spectra(
        (how.parts, 1, 1),
        (factors[0], factors[-1], result, how.matrices, how.twiddles),
        (),
        (*how.sizes, kind, factors[0].shape[0], len(factors)),
        num_warps=4,
    )
    return result


def _check_tokens(name: str, tokens: Tensor, width: int, count: int) -> None:
    if tokens.shape != (count, width) or tokens.dtype not in DTYPES or (width > 1 and tokens.stride(1) != 1):
        raise ValueError(
            f"{name} must be ({count}, {width}) with contiguous rows, in float32, bfloat16 or float16; given "
            f"{tuple(tokens.shape)} with strides {tokens.stride()} in {tokens.dtype}."
        )


@lru_cache(maxsize=64)
def _tables(chosen: Plan, shifts: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices, float16, and the twiddle factors, float32 and float16.

    Of each shift a p x p matrix and p x q factors, and one q x q matrix before them. Of a matrix stand there the real
    part, the imaginary part and its negative, each as the sum of two numbers.
    """
    p, q, P, Q = chosen
    matrices, twiddles = [_halves_of(_powers(q, q, q, 0.0), Q, Q)], []
    for shift in shifts:
        matrices.append(_halves_of(_powers(p, p, p, shift), P, P))
        twiddles.append(_parts_of(_powers(p, q, p * q, shift), P, Q)[:2].flatten())
    factors = torch.cat(twiddles)
    return torch.cat(matrices).to(device), factors.float().to(device), factors.half().to(device)


def load(kind: str, m: int, n: int, device: torch.device) -> None:
    """Make the tables of such matrices now: nothing can be copied to a GPU while a CUDA graph is recorded.

    Raises:
        ValueError: `supports` says no.
    """
    chosen = plan(max(m, n))
    if kind not in KINDS or chosen is None:
        raise ValueError(f"no kernel for {kind} matrices of {m} x {n}: ask `supports` first.")
    _tables(chosen, _shifts(kind), device)


def _powers(rows: int, columns: int, N: int, shift: float) -> Tensor:
    """w_N^(column (row + shift)), (rows, columns), from exact angles."""
    k, j = torch.arange(rows).unsqueeze(1), torch.arange(columns)
    angles = (j * (2 * k + int(2 * shift))) % (2 * N)
    return torch.polar(torch.ones((), dtype=torch.float64), angles.double() * (-torch.pi / N))


def _parts_of(matrix: Tensor, rows: int, columns: int) -> Tensor:
    parts = torch.zeros(3, rows, columns, dtype=torch.float64)
    parts[:, : matrix.shape[0], : matrix.shape[1]] = torch.stack((matrix.real, matrix.imag, -matrix.imag))
    return parts


def _halves_of(matrix: Tensor, rows: int, columns: int) -> Tensor:
    parts = _parts_of(matrix, rows, columns)
    high = parts.half()
    return torch.stack((high, (parts - high).half()), dim=1).flatten()


@lru_cache(maxsize=16)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


# From here on kernels. A matrix is a tuple of six float16 tensors: the real part, the imaginary part and its negative,
# each as a high and a low part, of which the low ones are read only with SPLIT.


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


_spectra, _convolve = Launcher(_spectrum_kernel), Launcher(_convolve_kernel)
_backward, _gradient = Launcher(_backward_kernel), Launcher(_gradient_kernel)
