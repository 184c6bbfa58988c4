"""The ways of a GPU give the numbers of dense matrices in float64, here under Triton's interpreter."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from surm.structures import build
from surm.structures.backends import updates
from surm.structures.ops import Update, updated_linear

CASES = [
    ("form", "circulant", {"terms": 2}),
    ("form", "skew_circulant", {}),
    ("form", "toeplitz", {"factors": 1, "symmetric": False}),
    ("form", "toeplitz", {"factors": 1}),
    ("form", "ldr", {}),
    ("pair", "toeplitz", {}),
    ("pair", "ldr", {"terms": 2}),
    ("transform", "circulant", {}),
    ("transform", "toeplitz", {"factors": 1}),
    ("factors", "kronecker", {}),
    ("factors", "kronecker", {"terms": 2}),  # which its kernel refuses
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_way(way: str, listed: list[Update]) -> list[Update]:
    return [update._replace(way=way, outer=True) for update in listed]


@pytest.mark.sample(4)
@pytest.mark.parametrize("beside", ["weight", "output", "nothing"])
@pytest.mark.parametrize(("way", "structure", "options"), CASES)
def test_two_parts_of_one_layer_have_the_numbers_of_dense_matrices(way, structure, options, beside):
    m, n, alpha = 32, 32, -0.5
    parts = [build(structure, m, n, **options) for _ in range(2)]
    torch.manual_seed(0)
    for part in parts:
        part.reset_parameters(False)
    x, g, weight, base = draw(20, n).requires_grad_(), draw(20, 2 * m, seed=1), draw(2 * m, n, seed=2), draw(20, 2 * m)
    inputs = [x, *(parameter for part in parts for parameter in part.parameters())]
    listed = [
        update
        for index, part in enumerate(parts)
        for update in updates(part, x, slice(m * index, m * index + m), alpha)
    ]
    y = updated_linear(
        x,
        weight if beside == "weight" else None,
        None,
        2 * m,
        by_way(way, listed),
        together=False,
        base=base if beside == "output" else None,
    )
    dense = alpha * torch.cat([part.dense(torch.float64) for part in parts])
    expected = linear(x.double(), dense + weight if beside == "weight" else dense)
    expected = expected + base if beside == "output" else expected
    for found, exact in zip(
        [y, *torch.autograd.grad(y, inputs, g)],
        [expected, *torch.autograd.grad(expected, inputs, g.double())],
        strict=True,
    ):
        assert (found - exact).norm() < 1e-4 * exact.norm()
