"""Parameterised hypercomplex multiplication, whose matrices the layers of a Compacter adapter multiply by."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, einsum, nn

from surm.structures.base import Device, Shape, Structure
from surm.structures.options import count
from surm.structures.shared import SharedTensors, SharingFamily, Site


class Rules(SharedTensors):
    """A (terms, terms, terms), one matrix for each term; N(0, 1 / terms)."""

    def __init__(self, terms: int, device: Device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(terms, terms, terms, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        self.A.normal_(std=len(self.A) ** -0.5)


class Hypercomplex(SharingFamily):
    """W = sum_i A_i kron (L_i R_i), the A_i shared by all members (Mahabadi et al. 2021, eq. 5 and 6).

    A (terms, terms, terms), L (terms, m / terms, rank), R (terms, rank, n / terms): rank (m + n) parameters, and
    terms^3 for all members together. `terms` divides m and n. L is zero at the start, or entries of W have variance
    1 / n. A product costs 2 terms rank (m + n + terms^2) operations a row.

    It is a part of an adapter and in no registry: the shared A_i tie the layers of one adapter.
    """

    name = "hypercomplex"
    equation = "none"
    option_rules: ClassVar = {"terms": count(4), "rank": count()}

    @classmethod
    def check_options(cls, m: int, n: int, **options: Any) -> dict[str, Any]:
        resolved = super().check_options(m, n, **options)
        terms = resolved["terms"]
        if m % terms or n % terms:
            raise ValueError(
                f"terms={terms} does not divide both {m} and {n}, the sizes of a matrix: give a divisor of the model's "
                "width and of the adapter's size."
            )
        return resolved

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        terms, rank = options["terms"], options["rank"]
        return {"L": (terms, m // terms, rank), "R": (terms, rank, n // terms)}

    @classmethod
    def shared_tensors(
        cls, sites: Sequence[Site], *, device: Device, dtype: torch.dtype | None, **options: Any
    ) -> SharedTensors:
        return Rules(options["terms"], device, dtype)

    L: Tensor
    R: Tensor

    def read(self, shared: Any) -> list[Tensor]:
        return [self.L, self.R, shared.A]

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        for factor in (self.L, self.R):
            nn.init.normal_(factor, std=(self.n * self.options["rank"]) ** -0.25)
        if init_weights:
            nn.init.zeros_(self.L)

    def row_work(self) -> tuple[float, float]:
        terms, rank = self.options["terms"], self.options["rank"]
        return 0, terms * rank * (self.m + self.n + terms**2)

    def _product(self, x: Tensor) -> Tensor:
        L, R, A = self._factors(x.dtype)
        blocks = x.reshape(*x.shape[:-1], self.options["terms"], -1)
        mixed = einsum("...bir,iab->...air", einsum("...bd,ird->...bir", blocks, R), A)
        return einsum("...air,icr->...ac", mixed, L).flatten(-2)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        return Structure._dense(self, dtype)
