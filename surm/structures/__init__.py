"""Structured matrices as trainable modules: which matrix, not where it goes; may import torch and `shared`."""

from difflib import get_close_matches
from typing import Any

from surm.structures.base import Fit, Structure
from surm.structures.block_circulant import BlockCirculant
from surm.structures.block_low_rank import BlockLowRank
from surm.structures.circulant import Circulant, SkewCirculant
from surm.structures.cp import Aurora, Lorta
from surm.structures.diagonal import Diagonal
from surm.structures.displacement import LowDisplacementRank
from surm.structures.gated import GatedChain, GatedLowRank
from surm.structures.kronecker import Kronecker
from surm.structures.lora_mini import LoraMini
from surm.structures.lora_xs import LoraXS
from surm.structures.lowrank import LowRank
from surm.structures.monarch import Monarch
from surm.structures.sum import Sum, sum_of
from surm.structures.toeplitz import Toeplitz

SCIENCE_VERSION = 1  # raised by hand when a change moves numbers

STRUCTURES: dict[str, type[Structure]] = {
    family.name: family
    for family in (
        Circulant,
        SkewCirculant,
        Toeplitz,
        Kronecker,
        LowDisplacementRank,
        LowRank,
        BlockCirculant,
        Monarch,
        BlockLowRank,
        LoraMini,
        LoraXS,
        GatedLowRank,
        GatedChain,
        Diagonal,
    )
}

SHARED: dict[str, type[Structure]] = {family.name: family for family in (Aurora, Lorta)}
"""Families whose matrices are made of tensors that a model's layers share, so that none is a matrix by itself."""


def structure_class(name: str) -> type[Structure]:
    """The class of a structure by its name; "a+b" is the sum of a member of each.

    Raises ValueError, naming the nearest structure, for an unknown name.
    """
    known = STRUCTURES | SHARED
    for part in name.split("+"):
        if part not in known:
            near = get_close_matches(part, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"Unknown structure {name!r}: {part!r} is none of {', '.join(known)}; nearest: {near}.")
    families = tuple(known[part] for part in name.split("+"))
    return families[0] if len(families) == 1 else sum_of(families)


def option_names(name: str) -> tuple[str, ...]:
    """Names of the options of a structure."""
    return tuple(structure_class(name).option_rules)


def build(name: str, m: int, n: int, **options: Any) -> Structure:
    """A new m x n matrix (m outputs, n inputs) of the named structure, exactly zero."""
    return structure_class(name)(m, n, **options)


__all__ = [
    "SCIENCE_VERSION",
    "SHARED",
    "STRUCTURES",
    "Fit",
    "Structure",
    "Sum",
    "build",
    "option_names",
    "structure_class",
]
