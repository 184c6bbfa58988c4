"""Every structure keeps the contract of `surm.structures.Structure`: start, parameters, options, the nearest member."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from surm.structures import STRUCTURES, Structure, build, structure_class
from tests.contract.cases import draw, random_structure, rows, shapes, twin
from tests.contract.rows import ROWS, Row


def test_every_structure_has_a_row() -> None:
    assert {row.name for row in ROWS} >= STRUCTURES.keys()


@rows
@shapes
@pytest.mark.parametrize("init_weights", [True, "authors"])
def test_starts_at_exactly_zero_and_can_leave(row: Row, m: int, n: int, init_weights: bool | str) -> None:
    structure = build(row.name, m, n, **row.options)
    structure.reset_parameters(init_weights)
    x = draw(8, n, dtype=torch.float32)
    assert not structure.dense().any()
    assert not structure(x).any()
    (structure(x) * draw(8, m, seed=1, dtype=torch.float32)).sum().backward()
    zero = [parameter for parameter in structure.parameters() if not parameter.any()]
    assert zero
    for parameter in zero:
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-4


@rows
@shapes
def test_init_weights_false_is_not_zero(row: Row, m: int, n: int) -> None:
    structure = build(row.name, m, n, **row.options)
    structure.reset_parameters(False)
    assert structure.dense().abs().max() > 1e-5
    assert all(parameter.all() for parameter in structure.parameters())


def test_init_weights_refuses_another_word() -> None:
    structure = build("circulant", 4, 4)
    with pytest.raises(ValueError, match="init_weights='gaussian' is unknown"):
        structure.reset_parameters("gaussian")


@rows
@shapes
def test_number_of_parameters(row: Row, m: int, n: int) -> None:
    expected = row.count(m, n)
    assert structure_class(row.name).num_parameters(m, n, **row.options) == expected
    assert sum(parameter.numel() for parameter in build(row.name, m, n, **row.options).parameters()) == expected


WRONG_COUNTS = (0, -1, 1.0, "2", True)


@rows
def test_options_are_resolved_and_checked(row: Row) -> None:
    family = structure_class(row.name)
    resolved = family.check_options(6, 4, **row.options)
    assert resolved == build(row.name, 6, 4, **resolved).options
    assert resolved.items() >= row.options.items()
    assert family.check_options(6, 4, **dict.fromkeys(resolved)) == family.check_options(6, 4)
    with pytest.raises(ValueError, match="has no option 'bandwidth'; its options are"):
        family.check_options(6, 4, bandwidth=1)
    counts = [name for name, option in family.option_rules.items() if option.kind is int and option.accepts(7)]
    for name, value in product(counts, WRONG_COUNTS):
        with pytest.raises(ValueError, match="give an integer of at least 1"):
            family.check_options(6, 4, **{name: value})
    for m, n in ((0, 4), (4, -1), (4, 2.0)):
        with pytest.raises(ValueError, match="is not a size; give an integer of at least 1"):
            family.num_parameters(m, n)


# Frobenius projection


def squared_error(structure: Structure, matrix: Tensor) -> Tensor:
    return (structure.dense() - matrix).square().sum()


@rows
@pytest.mark.parametrize(("m", "n"), [(4, 4), (5, 5), (3, 6), (5, 2), (1, 1)])
def test_no_nearby_parameters_are_nearer(row: Row, m: int, n: int) -> None:
    matrix = draw(m, n)
    state = torch.get_rng_state()
    structure = structure_class(row.name).nearest(matrix, **row.options)
    assert torch.equal(state, torch.get_rng_state())
    error = squared_error(structure, matrix)
    assert error < matrix.square().sum()
    assert (structure.fit is None) == row.exact
    if structure.fit:
        assert structure.fit.converged
        assert structure.fit.relative_error == pytest.approx((error.sqrt() / matrix.norm()).item(), abs=1e-9)
    parameters = [parameter.detach().clone() for parameter in structure.parameters()]
    for seed, size in enumerate([1e-1, 1e-2, 1e-3] * 5):
        with torch.no_grad():
            for parameter, best in zip(structure.parameters(), parameters, strict=True):
                parameter.copy_(best + size * draw(*best.shape, seed=seed))
        assert squared_error(structure, matrix) > error - 1e-9


@pytest.mark.parametrize("row", [row for row in ROWS if row.basis], ids=str)
@shapes
def test_nearest_of_a_linear_family_is_the_least_squares_projection(row: Row, m: int, n: int) -> None:
    matrix = draw(m, n)
    units = torch.eye(row.generator_size(m, n), dtype=torch.float64)
    basis = np.array([family(unit, m, n).numpy().ravel() for family in row.basis for unit in units]).T
    expected = basis @ np.linalg.lstsq(basis, matrix.numpy().ravel(), rcond=None)[0]
    structure = structure_class(row.name).nearest(matrix, **row.options)
    np.testing.assert_allclose(twin(row, structure).detach().numpy().ravel(), expected, atol=1e-10)


@pytest.mark.parametrize("row", [row for row in ROWS if row.exact or row.name == "ldr"], ids=str)
def test_nearest_of_a_member_is_itself(row: Row) -> None:
    matrix = random_structure(row, 6, 6).dense().detach()
    structure = structure_class(row.name).nearest(matrix, **row.options)
    torch.testing.assert_close(structure.dense(), matrix, rtol=0, atol=1e-9)


@rows
def test_nearest_is_deterministic_and_keeps_the_dtype(row: Row) -> None:
    matrix = draw(4, 3, dtype=torch.float32)
    first, second = (structure_class(row.name).nearest(matrix, **row.options) for _ in range(2))
    assert torch.equal(first.dense(), second.dense())
    assert first.dense().dtype == torch.float32
