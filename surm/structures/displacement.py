"""Matrices of low displacement rank."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from surm.structures import functional, projection
from surm.structures.base import Fit, Shape, Structure
from surm.structures.family import Family
from surm.structures.options import count


class LowDisplacementRank(Family):
    """Leading m x n block of sum_i Z_1(g_i) Z_{-1}(h_i), K x K with K = max(m, n) (paper sections 3 and 5.1).

    Circulant times skew-circulant; rank(Z_1 W - W Z_{-1}) is at most the number of terms in the square case.
    G (terms, K) starts at zero, H (terms, K) ~ N(0, 1 / (n terms)) keeps the norm of x; authors: N(0, 0.02^2).
    2 K terms parameters; O(terms K log K) a row.
    """

    name = "ldr"
    equation = "sections 3 and 5.1, appendix A.1"
    option_rules: ClassVar = {"terms": count()}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        shape = (options["terms"], max(m, n))
        return {"G": shape, "H": shape}

    def _product(self, x: Tensor) -> Tensor:
        G, H = self._factors(x.dtype)
        return functional.ldr_product(G, H, x, self.m)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        return Structure._dense(self, dtype)  # the kernel's form rounds differently: its sums run down diagonals

    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        factor.normal_(std=0.02 if authors else (self.n * self.options["terms"]) ** -0.5)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        terms = self.options["terms"]
        if self.m == self.n:
            G, H, fit = projection.nearest_displacement(matrix, terms)
            self._set(G, H)
            return fit
        # The optimiser starts where the displacement of the matrix in a square of zeros is nearest.
        K = max(self.m, self.n)
        self._set(*projection.displacement_generators(pad(matrix, (0, K - self.n, 0, K - self.m)), terms))
        return projection.minimise(self, matrix)

    def _set(self, *factors: Tensor) -> None:
        for parameter, factor in zip(self._factors(), factors, strict=True):
            parameter.copy_(factor)
