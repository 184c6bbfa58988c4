"""How much of a target each family of one matrix can hold at an equal budget of parameters, by exact fits alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surm.structures import structure_class

SIZE = 96  # of all matrices
BUDGET = 2 * SIZE  # parameters of LoRA with r = 1
BLOCKS = 4  # of the block-diagonal target, and of MELoRA
DIRECTIONS = 13  # of the target in the weight's leading singular directions: LoRA-XS of rank 13 has 169 parameters

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "low_rank": ("low_rank", {}),
    "circulant": ("circulant", {}),
    "block_low_rank": ("block_low_rank", {"blocks": BLOCKS}),
    "lora_xs_13": ("lora_xs", {"rank": 13}),
    "lora_xs_14": ("lora_xs", {"rank": 14}),
    "lora_mini_r2": ("lora_mini", {"rank": 2}),
    "lora_mini_r4": ("lora_mini", {"rank": 4}),
}
"""Structures with their options; two families with one parameter for each row stand beside them in `fits`."""


@dataclass
class FamilyFitOptions:
    """Every target, the weight and the frozen factors of LoRA-Mini are drawn `draws` times."""

    name: str = "family_fit"
    draws: int = 20


def validate(options: FamilyFitOptions) -> None:
    """Refuse impossible options.

    Raises:
        ValueError: one sentence with the value and what is allowed.
    """
    if options.draws < 1:
        raise ValueError(f"study.draws={options.draws}: give a whole number of at least 1.")


def parts(options: FamilyFitOptions) -> list[dict[str, Any]]:
    """One part for each draw."""
    return [{"draw": draw} for draw in range(options.draws)]


def compute(part: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The share of ||T||^2 that the nearest member of every family holds, for every target T of one draw."""
    generator = torch.Generator().manual_seed(part["draw"])
    weight = _gaussian(generator, SIZE, SIZE)
    rows = [
        {"target": target, "fit": fit, "parameters": parameters, "share": share(matrix, near)}
        for target, matrix in targets(weight, generator).items()
        for fit, (parameters, near) in fits(matrix, weight, seed=part["draw"]).items()
    ]
    say(f"draw {part['draw']}: {len(rows)} fits")
    return {"rows": rows}


def share(target: Tensor, near: Tensor) -> float:
    """1 - ||T - N||^2 / ||T||^2."""
    return 1 - ((target - near).square().sum() / target.square().sum()).item()


def targets(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Updates of the weight that are easy for one family each, and one that is for none; all random, n x n."""
    n = len(weight)
    U, _, Vh = torch.linalg.svd(weight)
    size = n // BLOCKS
    circulant = _gaussian(generator, n)
    return {
        "gaussian": _gaussian(generator, n, n),
        "rank_one": torch.outer(_gaussian(generator, n), _gaussian(generator, n)),
        "circulant": torch.stack([circulant.roll(shift) for shift in range(n)], dim=1),
        "blocks": torch.block_diag(*_gaussian(generator, BLOCKS, size, size)),  # type: ignore[no-untyped-call]
        "singular": U[:, :DIRECTIONS] @ _gaussian(generator, DIRECTIONS, DIRECTIONS) @ Vh[:DIRECTIONS],
        "rows": _gaussian(generator, n, 1) * weight,
    }


def fits(matrix: Tensor, weight: Tensor, seed: int) -> dict[str, tuple[int, Tensor]]:
    """The number of parameters and the nearest matrix of every family to an n x n one; all of them exact.

    Args:
        matrix: the target.
        weight: what it is an update of.
        seed: of the outer factors of LoRA-Mini.
    """
    found = {}
    for fit, (name, options) in FAMILIES.items():
        family = structure_class(name)
        given = options | ({"outer_seed": seed} if "outer_seed" in family.option_rules else {})
        near = family.nearest(matrix, weight=weight, **given).dense().detach()
        found[fit] = (family.num_parameters(*matrix.shape, **given), near)
    found["diagonal"] = (len(matrix), matrix.diag().diag())
    scales = (matrix * weight).sum(dim=1, keepdim=True) / weight.square().sum(dim=1, keepdim=True)
    found["row_scaling"] = (len(matrix), scales * weight)
    return found


def _gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
