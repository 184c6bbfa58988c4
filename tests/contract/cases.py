"""What the suite multiplies, and how: shapes, random members with their twins, and every backend."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from surm.structures import Structure, build, structure_class
from surm.structures.backends import product, updates
from surm.structures.kernels import KERNELS
from surm.structures.ops import updated_linear
from surm.structures.plan import Update
from tests.contract.rows import ROWS, Row, base_weight

SHAPES = {
    "square": (6, 6),
    "prime": (7, 7),
    "wide": (4, 9),
    "tall": (10, 4),
    "coprime": (7, 5),
    "one": (1, 1),
    "row": (1, 5),
    "column": (6, 1),
}


def by_way(updates: Sequence[Update], *, outer: bool) -> list[Update]:
    """The updates with gradients from H, or without it, where the kernel has that way."""
    return [update._replace(outer=outer or KERNELS[update.kernel].by_rows is None) for update in updates]


def beside_a_weight(structure: Structure, x: Tensor) -> Tensor:
    """W x as what it adds to a layer that has a weight and a bias, with gradients from H, which few rows never take."""
    m, n = structure.m, structure.n
    numbers = torch.arange(m * n + m, dtype=x.dtype).sin()  # which torch.compile can follow, unlike a generator
    weight, bias = numbers[m:].reshape(m, n), numbers[:m]
    return updated_linear(x, weight, bias, m, by_way(updates(structure, x), outer=True)) - linear(x, weight, bias)


BACKENDS: dict[str, Callable[[Structure, Tensor], Tensor]] = {
    "module": lambda structure, x: structure(x),
    "fft": lambda structure, x: product(structure, x, "fft"),
    "dense": lambda structure, x: product(structure, x, "dense"),
    "fused": beside_a_weight,
}

DIFFERENT = {name: multiply for name, multiply in BACKENDS.items() if name != "module"}  # "fft" runs the module

backends = pytest.mark.parametrize("multiply", BACKENDS.values(), ids=BACKENDS)
different_backends = pytest.mark.parametrize("multiply", DIFFERENT.values(), ids=DIFFERENT)
rows = pytest.mark.parametrize("row", ROWS, ids=str)
shapes = pytest.mark.parametrize(("m", "n"), SHAPES.values(), ids=SHAPES)


def attached(structure: Structure) -> Structure:
    """Itself, beside a weight where it needs one."""
    for part in structure.summands():
        if part.needs_weight:
            part.attach(base_weight(structure.m, structure.n))
    return structure


def made(row: Row, m: int, n: int) -> Structure:
    """A new member in float32."""
    return attached(build(row.name, m, n, **row.options))


def nearest(row: Row, matrix: Tensor) -> Structure:
    weight = base_weight(*matrix.shape) if structure_class(row.name).needs_weight else None
    return structure_class(row.name).nearest(matrix, weight=weight, **row.options)


def random_structure(row: Row, m: int, n: int, dtype: torch.dtype = torch.float64) -> Structure:
    """A member with all parameters of order one."""
    structure = attached(build(row.name, m, n, dtype=dtype, **row.options))
    generator = torch.Generator().manual_seed(m * 100 + n)
    with torch.no_grad():
        for parameter in structure.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return structure


def twin(row: Row, structure: Structure) -> Tensor:
    """Its dense twin, in float64 and differentiable in the same parameters."""
    parameters = {name: parameter.double() for name, parameter in structure.named_parameters()}
    return row.twin(parameters, structure.m, structure.n)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
