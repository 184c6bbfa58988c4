"""Toy structures, one for each way that a structure can be more than its own parameters."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from surm.structures.attached import WeightFamily
from surm.structures.family import Family
from surm.structures.options import Option, count, is_count
from surm.structures.seeded import Seeded
from surm.structures.shared import SharedTensors, SharingFamily, Site


class TwoFactors:
    """Products by `generators`, B (m, r) and A (r, n), as of low rank."""

    equation = "none"
    kernel = "low_rank"

    def _product(self, x: Tensor) -> Tensor:
        B, A = self.generators(x.dtype)
        return linear(linear(x, A), B)

    def row_work(self) -> tuple[float, float]:
        return 0, self.options["rank"] * (self.m + self.n)

    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        factor.normal_()


class CPTensors(SharedTensors):
    """A (m, rank), B (n, rank), C (layers, rank)."""

    def __init__(self, sites: Sequence[Site], device, dtype, rank: int) -> None:
        super().__init__()
        [(m, n)] = {(site.m, site.n) for site in sites}
        self.sites = list(sites)
        for name, rows in (("A", m), ("B", n), ("C", len(sites))):
            self.register_parameter(name, nn.Parameter(torch.empty(rows, rank, device=device, dtype=dtype)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        for name, factor in self.named_parameters():
            factor.zero_() if name == "C" and init_weights else factor.normal_()


class SharedCP(TwoFactors, SharingFamily):
    """W_l = sum_r C[l, r] A[:, r] B[:, r]^T."""

    name = "shared_cp"
    option_rules: ClassVar = {"rank": count()}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, tuple[int, ...]]:
        return {}

    @classmethod
    def shared_tensors(cls, sites, *, device, dtype, **options):
        return CPTensors(sites, device, dtype, **options)

    def read(self, shared: CPTensors) -> list[Tensor]:
        return [shared.A, shared.B, shared.C[self.index]]

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        A, B, c = self._factors(dtype)
        return [A * c, B.mT]


class Mini(TwoFactors, Family):
    """U P Q V, U (m, width) and V (width, n) frozen."""

    name = "mini"
    option_rules: ClassVar = {
        "rank": count(),
        "width": Option(int, 3, is_count, "an integer of at least 1"),
        "seed": Option(int, 0, lambda value: isinstance(value, int), "an integer"),
    }

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, tuple[int, ...]]:
        return {"P": (options["width"], options["rank"]), "Q": (options["rank"], options["width"])}

    def _build(self, device, dtype) -> None:
        super()._build(device, dtype)
        width = self.options["width"]
        self.frozen = Seeded(self.options["seed"], {"U": (self.m, width), "V": (width, self.n)}, device)

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        P, Q = self._factors(dtype)
        return [self.frozen.U.to(dtype) @ P, Q @ self.frozen.V.to(dtype)]


class Singular(TwoFactors, WeightFamily):
    """U R V^T with the leading singular vectors of the weight."""

    name = "singular"
    option_rules: ClassVar = {"rank": count()}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, tuple[int, ...]]:
        return {"R": (options["rank"], options["rank"])}

    def attach(self, weight: Tensor) -> None:
        U, _, Vh = torch.linalg.svd(weight, full_matrices=False)
        rank = self.options["rank"]
        signs = U[U.abs().argmax(dim=0), torch.arange(U.shape[1])].sign()
        self.keep(U=(U * signs)[:, :rank], V=(Vh * signs[:, None])[:rank])

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        (R,) = self._factors(dtype)
        return [self.kept("U").to(dtype) @ R, self.kept("V").to(dtype)]


TOYS = (SharedCP, Mini, Singular)
