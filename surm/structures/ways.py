"""How a group of updates acts on a layer: what its output, its weight and the gradients get of alpha D.

A *group* has P matrices of one kind and size, one below the other, as a fused layer's queries, keys and values have
them; `tensors` are the generators of each part. Letters: T rows (tokens), m outputs of a part, n inputs.

Every way does the same. "plain" runs everywhere, by the kernels of `surm.structures.kernels`; those of a GPU, which
need Triton, are loaded when the first one is used.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from surm.structures.kernels import KERNELS

PLAIN, TRACED, FORM, TRANSFORM = "plain", "traced", "form", "transform"  # of the names of ways, those asked for
MOST_PARTS = 4  # of a group for a kernel of a GPU, which has a pointer for each
Parts = Sequence[Sequence[Tensor]]


class Group(NamedTuple):
    """Neighbours of one kind and size, which are computed together; plain data, without tensors.

    Attributes:
        start: first row of the layer's weight that they update.
        stop: the one behind their last.
        parts: P.
        generators: their number in a part.
        kernel: name of their kernel.
        alpha: their factor.
        outer: whether the gradients of the generators are made from H = g^T x, where a way has the choice.
        way: name of the way.
    """

    start: int
    stop: int
    parts: int
    generators: int
    kernel: str
    alpha: float
    outer: bool
    way: str

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    def covers(self, m: int) -> bool:
        """Whether it updates all of m rows."""
        return self.start == 0 and self.stop == m

    @property
    def m(self) -> int:
        """Rows of a part."""
        return (self.stop - self.start) // self.parts


class Way(ABC):
    """One way of a group to act."""

    @abstractmethod
    def form(self, group: Group, tensors: Parts, n: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        """W + alpha D, or alpha D: (P m, n) in `dtype`, in memory of its own; W (P m, n)."""

    def add(self, group: Group, tensors: Parts, x: Tensor, out: Tensor, fresh: bool) -> None:
        """out += alpha x D^T, or out = alpha x D^T if `fresh`: x (T, n), out (T, P m), both of one dtype."""
        D = self.form(group, tensors, x.shape[1], None, x.dtype)
        out.addmm_(x, D.mT, beta=0 if fresh else 1)

    @abstractmethod
    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        """The gradients of all generators, part by part, if they are needed; dx += alpha g D, or dx = it if `fresh`.

        g (T, P m), x and dx (T, n), all of one dtype; the gradients are in that of the generators.
        """


class Plain(Way):
    """By the group's kernel, on any device."""

    def form(self, group: Group, tensors: Parts, n: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        D = self._matrices(group, tensors, n)
        if weight is not None:
            return torch.add(weight, D, alpha=group.alpha, out=D).to(dtype)  # in D's own memory: no copy of the weight
        return (D if group.alpha == 1 else D.mul_(group.alpha)).to(dtype)

    def add(self, group: Group, tensors: Parts, x: Tensor, out: Tensor, fresh: bool) -> None:
        D = self._matrices(group, tensors, x.shape[1]).to(x.dtype)
        out.addmm_(x, D.mT, beta=0 if fresh else 1, alpha=group.alpha)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        if dx is not None:
            D = self._matrices(group, tensors, x.shape[1]).to(g.dtype)
            dx.addmm_(g, D, beta=0 if fresh else 1, alpha=group.alpha)
            del D  # before the gradients are computed
        if not needs:
            return []
        compute = KERNELS[group.kernel].gradients(group.outer)
        gradients = compute(_side_by_side(tensors), g.view(-1, group.parts, group.m), x)
        if group.alpha != 1:
            gradients = [group.alpha * gradient for gradient in gradients]
        return [gradient for part in zip(*(of.unbind() for of in gradients), strict=True) for gradient in part]

    def _matrices(self, group: Group, tensors: Parts, n: int) -> Tensor:
        return KERNELS[group.kernel].dense(_side_by_side(tensors), group.m, n).flatten(0, 1)


def _side_by_side(tensors: Parts) -> list[Tensor]:
    """One tensor (P, ...) for each generator."""
    if len(tensors) == 1:
        return [tensor.unsqueeze(0) for tensor in tensors[0]]
    return [torch.stack(same) for same in zip(*tensors, strict=True)]
