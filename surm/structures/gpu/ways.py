"""The ways of a GPU in which updates act, by its kernels; they take what `ways_of` gives them.

Which way is the fastest was measured on an H100, see docs/speed.md:

* In half precision a product with D and H = g^T x cost least up to width 1024; transforms where D is larger. For pairs,
  whose D is a product of two matrices, the same.
* In float32, whose products are sixteen times as slow, W + D is one product, and transforms take the place of H. For a
  pair of which D costs more than its transforms, D is never formed.
"""

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from surm.structures.gpu import factors, form, transform
from surm.structures.gpu.pairs import pair_backward, pair_forward
from surm.structures.ways import FORM, PLAIN, TRANSFORM, Group, Parts, Plain, Way

CORRELATE, FACTORS = "correlate", "factors"
TRANSFORMED = 1024  # largest side beyond which transforms beat products with D, in half precision
MANY = 8192  # rows from which they do at that size
CORRELATED = 512  # largest side from which transforms beat H = g^T x, in float32
FORMED = 4096  # rows from which D of a pair of at most `TRANSFORMED` costs less than two more transforms, in float32


def ways_of(kernel: str, m: int, n: int, dtype: torch.dtype) -> tuple[str, str, int]:
    """The way of m x n matrices of a kernel for few rows x, that for many, and how many rows are many.

    Twice `PLAIN`, where no kernel of a GPU takes such matrices, or rows of the dtype.
    """
    if dtype not in form.DTYPES:
        return PLAIN, PLAIN, 0
    if kernel == "kronecker":
        return FACTORS, FACTORS, 0
    K = max(m, n)
    if kernel in form.SINGLE:
        if not transform.supports(kernel, m, n, dtype):
            return FORM, FORM, 0
        if dtype == torch.float32:
            return (FORM, FORM, 0) if K < CORRELATED else (CORRELATE, CORRELATE, 0)
        if K > TRANSFORMED:
            return TRANSFORM, TRANSFORM, 0
        # A Toeplitz matrix takes two transforms.
        pays = K == TRANSFORMED and "toeplitz" not in kernel
        return FORM, TRANSFORM if pays else FORM, MANY
    if kernel in form.PAIRS:
        one, two = form.PAIRS[kernel]
        if not (transform.supports(one, m, K, dtype) and transform.supports(two, K, n, dtype)):
            return FORM, FORM, 0
        if K > TRANSFORMED:
            return TRANSFORM, TRANSFORM, 0
        if dtype == torch.float32 and K >= CORRELATED:
            return TRANSFORM, CORRELATE, FORMED
        return FORM, FORM, 0
    return PLAIN, PLAIN, 0


def loaded_ways_of(kernel: str, m: int, n: int, dtype: torch.dtype) -> tuple[str, str, int]:
    """`ways_of`, with the tables that they need on the current GPU."""
    ways = ways_of(kernel, m, n, dtype)
    if {TRANSFORM, CORRELATE}.intersection(ways):
        K = max(m, n)
        one, two = form.PAIRS.get(kernel, (kernel, kernel))
        for kind, rows, columns in {(one, m, K), (two, K, n)}:
            transform.load(kind, rows, columns, torch.device("cuda", torch.cuda.current_device()))
    return ways


