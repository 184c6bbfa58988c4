"""Matrices of many layers by one canonical polyadic decomposition: Aurora's, and LoRTA's, which is a case of it."""

from abc import abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from surm.structures.base import Device, Shape
from surm.structures.options import count, one_of
from surm.structures.shared import SharedTensors, SharingFamily, Site

HEADS = ("attention", "output", "input")
GATE, GATE_STD = 0.1, 2e-4  # of Aurora's gate: its factor and its start


class Start(NamedTuple):
    """Shape and start of a factor: uniform between -bound and bound; with bound None all ones."""

    shape: Shape
    bound: float | None


class CPTensors(SharedTensors):
    """The factors by name, of which the first is zero at the start, so that all updates are."""

    def __init__(self, starts: Mapping[str, Start], device: Device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.starts = dict(starts)
        for name, start in starts.items():
            self.register_parameter(name, nn.Parameter(torch.empty(start.shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        for index, (factor, start) in enumerate(zip(self.parameters(), self.starts.values(), strict=True)):
            if index == 0:
                factor.zero_() if init_weights else factor.normal_()
            elif start.bound is None:
                factor.fill_(1.0)
            else:
                factor.uniform_(-start.bound, start.bound)


class SharedCP(SharingFamily):
    """W_k = V diag(c_k) U with V (m, rank) and U (rank, n) of all layers, and c_k (rank,) of the k-th matrix."""

    @property
    def kernel(self) -> str:
        return "low_rank"

    @abstractmethod
    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        """V diag(c_k) (m, rank) and U (rank, n)."""

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        return {}

    def row_work(self) -> tuple[float, float]:
        return 0, self.options["rank"] * (self.m + self.n)

    def _product(self, x: Tensor) -> Tensor:
        left, right = self.generators(x.dtype)
        return linear(linear(x, right), left)


class AuroraTensors(CPTensors):
    """V (m, rank), U (rank, n), P (matrices, rank), `gain` (rank,) or `core` (rank, rank, rank); S, T (blocks, m)."""

    V: Tensor
    U: Tensor
    P: Tensor
    gain: Tensor
    core: Tensor
    S: Tensor
    T: Tensor

    @property
    def has_gate(self) -> bool:  # type: ignore[override]
        return "S" in self.starts

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        super().reset_parameters(init_weights)
        for factor in (self.S, self.T) if self.has_gate else ():
            factor.normal_(std=GATE_STD)

    def gate(self, block: int, attention: Tensor) -> Tensor:
        a = attention.to(torch.promote_types(attention.dtype, self.S.dtype))
        s, t = (factor[block].to(a) for factor in (self.S, self.T))
        return GATE * (a * s + t)


class Aurora(SharedCP):
    """W_k = V diag(gain * p_k) U of the k-th of K matrices: mode approximation (Aurora; Wang et al., NeurIPS 2023).

    With `core`, as in the authors' code, in place of the gain (rank,) a dense C (rank, rank, rank), a Tucker form:
    W_k = V M_k^T U with M_k[i, j] = sum_s C[i, j, s] p_k[s], which is the first for C[i, i, i] = gain[i], else zero.
    With `gate`, also as in that code, the output y of each block becomes y + (s * a + t) / 10 with a, the output of its
    attention, and s and t (m,) of the block, N(0, 0.0002^2) at the start: no update of a weight, so never merged.
    V (m, rank) is zero at the start; U (rank, n) is uniform within 1 / sqrt(n), C and p_k Xavier-uniform, as in that
    code, and the gain is one.
    rank (m + n + 1 + K) parameters in all, or rank (m + n + K) + rank^3, and 2 m for each gate; O(rank (m + n)) a row.
    """

    name = "aurora"
    equation = "arXiv 2305.08381"
    option_rules: ClassVar = {"rank": count(), "core": one_of(False, True), "gate": one_of(False, True)}

    @classmethod
    def shared_tensors(
        cls, sites: Sequence[Site], *, device: Device, dtype: torch.dtype | None, **options: Any
    ) -> AuroraTensors:
        m, n = _one_size(cls.name, sites, [(site.m, site.n) for site in sites])
        rank = options["rank"]
        # Xavier's bound is sqrt(6 / (inputs + outputs)), which for torch are rank^2 and rank^2 of C, 1 and rank of p_k.
        middle = {"core": Start((rank,) * 3, 3**0.5 / rank)} if options["core"] else {"gain": Start((rank,), None)}
        starts = {
            "V": Start((m, rank), 0.0),
            "U": Start((rank, n), n**-0.5),
            "P": Start((len(sites), rank), (6 / (rank + 1)) ** 0.5),
        }
        blocks = len({site.block for site in sites})
        gate = {name: Start((blocks, m), 0.0) for name in "ST"} if options["gate"] else {}
        return AuroraTensors(starts | middle | gate, device, dtype)

    def read(self, shared: AuroraTensors) -> list[Tensor]:
        return [shared.V, shared.U, shared.P[self.index], shared.core if self.options["core"] else shared.gain]

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        V, U, p, middle = self._factors(dtype)
        return [V @ (middle @ p).mT if self.options["core"] else V * (middle * p), U]


class LortaTensors(CPTensors):
    """B (rank, d / H), A (d, rank), C_h (H, rank), C_l (layers, rank), C_m (kinds, rank); where each matrix reads."""

    B: Tensor
    A: Tensor
    C_h: Tensor
    C_l: Tensor
    C_m: Tensor
    layers: list[int]
    kinds: list[int]
    sides: list[str]


class Lorta(SharedCP):
    """The tensor of layers, kinds of matrix, heads, inputs and outputs by rank-one terms (LoRTA, arXiv 2410.04060).

    W = A diag(c) Z with c = C_l[layer] * C_m[kind] and Z (rank, d) = [diag(C_h[1]) B | ... | diag(C_h[H]) B], where the
    heads are blocks of a matrix's inputs; where they are blocks of its outputs, W = Z^T diag(c) A^T. So W is that of
    `Aurora` with factors that are products themselves.

    `heads` says which it is: "attention" takes outputs of queries, keys and values and inputs of the output
    projection; the authors' two codes take "input" (their fork of PEFT) and "output" (that of lit-gpt) for all.
    `num_heads` H is by default the model's. A layer's index is that of its block; a kind is what a layer is called
    within a block.
    B (rank, d / H) is zero at the start; A (d, rank) is uniform within 1 / sqrt(rank), C_h (H, rank), C_l (L, rank)
    and C_m (M, rank) within sqrt(6 / rank), as in the authors' code, whose factor of W is alpha / rank. A step of
    size e in all of B changes the entries of W by about 1.6 e / rank^1.5: a larger rank takes a larger factor or rate.
    rank (d + d / H + H + L + M) parameters in all; O(rank d) a row.
    """

    name = "lorta"
    equation = "arXiv 2410.04060"
    option_rules: ClassVar = {"rank": count(), "heads": one_of(*HEADS), "num_heads": count(default=None)}

    @classmethod
    def shared_tensors(
        cls, sites: Sequence[Site], *, device: Device, dtype: torch.dtype | None, **options: Any
    ) -> LortaTensors:
        sides = [_side(site, options["heads"]) for site in sites]
        both = zip(sites, sides, strict=True)
        sizes = [(site.m, site.n) if side == "output" else (site.n, site.m) for site, side in both]
        cut, other = _one_size(cls.name, sites, sizes)
        rank, H = options["rank"], _heads(sites, options["num_heads"])
        if cut % H:
            raise ValueError(f"lorta: {H} heads do not divide the width {cut}: give num_heads in structure_options.")
        layers = _numbered(site.block for site in sites)
        kinds = _numbered((site.layer.removeprefix(site.block), site.part) for site in sites)
        bound = (6 / rank) ** 0.5
        starts = {
            "B": Start((rank, cut // H), 0.0),
            "A": Start((other, rank), rank**-0.5),
            "C_h": Start((H, rank), bound),
            "C_l": Start((max(layers) + 1, rank), bound),
            "C_m": Start((max(kinds) + 1, rank), bound),
        }
        tensors = LortaTensors(starts, device, dtype)
        tensors.layers, tensors.kinds, tensors.sides = layers, kinds, sides
        return tensors

    def read(self, shared: LortaTensors) -> list[Tensor]:
        layer, kind = shared.layers[self.index], shared.kinds[self.index]
        return [shared.B, shared.A, shared.C_h, shared.C_l[layer], shared.C_m[kind]]

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        B, A, C_h, c_l, c_m = self._factors(dtype)
        Z, c = (C_h.mT.unsqueeze(2) * B.unsqueeze(1)).flatten(1), c_l * c_m
        assert isinstance(self.shared, LortaTensors)
        return [A * c, Z] if self.shared.sides[self.index] == "input" else [Z.mT * c, A.mT]


def _one_size(name: str, sites: Sequence[Site], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size that all have."""
    for site, size in zip(sites, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(
                f"{name} shares its factors among matrices of one size, and {sites[0].layer} ({sites[0].part}) is "
                f"{sites[0].m} x {sites[0].n}, {site.layer} ({site.part}) {site.m} x {site.n}: adapt one kind alone; "
                "of grouped-query attention, leave out the narrower keys and values."
            )
    return sizes[0]


def _side(site: Site, heads: str) -> str:
    """Whether heads are blocks of the site's outputs or of its inputs."""
    if heads != "attention":
        return heads
    if site.projection not in ("q", "k", "v", "o"):
        raise ValueError(
            f"lorta: {site.layer} is not known as a projection of an attention, so give heads='output' or 'input' in "
            "structure_options, or adapt queries, keys, values and output projections alone."
        )
    return "input" if site.projection == "o" else "output"


def _heads(sites: Sequence[Site], given: int | None) -> int:
    found = {given or site.heads for site in sites}
    if len(found) > 1 or None in found:
        raise ValueError("lorta: the model does not tell one number of heads: give num_heads in structure_options.")
    return int(found.pop() or 1)


def _numbered(values: Iterable[Hashable]) -> list[int]:
    """Each value's number, in the order in which they first occur."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]
