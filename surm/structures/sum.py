"""Sums of members of several families."""

from collections.abc import Mapping
from functools import cache
from math import lcm
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surm.structures import projection
from surm.structures.base import Device, Fit, Shape, Structure
from surm.structures.family import ConstantDiagonals


class Sum(Structure):
    """W = W_1 + W_2 + ..., one member of each of `families` (paper section 5.1).

    An option goes to every family that has it; each part starts as it would alone. Parameters and cost add up.
    """

    families: ClassVar[tuple[type[Structure], ...]]

    @classmethod
    def check_options(cls, m: int, n: int, **options: Any) -> dict[str, Any]:
        resolved = super().check_options(m, n, **options)
        for family in cls.families:
            resolved |= family.check_options(m, n, **_options_of(family, options))
        return resolved

    @classmethod
    def fitting_size(cls, **options: Any) -> tuple[int, int]:
        sizes = [family.fitting_size(**_options_of(family, options)) for family in cls.families]
        return lcm(*(m for m, _ in sizes)), lcm(*(n for _, n in sizes))

    @classmethod
    def check_start(cls, init_weights: bool | str) -> None:
        for family in cls.families:
            family.check_start(init_weights)

    def reset_parameters(self, init_weights: bool | str = True) -> None:
        for part in self.summands():
            part.reset_parameters(init_weights)

    def collapse(self) -> "Sum":
        """The sum of the collapsed parts, where every part has a collapsed form."""
        parts = [part.collapse() for part in self.summands()]
        options = {name: value for part in parts for name, value in part.options.items()}
        member = sum_of(tuple(map(type, parts)))(self.m, self.n, device="meta", **options)
        member.parts = nn.ModuleList(parts)
        return member

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time, so that copies and pickles find it by its families.
        return _blank, (self.families,), self.__dict__

    def factors(self) -> list[Tensor]:
        return [factor for part in self.summands() for factor in part.factors()]

    def summands(self) -> list[Structure]:
        return list(self.parts)  # type: ignore[arg-type]

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        return {
            f"parts.{index}.{name}": shape
            for index, family in enumerate(cls.families)
            for name, shape in family._parameter_shapes(m, n, **_options_of(family, options)).items()
        }

    def _build(self, device: Device, dtype: torch.dtype | None) -> None:
        self.parts = nn.ModuleList(
            family(self.m, self.n, device=device, dtype=dtype, **_options_of(family, self.options))
            for family in self.families
        )

    def _product(self, x: Tensor) -> Tensor:
        return torch.stack([part._product(x) for part in self.summands()]).sum(dim=0)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        return torch.stack([part._dense(dtype) for part in self.summands()]).sum(dim=0)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        linear = [part for part in self.summands() if isinstance(part, ConstantDiagonals) and part.is_linear()]
        if len(linear) == len(self.families):
            spaces = [(part.diagonals, part.generator_size) for part in linear]
            for space, generator in zip(linear, projection.nearest_generators(matrix, spaces), strict=True):
                space.set_generator(generator)
            return None
        rest = matrix
        for part in self.summands():  # the start of the optimiser: each part takes what the ones before it left
            part._approximate(rest)
            rest = rest - part._dense(matrix.dtype)
        return projection.minimise(self, matrix)


def _options_of(family: type[Structure], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in family.option_rules}


@cache
def sum_of(families: tuple[type[Structure], ...]) -> type[Sum]:
    """The class of sums of one member of each family."""
    return type(
        "SumOf" + "And".join(family.__name__ for family in families),
        (Sum,),
        {
            "name": "+".join(family.name for family in families),
            "equation": "section 5.1",
            "option_rules": {name: rule for family in families for name, rule in family.option_rules.items()},
            "needs_weight": any(family.needs_weight for family in families),
            "needs_place": any(family.needs_place for family in families),
            "shares": any(family.shares for family in families),
            "families": families,
        },
    )


def _blank(families: tuple[type[Structure], ...]) -> Sum:
    family = sum_of(families)
    return family.__new__(family)
