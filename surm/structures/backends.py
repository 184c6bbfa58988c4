"""Which way a product with a structured matrix D goes, chosen by a model of costs.

The model counts the primitives that each way takes (`surm.structures.work`) and multiplies them by the measured cost of
each. The ways:

* "fused": x (W + D)^T in one product, where D is added to a frozen weight W; float32 and float64 only, since in half
  precision the sum rounds most of D away.
* "dense": x D^T apart, with D formed anew in each pass.
* "fft": by the family's fast transforms, which for Kronecker and low-rank matrices are their factors.

All give the same numbers up to rounding, and keep of token size nothing but x for the backward pass.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from operator import lt
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from surm.structures.autocast import autocasts, without_autocast
from surm.structures.base import Structure
from surm.structures.family import Family
from surm.structures.gpu import available
from surm.structures.kernels import KERNELS
from surm.structures.ops import updated_linear
from surm.structures.plan import Update
from surm.structures.traced import traces
from surm.structures.ways import FORM, PLAIN, TRACED, TRANSFORM
from surm.structures.work import Work

R = TypeVar("R")

BACKENDS = ("auto", "fused", "fft", "dense")


@dataclass(frozen=True)
class Costs:
    """Measured cost of each primitive, in seconds.

    Attributes:
        multiply_add: a multiplication with an addition in a product of large matrices.
        narrow: the same in a product with a small factor, which the memory limits.
        transform: an entry of a transform, for each doubling of the transform's length.
        entry: an entry of D, read or written once in a pass over it.
        call: a product by transforms, however few the rows.
    """

    multiply_add: float
    narrow: float
    transform: float
    entry: float
    call: float


# By device and dtype. "cpu", which stands for all others: from `scripts/benchmark.py --calibrate` on a CPU with two
# threads; a transform counts 2.5 times what the FFT alone takes, an entry five times what it takes in the cache, as
# whole layers were measured (docs/speed.md). Only ratios matter, and few choices are close.
# "cuda": not calibrated yet; estimated from times of whole layers, with the host's share in `call`.
COSTS = {
    ("cpu", torch.float32): Costs(9.5e-12, narrow=31e-12, transform=0.1e-9, entry=0.2e-9, call=120e-6),
    ("cpu", torch.bfloat16): Costs(2.2e-12, narrow=31e-12, transform=0.1e-9, entry=0.2e-9, call=120e-6),
    ("cuda", torch.float32): Costs(42e-15, narrow=0.2e-12, transform=0.5e-12, entry=3e-12, call=200e-6),
    ("cuda", torch.bfloat16): Costs(3e-15, narrow=0.1e-12, transform=0.5e-12, entry=3e-12, call=200e-6),
}
# A product by transforms holds all rows at once: beyond so many entries, times their doublings, they leave the cache,
# and each takes so many times as long.
CACHED, STREAMED = 2**28, 3


def product(structure: Structure, x: Tensor, backend: str = "auto") -> Tensor:
    """y = W x: (..., n) -> (..., m), in the dtype of x, keeping for the backward pass x alone of the size of x.

    Under autocast, "dense" computes in its dtype; "fft" always computes in float32 or float64.

    Args:
        backend: "fft", "dense", or "auto", which takes the cheaper by the model of costs.

    Raises:
        ValueError: x has another last dimension than n.
    """
    structure.check_input(x)
    if transformed():
        return cast(Tensor, structure(x))
    if backend != "fft":
        dtype = torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype
        # Without a weight beside it, "fused" is no way.
        choice = choose([structure], x, dtype, exact=False, backends=frozenset((backend,)))
        if not choice.fft:
            listed = updates(structure, x, ways=choice.ways)
            return updated_linear(x, None, None, structure.m, listed, dtype=dtype)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *structure.factors()))):
        return cast(Tensor, structure(x))
    compute = structure if torch.compiler.is_compiling() else _recomputable(structure, x)
    return cast(Tensor, checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False))


def _recomputable(structure: Structure, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The structure, to be called on x now and again in the backward pass, which must then see the same numbers.

    Raises:
        RuntimeError: in a later call, in autograd's words: x or a parameter was changed in place since the first one.
    """
    parameters: dict[str, Tensor] = dict(structure.named_parameters())
    versions = _versions(x, structure)

    def compute(x: Tensor) -> Tensor:
        current = dict(structure.named_parameters())
        if any(current[name] is not parameter for name, parameter in parameters.items()):
            # Called within `torch.func.functional_call`, whose parameters are gone by now.
            return cast(Tensor, functional_call(structure, parameters, (x,)))
        for (tensor, version), (_, before) in zip(_versions(x, structure), versions, strict=True):
            if version != before:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{tensor.type()} {list(tensor.shape)}] is at version {version}; expected version {before} "
                    "instead. It is the input or a parameter of a layer with a structured update: call backward() "
                    "before the optimiser's step, or forward again after it."
                )
        return cast(Tensor, structure(x))

    return compute


