"""What a kernel is, and rows taken a few at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
Gradients = Callable[[Tensors, Tensor, Tensor], list[Tensor]]

CHUNK = {"cpu": 2**19, "cuda": 2**25}  # entries at a time: on a CPU what is made of them stays in the cache


@dataclass(frozen=True)
class Kernel:
    """One way to write an m x n matrix D by a few small tensors; its functions work on P matrices at once.

    Attributes:
        generators: how many tensors it takes.
        dense: (tensors, m, n) -> D (P, m, n), new and contiguous.
        by_rows: (tensors, g, x) -> the gradients of the tensors, in their dtype, without H; None if there is no way.
        by_outer: the same from H, which costs a product with as many rows, and O(m n); None where that is never less.
        passes: what it takes to form D and add it to a weight, in the time for D to be read or written once.
    """

    generators: int
    dense: Callable[[Tensors, int, int], Tensor]
    by_rows: Gradients | None = None
    by_outer: Gradients | None = None
    passes: int = 2

    def gradients(self, outer: bool) -> Gradients:
        """By H if `outer`, which must be a way that there is."""
        compute = self.by_outer if outer else self.by_rows
        assert compute is not None
        return compute


def chunks(like: Tensor, width: int, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of each in the dtype of `like`, never more than at first; `width` is what is made of a row."""
    most, count = max(1, CHUNK.get(like.device.type, CHUNK["cuda"]) // width), len(rows[0])
    size = ceil(count / max(1, ceil(count / most))) or 1
    for chunk in zip(*(torch.split(tensor, size) for tensor in rows), strict=True):
        yield tuple(part.to(like.dtype) for part in chunk)
