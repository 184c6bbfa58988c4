"""What a kernel is, and rows taken a few at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Self

import torch
from torch import Tensor

from surm.structures.kernels.shifts import outer

Tensors = Sequence[Tensor]
Dense = Callable[[Tensors, int, int], Tensor]
Gradients = Callable[[Tensors, Tensor, Tensor], list[Tensor]]

CHUNK = {"cpu": 2**19, "cuda": 2**25}  # entries at a time: on a CPU what is made of them stays in the cache


@dataclass(frozen=True)
class Kernel:
    """One way to write an m x n matrix D by a few small tensors; its functions work on P matrices at once.

    Attributes:
        dense: (tensors, m, n) -> D (P, m, n), new and contiguous.
        by_rows: (tensors, g, x) -> the gradients of the tensors, in their dtype, without H; None if there is no way.
        by_outer: the same from H, which costs a product with as many rows, and O(m n); None: derived from `dense`.
        outer_pays: whether gradients from H can be the cheaper ones, where there are those by rows too.
        passes: what it takes to form D and add it to a weight, in the time for D to be read or written once.
        product: how many times as long as its counted work a product takes that is not formed by D.
    """

    dense: Dense
    by_rows: Gradients | None = None
    by_outer: Gradients | None = None
    outer_pays: bool = True
    passes: int = 2
    product: float = 1.0

    @classmethod
    def of_form(cls, form: Dense) -> Self:
        """The kernel of a dense form of one matrix, (tensors, m, n) -> D (m, n), with everything else derived."""

        def dense(tensors: Tensors, m: int, n: int) -> Tensor:
            parts = zip(*(tensor.unbind() for tensor in tensors), strict=True)
            return torch.stack([form(part, m, n) for part in parts])

        # Twice, as was measured for two families whose products `einsum` makes, which copies what it multiplies: of
        # 1024 x 1024 with 2,048 rows, W + D in one product took two thirds of the time of the two products apart.
        return cls(dense, product=2.0)

    def gradients(self, outer: bool) -> Gradients:
        """By H if `outer`, or if there is no other way."""
        if self.by_rows is not None and not outer:
            return self.by_rows
        return self.by_outer or self._pulled_back

    def _pulled_back(self, tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
        """The vector-Jacobian product of D at H: the gradients of the tensors of any kernel.

        Gradients written by hand stay where they are faster. For 768 x 768 and 2,048 rows (processor time of one core,
        interleaved) the derived ones take 1.1 (Kronecker) to 1.2 times as long in float32, 1.2 to 1.4 in bfloat16, and
        at width 64 up to twice as long, so that the seven first kernels keep theirs; a new kernel needs none.
        """
        m, n = g.shape[-1], x.shape[-1]
        H = outer(g, x, tensors[0])[:, :m]
        with _autograd():
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            return list(torch.autograd.grad(self.dense(leaves, m, n), leaves, H))


@contextmanager
def _autograd() -> Iterator[None]:
    """Autograd on, also inside an operator of torch.library, which runs below it: its dispatch key is excluded there.

    By torch's own guard, as torch.func, the public way, fails in an operator that a compiled graph calls.
    """
    excluded = torch._C._dispatch_tls_local_exclude_set()
    excluded = excluded - torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded), torch.enable_grad():
        yield


def chunks(like: Tensor, width: int, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of each in the dtype of `like`, never more than at first; `width` is what is made of a row."""
    most, count = max(1, CHUNK.get(like.device.type, CHUNK["cuda"]) // width), len(rows[0])
    size = ceil(count / max(1, ceil(count / most))) or 1
    for chunk in zip(*(torch.split(tensor, size) for tensor in rows), strict=True):
        yield tuple(part.to(like.dtype) for part in chunk)
