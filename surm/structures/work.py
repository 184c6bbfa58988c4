"""What computing with a matrix takes, counted on the operations of its product."""

from collections.abc import Hashable
from math import log2
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


class Work(NamedTuple):
    """What computing with a matrix takes, for a model of costs.

    Attributes:
        kernel: name of its kernel.
        m: rows of the matrix.
        n: columns.
        transforms: what `forward` transforms for a row of x: entries, times the doublings of their number.
        others: its multiplications with additions for a row outside of transforms.
    """

    kernel: str
    m: int
    n: int
    transforms: float
    others: float


def transform_work(entries: float, length: int) -> float:
    """Work of real transforms of a length: their entries times the doublings of the length."""
    return entries * log2(length)


# Formulas in the form of `torch.utils.flop_counter`: the operator's arguments and its result -> work.


def _raw(formula: Any) -> Any:
    formula._get_raw = True  # so that the counter passes tensors, not their shapes
    return formula


@_raw
def _to_spectrum(x: Tensor, *_: Any, **__: Any) -> float:
    return transform_work(x.numel(), x.shape[-1])


@_raw
def _from_spectrum(*_: Any, out_val: Tensor, **__: Any) -> float:
    return transform_work(out_val.numel(), out_val.shape[-1])


@_raw
def _complex_transform(x: Tensor, *_: Any, **__: Any) -> float:
    return transform_work(2 * x.numel(), 2 * x.shape[-1])  # that of a real transform of twice the length


@_raw
def _product(a: Tensor, b: Tensor, *_: Any, **__: Any) -> float:
    return a.numel() * b.shape[-1] * (4 if a.is_complex() else 1)


aten = torch.ops.aten
TRANSFORMS = {aten._fft_r2c: _to_spectrum, aten._fft_c2r: _from_spectrum, aten._fft_c2c: _complex_transform}
PRODUCTS = {aten.mm: _product, aten.bmm: _product}

_counted: dict[Hashable, tuple[float, float]] = {}  # every layer of a model has structures of the same few sizes


def counted_row_work(structure: nn.Module, n: int, key: Hashable) -> tuple[float, float]:
    """`transforms` and `others` of one row of x (..., n), remembered under the key; nothing is computed."""
    if key not in _counted:
        one, two = (_work(structure, rows, n) for rows in (1, 2))  # what does not grow with the rows is no row's
        _counted[key] = two[0] - one[0], two[1] - one[1]
    return _counted[key]


@torch.no_grad()
def _work(structure: nn.Module, rows: int, n: int) -> tuple[float, float]:
    state = {**dict(structure.named_parameters()), **dict(structure.named_buffers())}
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    counter = FlopCounterMode(display=False, custom_mapping={**TRANSFORMS, **PRODUCTS})
    with counter:
        functional_call(structure, meta, (torch.empty(rows, n, device="meta"),))
    counts = counter.get_flop_counts().get("Global", {})
    return sum(counts.get(op, 0) for op in TRANSFORMS), sum(counts.get(op, 0) for op in PRODUCTS)
