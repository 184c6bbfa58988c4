"""Circulant and skew-circulant matrices."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from surm.structures import functional
from surm.structures.base import Shape
from surm.structures.family import ConstantDiagonals
from surm.structures.options import count, one_of


class Circulant(ConstantDiagonals):
    """Leading m x n block of the K x K circulant with first column c, K = max(m, n).

    W[i, j] = c[(i - j) mod K], with c = sum_t r1_t * r2_t (`parametrization="product"`, paper section 5.1) or
    c = sum_t c_t ("direct"). r1 and c (terms, K) start at zero, r2 (terms, K) ~ N(0, 1 / terms); authors: N(0, 1).
    2 K terms parameters (direct: K terms); O(K log K) a row.
    """

    name = "circulant"
    equation = "sections 3 and 5.1"
    option_rules: ClassVar = {"parametrization": one_of("product", "direct"), "terms": count()}
    sign: ClassVar[int] = 1  # of the part that wraps around

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        shape = (options["terms"], max(m, n))
        return {"r1": shape, "r2": shape} if options["parametrization"] == "product" else {"c": shape}

    @property
    def generator_size(self) -> int:
        return max(self.m, self.n)

    def generator(self, dtype: torch.dtype) -> Tensor:
        first, *second = self._factors(dtype)
        return (first * second[0] if second else first).sum(dim=0)

    def set_generator(self, generator: Tensor) -> None:
        first, *second = self._factors()
        share = generator / self.options["terms"]
        if second:
            first.copy_(share.sign() * share.abs().sqrt())
            second[0].copy_(share.abs().sqrt())
        else:
            first.copy_(share)

    @torch.no_grad()
    def collapse(self) -> Self:
        """W with the one vector c, the sum over the terms: K stored numbers."""
        first = self.factors()[0]
        member = type(self)(self.m, self.n, parametrization="direct", device=first.device, dtype=first.dtype)
        member.set_generator(self.generator(self.compute_dtype(first.dtype)))
        return member

    def diagonals(self, generator: Tensor) -> Tensor:
        return functional.circulant_diagonals(generator, self.m, self.n, self.sign)

    def _product(self, x: Tensor) -> Tensor:
        return functional.circulant_product(self.generator(x.dtype), x, self.m)

    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        factor.normal_(std=1.0 if authors else self.options["terms"] ** -0.5)


class SkewCirculant(Circulant):
    """As `Circulant`, with the part above the diagonal negated: W[i, j] = -c[K + i - j] for i < j."""

    name = "skew_circulant"
    equation = "section 3, appendix A.1"
    sign = -1

    def _product(self, x: Tensor) -> Tensor:
        return functional.skew_circulant_product(self.generator(x.dtype), x, self.m)
