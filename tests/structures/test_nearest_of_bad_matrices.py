"""What no member is nearest to is refused in one sentence, before an optimiser starts."""

import pytest
import torch

from surm.structures import STRUCTURES, structure_class

FAMILIES = [*STRUCTURES, "circulant+skew_circulant", "kronecker+low_rank"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["everywhere", "first", "last", "a column"])
@pytest.mark.parametrize("name", FAMILIES)
def test_entries_that_are_not_finite(name, where, value):
    index = {"everywhere": ..., "first": (0, 0), "last": (-1, -1), "a column": (slice(None), 2)}[where]
    for shape, dtype in (((6, 6), torch.float32), ((4, 6), torch.float64), ((6, 4), torch.bfloat16)):
        matrix = torch.ones(shape, dtype=dtype)
        matrix[index] = value
        with pytest.raises(ValueError, match=r"nearest takes a finite matrix; .* NaN or infinite\.$"):
            structure_class(name).nearest(matrix)


@pytest.mark.parametrize("shape", [(6,), (2, 6, 6), ()])
@pytest.mark.parametrize("name", FAMILIES)
def test_other_than_one_matrix(name, shape):
    with pytest.raises(ValueError, match="nearest takes one matrix"):
        structure_class(name).nearest(torch.ones(shape))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_matrix(name, shape):
    with pytest.raises(ValueError, match="is not a size; give an integer of at least 1"):
        structure_class(name).nearest(torch.ones(shape))