def _versions(x: Tensor, structure: Structure) -> list[tuple[Tensor, int]]:
    """What a product reads, with how many times each was changed in place; inference tensors never are."""
    return [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in (x, *structure.factors())]


class Choice(NamedTuple):
    """What a layer with some structures does with one input.

    Attributes:
        fft: whether one of them takes its own product, which the layer then adds to its output.
        together: else: one product with W + D.
        ways: else: for each family of each structure in order, its way and whether its gradients come from H.
    """

    fft: bool
    together: bool
    ways: tuple[tuple[str, bool], ...]


def choose(
    structures: Sequence[Structure], x: Tensor, dtype: torch.dtype, *, exact: bool, backends: frozenset[str]
) -> Choice:
    """What costs least by the model of costs, of what `backends` allow.

    Args:
        structures: those that act on x.
        x: the input.
        dtype: that of the products.
        exact: whether W may be added to: it is there, and in float32 or float64.
        backends: those of the structures' adapters.
    """
    work, training = tuple(map(_work, structures)), torch.is_grad_enabled()
    return _choose(work, _rows(x), dtype, x.device.type, training, exact, backends)


def updates(
    structure: Structure,
    x: Tensor,
    rows: slice | None = None,
    alpha: float = 1.0,
    ways: Sequence[tuple[str, bool]] | None = None,
) -> list[Update]:
    """alpha W as updates of a layer with the input x, one for each family that W is a sum of.

    Args:
        structure: W.
        x: the input, in the dtype of the products.
        rows: of the layer's weight, to which W is added; None: all of them.
        alpha: the factor.
        ways: of each family, with whether its gradients come from H, and of others behind; None: the cheapest.
    """
    if ways is None:
        ways = choose([structure], x, x.dtype, exact=False, backends=frozenset(("dense",))).ways
    wide, updated = structure.compute_dtype(x.dtype), rows or slice(0, structure.m)
    listed = []
    for family, (way, outer) in zip(_families(structure), ways, strict=False):
        with without_autocast(x):  # a family may make them by products of its own
            generators = family.generators(wide)
        # A kernel for a GPU reads them one entry after the other, and does not ask where; torch's own operators do.
        readable = way == PLAIN or all(tensor.is_contiguous() and tensor.device == x.device for tensor in generators)
        way = way if readable else PLAIN
        listed.append(Update(updated, family.kernel, generators, alpha, outer, way))
    return listed


def transformed() -> bool:
    """Whether a transform of torch.func, forward-mode derivatives or torch.jit.trace look through plain operations."""
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    tracing = torch._C._get_tracing_state() is not None
    return torch._C._are_functorch_transforms_active() or forward_mode or tracing


def _remembered(function: Callable[..., R]) -> Callable[..., R]:
    """`lru_cache`, but not in what `torch.compile` follows, which warns of a cache and ignores it."""
    cached = lru_cache(maxsize=4096)(function)

    @wraps(function)
    def call(*arguments: Hashable) -> R:
        return (function if torch.compiler.is_compiling() else cached)(*arguments)

    return call


