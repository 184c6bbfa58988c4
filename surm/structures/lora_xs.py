"""Matrices in the leading singular bases of the weight that they update."""

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from surm.structures.attached import WeightFamily
from surm.structures.base import Fit, Shape
from surm.structures.lowrank import Factored
from surm.structures.options import Option, count, one_of

EXACT = 1024  # the least side of a weight up to which its whole decomposition is taken: about half a second of one core
ITERATIONS = 10  # of the randomised one, as in the authors' code
OVERSAMPLING = 2  # its subspace has so many times the rank, where theirs has 10 dimensions more
AUTHORS_STD = 1e-5


class LoraXS(Factored, WeightFamily):
    """B R A in the bases of the weight, B = U_r and A = S_r V_r^T (LoRA-XS; Balazy et al. 2024, arXiv 2405.17604).

    U_r S_r V_r^T is the truncated singular value decomposition of the weight beside W, as it is when W is attached to
    it. B (m, rank) and A (rank, n) are frozen, R (rank, rank) starts at zero; authors: N(0, 1e-10), the one start of
    all families where W is not exactly zero. The entry of largest size in each column of B is positive, so that R means
    the same wherever B and A are computed; they are saved with R (`save_bases`), as near-equal singular values may
    change places between machines. By default rank is the largest with rank^2 <= m + n, the parameters of LoRA with
    r = 1. rank^2 parameters; O(rank (m + n)) a row.
    """

    name = "lora_xs"
    equation = "arXiv 2405.17604"
    update_std = 0.05  # as of low rank
    kept_names = ("B", "A")
    option_rules: ClassVar[Mapping[str, Option]] = {"rank": count(default=None), "save_bases": one_of(True, False)}

    @classmethod
    def check_options(cls, m: int, n: int, **options: Any) -> dict[str, Any]:
        resolved = super().check_options(m, n, **options)
        rank = resolved["rank"] or min(isqrt(m + n), m, n)
        if rank > min(m, n):
            raise ValueError(
                f"{cls.name}: rank={rank} is more than a {m} x {n} weight has singular values; give at most "
                f"{min(m, n)}."
            )
        return resolved | {"rank": rank}

    @classmethod
    def fitting_size(cls, **options: Any) -> tuple[int, int]:
        rank = options.get("rank") or 1
        return rank, rank

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        return {"R": (options["rank"], options["rank"])}

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        super().reset_parameters(init_weights)
        if init_weights == "authors":
            self.factors()[0].normal_(std=AUTHORS_STD)

    @torch.no_grad()
    def attach(self, weight: Tensor) -> None:
        """Keep B and A of the weight; those that came from a file already stay."""
        if "B" not in self._buffers:
            U, S, Vh = leading_svd(weight.double(), self.options["rank"])
            B, A = U.to(weight.dtype), (S.unsqueeze(-1) * Vh).to(weight.dtype)
            self.keep(saved=self.options["save_bases"], B=B.contiguous(), A=A.contiguous())

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        (R,) = self._factors(dtype)
        return [self.kept("B").to(dtype) @ R, self.kept("A").to(dtype)]

    def _approximate(self, matrix: Tensor) -> Fit | None:
        """R = B^T T A^+, exact as the columns of B are orthonormal."""
        (R,) = self._factors()
        R.copy_(self.kept("B").mT @ matrix @ torch.linalg.pinv(self.kept("A")))
        return None


def leading_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, rank), S (rank,) and V^T (rank, n); the entry of largest size in each column of U is positive.

    Exact up to a size of `EXACT` and for a rank that is no small part of the size. Else by subspace iteration (Halko et
    al. 2011, algorithm 4.4): singular values that the next ones come near are then approximate, while U is orthonormal
    and S V^T = U^T matrix all the same. It starts from one draw on the CPU, which leaves the caller's generator alone
    and is the same on every device, other than that of `torch.svd_lowrank`.
    """
    least = min(matrix.shape)
    if least <= EXACT or 4 * OVERSAMPLING * rank > least:
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        draw = torch.randn(matrix.shape[1], OVERSAMPLING * rank, generator=torch.Generator().manual_seed(0))
        Q = torch.linalg.qr(matrix @ draw.to(matrix)).Q
        for _ in range(ITERATIONS):
            Q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ Q).Q).Q
        U, S, Vh = torch.linalg.svd(Q.mT @ matrix, full_matrices=False)
        U = Q @ U
    U, S, Vh = U[:, :rank], S[:rank], Vh[:rank]
    signs = U.gather(0, U.abs().argmax(dim=0, keepdim=True)).sign()
    return U * signs, S, signs.mT * Vh
