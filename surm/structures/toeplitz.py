"""Toeplitz matrices and products of two of them."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from surm.structures import functional, projection
from surm.structures.base import Fit, Shape, Structure
from surm.structures.family import ConstantDiagonals
from surm.structures.options import count, one_of


class Toeplitz(ConstantDiagonals):
    """Product of two Toeplitz matrices, sum_t T1_t T2_t with T1 m x K and T2 K x n, or one, K = max(m, n).

    Symmetric (paper section 5.1): the leading block with entries t[|i - j|], t (terms, K). General: entries
    t[i - j + columns - 1], t (terms, rows + columns - 1). t1 starts at zero, t2 ~ N(0, 1 / (n terms)) keeps the norm of
    x; authors: N(0, 0.02^2). With `factors=1` the only t starts at zero.
    Parameters a term: 2 K, general 2 K + m + n - 2; one factor: K, general m + n - 1. O(K log K) a row.
    """

    name = "toeplitz"
    equation = "sections 3 and 5.1"
    option_rules: ClassVar = {"symmetric": one_of(True, False), "factors": one_of(2, 1), "terms": count()}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        K, terms = max(m, n), options["terms"]
        sizes = {"t1": (m, K), "t2": (K, n)} if options["factors"] == 2 else {"t": (m, n)}
        return {
            name: (terms, K if options["symmetric"] else rows + columns - 1) for name, (rows, columns) in sizes.items()
        }

    def _diagonals(self, t: Tensor, rows: int, columns: int) -> Tensor:
        return functional.symmetric_diagonals(t, rows, columns) if self.options["symmetric"] else t

    def _product(self, x: Tensor) -> Tensor:
        if self.is_linear():
            return functional.toeplitz_product(self.diagonals(self.generator(x.dtype)), x, self.m)
        K = max(self.m, self.n)
        t1, t2 = self._factors(x.dtype)
        z = functional.toeplitz_product(self._diagonals(t2, K, self.n), x.unsqueeze(-2), K)
        return functional.toeplitz_product(self._diagonals(t1, self.m, K), z, self.m).sum(dim=-2)

    @property
    def kernel(self) -> str:
        return ("symmetric_" if self.options["symmetric"] else "") + (
            "toeplitz" if self.is_linear() else "toeplitz_pair"
        )

    def _dense(self, dtype: torch.dtype) -> Tensor:
        return super()._dense(dtype) if self.is_linear() else Structure._dense(self, dtype)

    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        factor.normal_(std=0.02 if authors else (self.n * self.options["terms"]) ** -0.5)

    @property
    def generator_size(self) -> int:
        return max(self.m, self.n) if self.options["symmetric"] else self.m + self.n - 1

    def is_linear(self) -> bool:
        return bool(self.options["factors"] == 1)

    def generator(self, dtype: torch.dtype) -> Tensor:
        return self._factors(dtype)[0].sum(dim=0)

    def set_generator(self, generator: Tensor) -> None:
        self._factors()[0].copy_(generator / self.options["terms"])

    def diagonals(self, generator: Tensor) -> Tensor:
        return self._diagonals(generator, self.m, self.n)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        if self.is_linear():
            return super()._approximate(matrix)
        # The optimiser starts at the nearest single matrix, T1 times the identity, in the first term.
        t1, t2 = self._factors()
        K = max(self.m, self.n)
        t1.zero_()
        t2.fill_(K**-0.5)
        t2[0] = 0
        t2[0, 0 if self.options["symmetric"] else self.n - 1] = 1
        one = projection.nearest_generator(matrix, self.diagonals, self.generator_size)
        t1[0, t1.shape[1] - len(one) :] = one
        return projection.minimise(self, matrix)
