"""Low-rank matrices between frozen random factors."""

from collections.abc import Mapping
from typing import Any, ClassVar
from zlib import crc32

import torch
from torch import Tensor

from surm.structures import projection
from surm.structures.base import Device, Fit, Shape
from surm.structures.lowrank import Factored
from surm.structures.options import Option, count, is_shape
from surm.structures.seeded import Seeded


class Orthonormal(Seeded):
    """Frozen tensors with orthonormal columns, or rows where there are fewer: Q of a Gaussian's QR decomposition."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        tall = shape[0] >= shape[1]
        gaussian = super().draw(shape, generator).double()  # of which Q is the same in float32 on every machine
        Q, R = torch.linalg.qr(gaussian if tall else gaussian.mT)
        Q *= R.diagonal().sign()  # R with a positive diagonal, which makes Q unique
        orthonormal: Tensor = Q if tall else Q.mT.contiguous()
        return orthonormal.float()


class LoraMini(Factored):
    """B_aux B A A_aux, LoRA whose outer factors are frozen (LoRA-Mini; Singh et al. 2024, arXiv 2411.15804).

    `outer` = [a, b]: A_aux (a, n) has orthonormal rows, B_aux (m, b) orthonormal columns. B (b, rank) starts at zero, A
    (rank, a) uniform within 1 / sqrt(a), so that A A_aux has entries of the size of LoRA's A. The outer factors are
    drawn from `outer_seed` and the name of the layer: not trained, not counted, not saved. By default a = n / rank and
    b = m / rank, rounded up: the parameters of LoRA with r = 1, as the paper's sizes are not known.
    rank (a + b) parameters; O(rank (m + n)) a row.

    init_weights="authors" is refused: they start both trained factors at zero, where no gradient exists.
    """

    name = "lora_mini"
    equation = "arXiv 2411.15804"
    update_std = 0.05  # as of low rank
    needs_place = True
    option_rules: ClassVar[Mapping[str, Option]] = {
        "rank": count(),
        "outer": Option(list[int], None, is_shape, "two integers [a, b], a of at most n and b of at most m"),
        "outer_seed": Option(int, 0, lambda seed: type(seed) is int and seed >= 0, "an integer of at least 0"),
    }

    @classmethod
    def check_options(cls, m: int, n: int, **options: Any) -> dict[str, Any]:
        resolved = super().check_options(m, n, **options)
        rank = resolved["rank"]
        a, b = resolved["outer"] or (-(-n // rank), -(-m // rank))
        if a > n or b > m:
            raise ValueError(
                f"{cls.name}: outer={[a, b]} is not possible for a {m} x {n} matrix; give [a, b] with a of at most "
                f"{n} and b of at most {m}."
            )
        return resolved | {"outer": [a, b]}

    @classmethod
    def fitting_size(cls, **options: Any) -> tuple[int, int]:
        a, b = options.get("outer") or (1, 1)
        return b, a

    @classmethod
    def check_start(cls, init_weights: bool | str) -> None:
        super().check_start(init_weights)
        if init_weights == "authors":
            raise ValueError(
                f"{cls.name}: init_weights='authors' cannot train, since both trained factors are zero there and so "
                "are all gradients; leave it at its default."
            )

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        (a, b), rank = options["outer"], options["rank"]
        return {"B": (b, rank), "A": (rank, a)}

    def _build(self, device: Device, dtype: torch.dtype | None) -> None:
        super()._build(device, dtype)
        a, b = self.options["outer"]
        self.frozen = Orthonormal(self.options["outer_seed"], {"B_aux": (self.m, b), "A_aux": (a, self.n)}, device)

    def place(self, name: str) -> None:
        self.frozen.draw_again(crc32(f"{self.options['outer_seed']} {name}".encode()))

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        B, A = self._factors(dtype)
        B_aux, A_aux = self._outer(dtype)
        return [B_aux @ B, A @ A_aux]

    def _outer(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.frozen.get_buffer("B_aux").to(dtype), self.frozen.get_buffer("A_aux").to(dtype)

    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        factor.uniform_(-(factor.shape[-1] ** -0.5), factor.shape[-1] ** -0.5)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        """B_aux SVD_r(B_aux^T T A_aux^T) A_aux, as the outer factors are orthonormal; up to their rounding, R and S."""
        B, A = self._factors()
        B_aux, A_aux = self._outer(torch.float64)
        Q, R = torch.linalg.qr(B_aux)
        P, S = torch.linalg.qr(A_aux.mT)
        left, right = projection.truncated_svd(Q.mT @ matrix @ P, self.options["rank"])
        B.copy_(torch.linalg.solve_triangular(R, left, upper=True))
        A.copy_(torch.linalg.solve_triangular(S, right.mT, upper=True).mT)
        return None
