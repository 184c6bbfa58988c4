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
from torch import Tensor

from surm.structures.gpu import transform_kernels as kernels

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
        kernels.convolve(
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
    partial = torch.empty(programs, how.parts * how.spectrum, dtype=torch.float32, device=x.device)
    kernels.backward(
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
    kernels.gradient(
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
    result = torch.empty(how.parts, how.spectrum + 1, dtype=torch.float32, device=factors[0].device)
    kernels.spectra(
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