@_remembered
def _choose(
    structures: tuple[tuple[Work, ...], ...],
    rows: int,
    dtype: torch.dtype,
    device: str,
    training: bool,
    exact: bool,
    backends: frozenset[str],
) -> Choice:
    case = rows, dtype, device, training
    ways = tuple(_way(part, rows, dtype, device) for work in structures for part in work)
    may_sum = exact and "dense" not in backends
    if all(way != PLAIN for way, _ in ways):  # the fastest of a GPU
        if "dense" in backends:
            ways = tuple((FORM if way == TRANSFORM else way, outer) for way, outer in ways)
        together = may_sum and (backends == {"fused"} or all(way != TRANSFORM for way, _ in ways))
        return Choice(False, together, ways)
    by_transforms = [_fft_seconds(work, *case) for work in structures]
    by_matrix = [_dense_seconds(work, *case) for work in structures]
    apart = sum(map(min, by_transforms, by_matrix))
    outputs = rows * sum(work[0].m for work in structures)  # which are written and added to the layer's
    fused = sum(_fused_seconds(work, *case) for work in structures)
    least = fused < apart + 2 * outputs * _costs(dtype, device).entry
    together = may_sum and (backends == {"fused"} or least)
    fft = not (together or backends == {"dense"}) and any(map(lt, by_transforms, by_matrix))
    return Choice(fft, together, ways)


def _way(work: Work, rows: int, dtype: torch.dtype, device: str) -> tuple[str, bool]:
    """The way of a family, and whether its gradients come from H."""
    if device != "cuda":
        return PLAIN, _gradient(work, rows, dtype, device).outer
    if torch.compiler.is_compiling() and traces(work.kernel, work.m, work.n, dtype):
        return TRACED, True
    few, many, least = _ways_of(work.kernel, work.m, work.n, dtype)
    way = many if rows >= least else few
    return way, way != PLAIN or _gradient(work, rows, dtype, device).outer


# A constant to torch.compile, which could not follow it into Triton.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _ways_of(kernel: str, m: int, n: int, dtype: torch.dtype) -> tuple[str, str, int]:
    if not available(torch.device("cuda")):
        return PLAIN, PLAIN, 0
    from surm.structures.gpu.ways import loaded_ways_of

    return loaded_ways_of(kernel, m, n, dtype)


def _fft_seconds(work: tuple[Work, ...], rows: int, dtype: torch.dtype, device: str, training: bool) -> float:
    """Forward, and in training twice for the backward pass and once more to compute again what was not kept."""
    costs = _costs(dtype, device)
    transforms = rows * sum(KERNELS[part.kernel].product * part.transforms for part in work)
    others = sum(KERNELS[part.kernel].product * part.others for part in work)
    seconds = costs.call + transforms * costs.transform * (STREAMED if transforms > CACHED else 1)
    return (4 if training else 1) * (seconds + rows * others * costs.narrow)


def _fused_seconds(work: tuple[Work, ...], rows: int, dtype: torch.dtype, device: str, training: bool) -> float:
    """What D adds to a layer: it is formed in each pass, and in training its generators have gradients."""
    forming = sum(KERNELS[part.kernel].passes * part.m * part.n for part in work) * _costs(dtype, device).entry
    if not training:
        return forming
    return 2 * forming + sum(_gradient(part, rows, dtype, device).seconds for part in work)


def _dense_seconds(work: tuple[Work, ...], rows: int, dtype: torch.dtype, device: str, training: bool) -> float:
    """As fused, and a product with D of its own in each pass."""
    product = work[0].m * work[0].n * rows * _costs(dtype, device).multiply_add
    return _fused_seconds(work, rows, dtype, device, training) + (2 if training else 1) * product


class _Gradient(NamedTuple):
    seconds: float
    outer: bool


@_remembered
def _gradient(work: Work, rows: int, dtype: torch.dtype, device: str) -> _Gradient:
    """The cheaper of a kernel's ways to the gradients of its generators."""
    kernel, costs, ways = KERNELS[work.kernel], _costs(dtype, device), []
    if kernel.by_rows:  # as many transforms as in a product, of x and g, but twice the multiplications, for two factors
        seconds = rows * (work.transforms * costs.transform + 2 * work.others * costs.narrow)
        ways.append(_Gradient(seconds, outer=False))
    if kernel.outer_pays or not ways:
        seconds = work.m * work.n * (rows * costs.multiply_add + kernel.passes * costs.entry)
        ways.append(_Gradient(seconds, outer=True))
    return min(ways)


def _families(structure: Structure) -> list[Family]:
    return cast(list[Family], structure.summands())


def _work(structure: Structure) -> tuple[Work, ...]:
    return tuple(family.work for family in _families(structure))


def _costs(dtype: torch.dtype, device: str) -> Costs:
    wide = dtype in (torch.float32, torch.float64)
    return COSTS[device if device == "cuda" else "cpu", torch.float32 if wide else torch.bfloat16]


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])
