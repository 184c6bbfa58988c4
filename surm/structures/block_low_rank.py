"""Block-diagonal matrices with blocks of low rank."""

from collections.abc import Sequence
from math import gcd
from typing import Any, ClassVar

import torch
from torch import Tensor

from surm.structures import projection
from surm.structures.base import Fit, Shape
from surm.structures.family import Family
from surm.structures.options import count

MOST_BLOCKS = 8  # by default, as many as MELoRA has on Llama-2


class BlockLowRank(Family):
    """diag(B_1 A_1, ..., B_k A_k), MELoRA's update by k = `blocks` small LoRAs (Ren et al. 2024, arXiv 2402.17263).

    Block i takes the i-th slice of x to the i-th slice of y, so the rank is up to k rank, and all other entries are
    zero. B (k, m / k, rank) starts at zero, A (k, rank, n / k) ~ N(0, 1 / rank); authors: LoRA's start of each block,
    within 1 / sqrt(n / k), uniform. `blocks` must divide m and n; by default the largest number up to 8 that does.
    rank (m + n) parameters, whatever k; as many multiplications a row.
    """

    name = "block_low_rank"
    equation = "arXiv 2402.17263"
    option_rules: ClassVar = {"blocks": count(default=None), "rank": count()}

    @classmethod
    def check_options(cls, m: int, n: int, **options: Any) -> dict[str, Any]:
        resolved = super().check_options(m, n, **options)
        common = gcd(m, n)
        blocks = resolved["blocks"] or max(k for k in range(1, MOST_BLOCKS + 1) if common % k == 0)
        if common % blocks:
            divisors = [k for k in range(1, common + 1) if common % k == 0]
            raise ValueError(
                f"{cls.name}: blocks={blocks} does not divide both sizes of a {m} x {n} matrix; give one of "
                f"{', '.join(map(str, divisors))}."
            )
        return resolved | {"blocks": blocks}

    @classmethod
    def fitting_size(cls, **options: Any) -> tuple[int, int]:
        blocks = options.get("blocks") or 1
        return blocks, blocks

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        k, rank = options["blocks"], options["rank"]
        return {"B": (k, m // k, rank), "A": (k, rank, n // k)}

    def _product(self, x: Tensor) -> Tensor:
        B, A = self._factors(x.dtype)
        slices = x.reshape(-1, len(A), A.shape[-1]).transpose(0, 1)
        y = torch.bmm(torch.bmm(slices, A.mT), B.mT)
        return y.transpose(0, 1).reshape(*x.shape[:-1], self.m)

    @staticmethod
    def dense_form(generators: Sequence[Tensor], m: int, n: int) -> Tensor:
        B, A = generators
        W: Tensor = torch.block_diag(*torch.bmm(B, A))  # type: ignore[no-untyped-call]
        return W

    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        if authors:
            super()._randomise(factor, authors=True)
        else:
            factor.normal_(std=self.options["rank"] ** -0.5)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        """Each block by its own singular value decomposition."""
        B, A = self._factors()
        k, rows, rank = B.shape
        blocks = matrix.view(k, rows, k, -1)
        for i in range(k):
            left, right = projection.truncated_svd(blocks[i, :, i], rank)
            B[i], A[i] = left, right
        return None
