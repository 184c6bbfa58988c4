"""Which way a product with a structured matrix D goes, and a model of what each costs.

* "fused": x (W + D)^T in one product, where D is added to a frozen weight W; float32 and float64 only, since in half
  precision the sum rounds most of D away.
* "dense": x D^T apart, with D formed anew in each pass.
* "fft": by the family's fast transforms, which for Kronecker and low-rank matrices are their factors.

All give the same numbers up to rounding, and keep of token size nothing but x for the backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from surm.structures.autocast import autocasts
from surm.structures.base import Structure
from surm.structures.family import Family
from surm.structures.kernels import KERNELS
from surm.structures.ops import Term, updated_linear

BACKENDS = ("auto", "fused", "fft", "dense")


@dataclass(frozen=True)
class Costs:
    """Seconds of what the ways are made of.

    Attributes:
        multiply_add: one, in a product of large matrices.
        narrow: the same in a product with a small factor.
        transform: an entry of a product by transforms, for each doubling of its length.
        entry: one of D, in each pass over it.
        call: a product by transforms, however few the rows.
    """

    multiply_add: float
    narrow: float
    transform: float
    entry: float
    call: float


# From `scripts/benchmark.py --calibrate` on a CPU with two threads; a transform counts twice what the FFT alone takes,
# an entry three times what it takes in the cache, as whole layers were measured (docs/speed.md). Only ratios matter,
# few choices are close. A GPU's were not measured.
COSTS = {
    torch.float32: Costs(multiply_add=10.3e-12, narrow=31e-12, transform=0.1e-9, entry=0.2e-9, call=120e-6),
    torch.bfloat16: Costs(multiply_add=5.1e-12, narrow=31e-12, transform=0.1e-9, entry=0.2e-9, call=120e-6),
}


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
    if backend not in ("fft", "dense"):
        costs = {"fft": fft_seconds(structure, x), "dense": dense_seconds([structure], x)}
        backend = min(costs, key=costs.__getitem__)
    if backend == "dense":
        if autocasts(x):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return updated_linear(x, None, None, structure.m, terms(structure, x.dtype))
    if torch.is_grad_enabled():
        return cast(Tensor, checkpoint(structure, x, use_reentrant=False, preserve_rng_state=False))
    return cast(Tensor, structure(x))


def terms(structure: Structure, dtype: torch.dtype, rows: slice | None = None, alpha: float = 1.0) -> list[Term]:
    """alpha W as terms of a layer whose input has this dtype; `rows` are those that W updates, without them all."""
    wide = structure.compute_dtype(dtype)
    place = rows or slice(0, structure.m)
    return [Term(place, family.kernel, family.generators(wide), alpha) for family in _families(structure)]


def transformed() -> bool:
    """Whether this runs in a transform of torch.func, which can look through plain operations only."""
    return torch._C._are_functorch_transforms_active()


def prefers_fused(structures: Sequence[Structure], x: Tensor) -> bool:
    """Whether one product with W + D costs less than products with each structure apart, by the model of costs."""
    apart = sum(min(fft_seconds(structure, x), dense_seconds([structure], x)) for structure in structures)
    outputs = sum(structure.m for structure in structures) * _rows(x)  # which are written and added to the layer's
    return fused_seconds(structures, x) < apart + 2 * outputs * _costs(x.dtype).entry


def fft_seconds(structure: Structure, x: Tensor) -> float:
    """Forward, and in training twice for the backward pass and once more to compute again what was not kept."""
    costs = _costs(x.dtype)
    work = [family.row_work() for family in _families(structure)]
    row = sum(transforms * costs.transform + others * costs.narrow for transforms, others in work)
    return (4 if torch.is_grad_enabled() else 1) * (costs.call + _rows(x) * row)


def fused_seconds(structures: Sequence[Structure], x: Tensor) -> float:
    """What D adds to a layer: it is formed in each pass, and in training its generators have gradients."""
    costs, training = _costs(x.dtype), torch.is_grad_enabled()
    seconds = 0.0
    for structure in structures:
        for family in _families(structure):
            kernel, entries = KERNELS[family.kernel], structure.m * structure.n
            seconds += (2 if training else 1) * kernel.passes * entries * costs.entry
            if training and kernel.needs_outer:
                seconds += entries * (_rows(x) * costs.multiply_add + kernel.passes * costs.entry)
            elif training:
                transforms, others = family.row_work()
                seconds += _rows(x) * (transforms * costs.transform + others * costs.narrow)
    return seconds


def dense_seconds(structures: Sequence[Structure], x: Tensor) -> float:
    """As fused, and a product with D of its own in each pass."""
    own = sum(structure.m * structure.n for structure in structures) * _rows(x) * _costs(x.dtype).multiply_add
    return fused_seconds(structures, x) + (2 if torch.is_grad_enabled() else 1) * own


def _families(structure: Structure) -> list[Family]:
    return cast(list[Family], structure.summands())


def _costs(dtype: torch.dtype) -> Costs:
    return COSTS[torch.float32 if dtype in (torch.float32, torch.float64) else torch.bfloat16]


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])
