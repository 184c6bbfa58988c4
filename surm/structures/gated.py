"""Sums of rank-one components, each with a gate: what an allocator switches off, one component at a time."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from surm.structures.autocast import without_autocast
from surm.structures.base import Fit, Shape
from surm.structures.family import Family
from surm.structures.lowrank import LowRank
from surm.structures.options import Option, count
from surm.structures.projection import truncated_svd

STD = Option(float, None, lambda value: _is_positive(value), "a positive number")


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


class Gated(Family):
    """W = L diag(c) R with L (m, rank), R (rank, n) and a gate c_i for each of `rank` components L[:, i] R[i, :].

    The gates c start at zero, and so does W; then only they have a gradient. All other tensors are random: within
    sqrt(6 / columns), uniform (Kaiming's, which LoRA of dynamic rank takes), or N(0, std^2) where `std` is given
    (AdaLoRA and LoRA^2: 0.02). The authors of the paper on structured matrices have no such family, so that
    init_weights="authors" is the same start.
    """

    c: nn.Parameter
    update_std = 0.05  # as in `LowRank`
    components: ClassVar[Mapping[str, int]]
    """The tensors with a part for each component, by name: the dimension along which the components stand."""

    @property
    def kernel(self) -> str:
        return "low_rank"

    @abstractmethod
    def sides(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """L (m, rank) and R (rank, n), differentiable in the parameters."""

    @abstractmethod
    def _factorise(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """W as a product of two factors, with the fewest columns."""

    def gates(self) -> nn.Parameter:
        """c (rank,)."""
        return self.c

    def component_rows(self, name: str, like: Tensor) -> Tensor:
        """A tensor of the shape of the parameter `name`, one of `components`, as (rank, entries of a component)."""
        return like.movedim(self.components[name], 0).flatten(1)

    def keep(self, chosen: Tensor) -> Self:
        """The member with some of the components: those where `chosen` (rank,) is true, at least one."""
        indices = chosen.nonzero().flatten()
        member = type(self)(self.m, self.n, device="meta", **self.options | {"rank": len(indices)})
        for name, parameter in self.named_parameters():
            dimension = 0 if parameter is self.c else self.components.get(name)
            part = parameter.detach()
            part = part.clone() if dimension is None else part.index_select(dimension, indices.to(part.device))
            setattr(member, name, nn.Parameter(part, parameter.requires_grad))
        return member

    def collapse(self) -> LowRank:
        """W as B A, without gates: m + n numbers for each dimension of its rank."""
        B, A = self._factorise(self.compute_dtype(self.c.dtype))
        member = LowRank(self.m, self.n, rank=A.shape[0], device="meta")
        for name, factor in (("B", B), ("A", A)):
            setattr(member, name, nn.Parameter(factor.detach().to(self.c.dtype).unsqueeze(0)))
        return member

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        with without_autocast(self.c):
            return list(self._factorise(dtype))

    def _product(self, x: Tensor) -> Tensor:
        left, right = self._factorise(x.dtype)
        return linear(linear(x, right), left)

    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        std = self.options["std"]
        bound = (6 / factor.shape[-1]) ** 0.5
        factor.uniform_(-bound, bound) if std is None else factor.normal_(std=std)


class GatedLowRank(Gated):
    """B diag(c) A (AdaLoRA, arXiv 2303.10512; LoRA of dynamic rank, arXiv 2405.17357).

    B (m, rank), c (rank,), A (rank, n): rank (m + n + 1) parameters; O(rank (m + n)) a row.
    """

    name = "gated_low_rank"
    equation = "arXiv 2303.10512, equation 3"
    option_rules: ClassVar = {"rank": count(), "std": STD}
    components: ClassVar = {"B": 1, "A": 0}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        return {"c": (options["rank"],), "B": (m, options["rank"]), "A": (options["rank"], n)}

    def sides(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        _, B, A = self._factors(dtype)
        return B, A

    def _factorise(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        c, B, A = self._factors(dtype)
        return B * c, A

    def _approximate(self, matrix: Tensor) -> Fit | None:
        """The leading singular values and vectors; more components than the matrix has stay zero."""
        c, B, A = self._factors()
        left, right = truncated_svd(matrix, len(c))
        roots = right.norm(dim=1)
        c.copy_(roots.square())
        scale = roots.clamp_min(torch.finfo(roots.dtype).tiny)
        B.copy_(left / scale)
        A.copy_(right / scale[:, None])
        return None


class GatedChain(Gated):
    """U P diag(c) Q V: a gated low-rank matrix inside an outer pair (LoRA^2, arXiv 2408.06854).

    U (m, k), P (k, rank), c (rank,), Q (rank, k), V (k, n) with k = `outer_rank`: of rank at most min(k, rank).
    k (m + n + 2 rank) + rank parameters; O(k (m + n)) a row.
    """

    name = "gated_chain"
    equation = "arXiv 2408.06854"
    option_rules: ClassVar = {"rank": count(), "outer_rank": count(), "std": STD}
    components: ClassVar = {"P": 1, "Q": 0}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        k, rank = options["outer_rank"], options["rank"]
        return {"c": (rank,), "U": (m, k), "P": (k, rank), "Q": (rank, k), "V": (k, n)}

    def sides(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        _, U, P, Q, V = self._factors(dtype)
        return _times(U, P), _times(Q, V)

    def _factorise(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        c, U, P, Q, V = self._factors(dtype)
        if len(c) < U.shape[1]:
            return _times(U, P * c), _times(Q, V)
        return U, _times(_times(P * c, Q), V)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        """The leading min(k, rank) singular values, in the outer pair; the inner one passes them on."""
        c, U, P, Q, V = self._factors()
        inner = min(P.shape)
        left, right = truncated_svd(matrix, inner)
        for factor in (U, V, P, Q, c):
            factor.zero_()
        U[:, :inner], V[:inner], c[:inner] = left, right, 1.0
        P.fill_diagonal_(1.0)
        Q.fill_diagonal_(1.0)
        return None


def _times(left: Tensor, right: Tensor) -> Tensor:
    """left @ right by products of entries, which autocast leaves in float32, backward too; both are small."""
    return (left.unsqueeze(-1) * right).sum(dim=1)