class Formed(Way):
    """D in one launch, and sums along the diagonals of H = g^T x."""

    def form(self, group: Group, tensors: Parts, n: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        return form.form(group.kernel, tensors, group.m, n, group.alpha, weight, dtype)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        if dx is not None:  # D is gone again before H is there
            dx.addmm_(g, self.form(group, tensors, x.shape[1], None, g.dtype), beta=0 if fresh else 1)
        return self.gradients(group, tensors, g, x) if needs else []

    def gradients(self, group: Group, tensors: Parts, g: Tensor, x: Tensor) -> list[Tensor]:
        """Of the parameters."""
        found = form.diagonal_gradients(group.kernel, tensors, torch.mm(g.mT, x), group.m, x.shape[1], group.alpha)
        return [gradient for part in found for gradient in part]


class Correlated(Formed):
    """D in one launch, and the gradients by transforms."""

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        found = self.gradients(group, tensors, g, x) if needs else []  # first, for `Fitting`
        super().backward(group, tensors, g, x, dx, fresh, needs=False)
        return found

    def gradients(self, group: Group, tensors: Parts, g: Tensor, x: Tensor) -> list[Tensor]:
        return _by_transforms(group, tensors, g, x, None)


class Transformed(Formed):
    """Products and gradients by transforms; D where it is added to a weight."""

    def add(self, group: Group, tensors: Parts, x: Tensor, out: Tensor, fresh: bool) -> None:
        if fresh:
            out.zero_()
        for own, y in zip(tensors, _columns(out, group), strict=True):
            if group.kernel in form.PAIRS:
                pair_forward(group.kernel, own, x, group.m, group.alpha, y)
            else:
                transform.convolve(group.kernel, own, x, group.m, x.shape[1], group.alpha, y)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        if dx is not None and fresh:
            dx.zero_()
        return _by_transforms(group, tensors, g, x, dx)


def _by_transforms(group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None) -> list[Tensor]:
    gradients: list[Tensor] = []
    for own, part in zip(tensors, _columns(g, group), strict=True):
        if group.kernel in form.PAIRS:
            gradients += pair_backward(group.kernel, own, part, x, group.m, group.alpha, dx)
        else:
            gradients += transform.backward(group.kernel, own, part, x, group.m, x.shape[1], group.alpha, dx)
    return gradients


def _columns(rows: Tensor, group: Group) -> list[Tensor]:
    """The columns of each part."""
    return [rows] if group.parts == 1 else list(torch.split(rows, group.m, dim=1))


class Factored(Way):
    """Both products of a row by the factors A and B within one kernel; A kron B where it is added to a weight."""

    def form(self, group: Group, tensors: Parts, n: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        if len(tensors[0][0]) > 1:
            return _PLAIN.form(group, tensors, n, weight, dtype)
        return factors.kronecker_form(tensors, group.alpha, weight, dtype)

    def add(self, group: Group, tensors: Parts, x: Tensor, out: Tensor, fresh: bool) -> None:
        if _fit(tensors, x):
            factors.kronecker_product(tensors, x, group.alpha, out.zero_() if fresh else out)
        else:
            super().add(group, tensors, x, out, fresh)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        if not _fit(tensors, x):
            return _PLAIN.backward(group, tensors, g, x, dx, fresh, needs)
        into = dx.zero_() if dx is not None and fresh else dx
        found = factors.kronecker_gradients(tensors, g, x, group.alpha, into)
        return [gradient for part in found for gradient in part]


def _fit(tensors: Parts, x: Tensor) -> bool:
    (terms, m1, n1), (_, m2, n2) = (tensor.shape for tensor in tensors[0])
    return bool(factors.supports(m1, n1, m2, n2, terms, len(tensors), x.dtype))


class Fitting(Way):
    """A way, or another one where its kernels take more shared memory than the GPU has (docs/speed.md).

    Triton says so at a first launch, and until the first kernel of tokens runs nothing is added to an output or to the
    gradient of x. The kernel that ends the parameters' gradients runs later, and is smaller than that of spectra, which
    runs before.
    """

    def __init__(self, first: Way, other: Way) -> None:
        self.first, self.other = first, other
        self.refused: set[tuple[object, ...]] = set()

    def form(self, group: Group, tensors: Parts, n: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        return self.first.form(group, tensors, n, weight, dtype)

    def add(self, group: Group, tensors: Parts, x: Tensor, out: Tensor, fresh: bool) -> None:
        if not (self.refused and _kind(group, x) in self.refused):
            try:
                return self.first.add(group, tensors, x, out, fresh)
            except OutOfResources:
                self.refused.add(_kind(group, x))
        return self.other.add(group, tensors, x, out, fresh)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        if not (self.refused and _kind(group, x) in self.refused):
            try:
                return self.first.backward(group, tensors, g, x, dx, fresh, needs)
            except OutOfResources:
                self.refused.add(_kind(group, x))
        return self.other.backward(group, tensors, g, x, dx, fresh, needs)


def _kind(group: Group, x: Tensor) -> tuple[object, ...]:
    """What the size of a kernel depends on."""
    return group.kernel, group.m, x.shape[1], x.dtype, x.device


_PLAIN = Plain()
WAYS: dict[str, Way] = {
    FORM: Formed(),
    CORRELATE: Fitting(Correlated(), Formed()),
    TRANSFORM: Fitting(Transformed(), Formed()),
    FACTORS: Fitting(Factored(), _PLAIN),
}
