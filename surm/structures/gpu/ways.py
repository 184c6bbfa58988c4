"""The ways of a GPU in which updates act, by its kernels; they take what `ways_of` gives them."""

import torch
from torch import Tensor

from surm.structures.gpu import factors, form, transform
from surm.structures.ways import PLAIN, Group, Parts, Plain, Way

TRANSFORMED = 2048  # entries of a row from which a transform beats a product with D; an estimate, not measured


def ways_of(kernel: str, m: int, n: int, dtype: torch.dtype) -> tuple[str, str, int]:
    """The way of m x n matrices of a kernel for few rows x, that for many, and how many rows are many.

    Twice `PLAIN`, where no kernel of a GPU takes such matrices, or rows of the dtype.
    """
    if dtype not in form.DTYPES:
        return PLAIN, PLAIN, 0
    if kernel == "kronecker":
        return "factors", "factors", 0
    if kernel in form.SINGLE:
        transformed = min(m, n) >= TRANSFORMED and transform.supports(kernel, m, n, dtype)
        return "form", "transform" if transformed else "form", TRANSFORMED
    if kernel in form.PAIRS:
        # By the factors a step takes K rows (3 m + 4 n) operations, by D rows 3 m n and for D itself 4 K m n.
        K = max(m, n)
        return "pair", "form", 4 * K * m * n // (K * (3 * m + 4 * n) - 3 * m * n) + 1
    return PLAIN, PLAIN, 0


_PLAIN = Plain()


class Formed(Way):
    """D in one launch, and sums along the diagonals of H = g^T x."""

    def form(self, group: Group, tensors: Parts, n: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        return form.form(group.kernel, tensors, group.m, n, group.alpha, weight, dtype)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        if dx is not None:
            D = self.form(group, tensors, x.shape[1], None, g.dtype)
            dx.addmm_(g, D, beta=0 if fresh else 1)
            del D  # before H is there
        if not needs:
            return []
        found = form.diagonal_gradients(group.kernel, tensors, g.mT @ x, group.m, x.shape[1], group.alpha)
        return [gradient for part in found for gradient in part]


class Paired(Formed):
    """x T2^T T1^T by the two factors of a pair; D where it is added to a weight."""

    def add(self, group: Group, tensors: Parts, x: Tensor, out: Tensor, fresh: bool) -> None:
        form.pair_forward(group.kernel, tensors, x, group.m, group.alpha, out.zero_() if fresh else out)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        into = dx.zero_() if dx is not None and fresh else dx
        found = form.pair_backward(group.kernel, tensors, g, x, group.m, group.alpha, into)
        return [gradient for part in found for gradient in part]


class Transformed(Formed):
    """Transforms of the rows within one kernel; D where it is added to a weight."""

    def add(self, group: Group, tensors: Parts, x: Tensor, out: Tensor, fresh: bool) -> None:
        into, n = (out.zero_() if fresh else out), x.shape[1]
        for own, y in zip(tensors, torch.split(into, group.m, dim=1), strict=True):
            transform.convolve(group.kernel, own, x, group.m, n, group.alpha, y)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        into, gradients = (dx.zero_() if dx is not None and fresh else dx), list[Tensor]()
        for own, part in zip(tensors, torch.split(g, group.m, dim=1), strict=True):
            gradients += transform.backward(group.kernel, own, part, x, group.m, x.shape[1], group.alpha, into)
        return gradients


class Factored(Way):
    """Both products of a row by the factors A and B within one kernel."""

    def form(self, group: Group, tensors: Parts, n: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        return _PLAIN.form(group, tensors, n, weight, dtype)

    def add(self, group: Group, tensors: Parts, x: Tensor, out: Tensor, fresh: bool) -> None:
        if _fit(tensors, x):
            factors.kronecker_product(_pairs(tensors), x, group.alpha, out.zero_() if fresh else out)
        else:
            _PLAIN.add(group, tensors, x, out, fresh)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        if not _fit(tensors, x):
            return _PLAIN.backward(group, tensors, g, x, dx, fresh, needs)
        into = dx.zero_() if dx is not None and fresh else dx
        found = factors.kronecker_gradients(_pairs(tensors), g, x, group.alpha, into)
        return [gradient for part in found for gradient in part]


def _fit(tensors: Parts, x: Tensor) -> bool:
    (terms, m1, n1), (_, m2, n2) = (tensor.shape for tensor in tensors[0])
    return bool(factors.supports(m1, n1, m2, n2, terms, len(tensors), x.dtype))


def _pairs(tensors: Parts) -> list[tuple[Tensor, Tensor]]:
    return [(A, B) for A, B in tensors]


WAYS: dict[str, Way] = {"form": Formed(), "pair": Paired(), "transform": Transformed(), "factors": Factored()}
