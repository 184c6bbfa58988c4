"""Low-rank matrices, the comparison of every structure."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from surm.structures import projection
from surm.structures.base import Fit, Shape
from surm.structures.family import Family
from surm.structures.options import count


class LowRank(Family):
    """sum_t B_t A_t, LoRA's update (Hu et al. 2021; paper section 2).

    B (terms, m, rank) starts at zero, A (terms, rank, n) is Kaiming uniform, that is within 1 / sqrt(n), as in PEFT and
    in the authors' baseline. rank (m + n) parameters a term; O(rank (m + n)) a row.
    """

    name = "low_rank"
    equation = "section 2"
    update_std = 0.05  # since A makes of it smaller entries of W than the second factors of other families do
    option_rules: ClassVar = {"rank": count(), "terms": count()}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        rank, terms = options["rank"], options["terms"]
        return {"B": (terms, m, rank), "A": (terms, rank, n)}

    def _columns(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """B (m, terms rank) and A (terms rank, n) with the terms side by side."""
        B, A = self._factors(dtype)
        return B.transpose(0, 1).flatten(1), A.flatten(0, 1)

    def _product(self, x: Tensor) -> Tensor:
        B, A = self._columns(x.dtype)
        return linear(linear(x, A), B)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        B, A = self._columns(dtype)
        return B @ A

    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        factor.uniform_(-(self.n**-0.5), self.n**-0.5)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        B, A = self._factors()
        terms, rank = self.options["terms"], self.options["rank"]
        left, right = projection.truncated_svd(matrix, terms * rank)
        B.copy_(left.reshape(self.m, terms, rank).transpose(0, 1))
        A.copy_(right.reshape(terms, rank, self.n))
        return None


class Factored(Family):
    """W = B A with factors B (m, rank) and A (rank, n) that a family makes of its parameters and of frozen tensors."""

    @property
    def kernel(self) -> str:
        return LowRank.name

    @abstractmethod
    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        """B and A."""

    def row_work(self) -> tuple[float, float]:
        return 0, self.options["rank"] * (self.m + self.n)

    @torch.no_grad()
    def collapse(self) -> LowRank:
        """The same W as low rank, which keeps its two factors and nothing else."""
        first = self.factors()[0]
        B, A = self.generators(self.compute_dtype(first.dtype))
        # Made without storage first, so that nothing is drawn from the caller's random generator.
        member = LowRank(self.m, self.n, rank=len(A), device="meta", dtype=first.dtype).to_empty(device=first.device)
        member.load_state_dict({"B": B.unsqueeze(0), "A": A.unsqueeze(0)})
        return member

    def _product(self, x: Tensor) -> Tensor:
        B, A = self.generators(x.dtype)
        return linear(linear(x, A), B)
