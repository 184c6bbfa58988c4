"""Diagonal matrices."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from surm.structures.base import Fit, Shape
from surm.structures.family import Family


class Diagonal(Family):
    """W[i, i] = d[i], the scaling of the Hadamard adapter (Chen et al. 2023, arXiv 2407.11033): w x is x + diag(d) x.

    d (min(m, n),), the paper's w - 1, starts at zero. min(m, n) parameters; O(min(m, n)) a row.
    """

    name = "diagonal"
    equation = "arXiv 2407.11033"
    option_rules: ClassVar = {}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        return {"d": (min(m, n),)}

    def _product(self, x: Tensor) -> Tensor:
        (d,) = self._factors(x.dtype)
        return pad(x[..., : len(d)] * d, (0, self.m - len(d)))

    @staticmethod
    def dense_form(generators: Sequence[Tensor], m: int, n: int) -> Tensor:
        (d,) = generators
        return pad(torch.diag(d), (0, n - len(d), 0, m - len(d)))

    def _approximate(self, matrix: Tensor) -> Fit | None:
        self._factors()[0].copy_(matrix.diagonal())
        return None
