"""The operator of updated layers: what torch's own checks say, what it keeps, and many updates at once."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.library import opcheck
from torch.nn.functional import linear

from surm.structures import STRUCTURES, build, ops, option_names
from surm.structures.backends import product, updates
from surm.structures.kernels import KERNELS
from surm.structures.ops import updated_linear
from surm.structures.plan import Update
from tests.contract.cases import attached, by_way
from tests.contract.rows import ROWS

MEMBERS = {
    member.kernel: member for row in ROWS if "+" not in row.name for member in [build(row.name, 4, 6, **row.options)]
}
WAYS = [(name, outer) for name, kernel in KERNELS.items() for outer in (False, True) if outer or kernel.by_rows]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kernel", "outer"), WAYS)
@pytest.mark.parametrize("weighted", [True, False])
def test_torchs_checks_of_an_operator_pass(kernel, outer, weighted):
    weight, bias = (draw(4, 6, seed=1), draw(4, seed=2)) if weighted else (None, None)
    shapes = [generator.shape for generator in MEMBERS[kernel].generators(torch.float64)]
    generators = [draw(*shape, seed=3).requires_grad_() for shape in shapes]
    x = draw(3, 6).requires_grad_()
    plan = f"4;{weighted};0:4:1:{len(generators)}:{kernel}:0.5:{outer}:plain"
    opcheck(ops._operator, (x, weight, bias, None, generators, plan))
    detached = [generator.detach() for generator in generators]
    opcheck(ops._backward_operator, (draw(3, 4), x.detach(), weight, detached, plan, True))


def saved_bytes(call) -> int:
    """Of all that autograd keeps for the backward pass of a call, each storage once."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storages.values())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("way", ["fused", "dense", "fft"])
def test_of_token_size_nothing_is_kept_but_x(structure, way):
    n, tokens = 24, 4096
    matrix = attached(build(structure, n, n))
    x, weight = torch.randn(tokens, n, requires_grad=True), torch.randn(n, n)
    if way == "fused":
        kept = saved_bytes(lambda: updated_linear(x, weight, None, n, updates(matrix, x)))
    else:
        kept = saved_bytes(lambda: product(matrix, x, way))
    token_size = 4 * tokens * n
    small = 4 * n * n * 8  # the weight and a few vectors
    assert kept <= token_size + small < 2 * token_size


def test_a_layer_takes_several_updates_of_several_rows():
    x, weight, bias = draw(5, 6).requires_grad_(), draw(10, 6, seed=1), draw(10, seed=2).requires_grad_()
    first, second = build("circulant", 4, 6).double(), build("kronecker+ldr", 6, 6).double()
    for structure in (first, second):
        structure.reset_parameters(False)
    parameters = [*first.parameters(), *second.parameters()]
    given = [(first, slice(0, 4), 2.0), (second, slice(4, 10), -0.5), (first, slice(6, 10), 1.0)]
    listed = [update for structure, rows, alpha in given for update in updates(structure, x, rows, alpha)]
    y = updated_linear(x, weight, bias, 10, listed)
    dense = weight.clone()
    for structure, rows, alpha in given:
        dense[rows] += alpha * structure.dense()
    expected = linear(x, dense, bias)
    torch.testing.assert_close(y, expected)
    inputs, g = [x, bias, *parameters], draw(5, 10, seed=3)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g))


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("structure", [*STRUCTURES, "circulant+ldr"])
def test_parts_of_one_kind_and_others_beside_them_have_the_gradients_of_the_dense_matrices(structure, outer):
    """Three of one kind, which are computed together, then one of another alpha and, where it has terms, of two."""
    x = draw(300, 12).requires_grad_()
    several = {"terms": 2} if "terms" in option_names(structure) else {}
    parts = [attached(build(structure, 6, 12, **options)).double() for options in ({}, {}, {}, several)]
    for part in parts:
        part.reset_parameters(False)
    weight, g = draw(24, 12, seed=1), draw(300, 24, seed=2)
    listed = []
    alphas = (2.0, 2.0, 2.0, -0.5)
    for index, (part, alpha) in enumerate(zip(parts, alphas, strict=True)):
        listed += updates(part, x, slice(6 * index, 6 * index + 6), alpha)
    dense = weight + torch.cat([alpha * part.dense() for part, alpha in zip(parts, alphas, strict=True)])
    inputs = [x, *(parameter for part in parts for parameter in part.parameters())]
    y = updated_linear(x, weight, None, 24, by_way(listed, outer=outer))
    torch.testing.assert_close(
        torch.autograd.grad(y, inputs, g),
        torch.autograd.grad(linear(x, dense), inputs, g),
    )


def test_the_gradient_of_x_is_not_copied():
    x = torch.randn(64, 32, requires_grad=True)
    structure = build("circulant", 32, 32)
    y = updated_linear(x, torch.randn(32, 32), None, 32, updates(structure, x))
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], record_shapes=True) as profile:
        y.backward(torch.ones_like(y))
    copies = [event.input_shapes[0] for event in profile.events() if event.name == "aten::clone"]
    assert list(x.shape) not in copies


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_a_bias_has_its_gradient_for_any_leading_dimensions(batch):
    bias, g = draw(4).requires_grad_(), draw(*batch, 4, seed=1)
    updated_linear(draw(*batch, 6), draw(4, 6), bias, 4, [Update(slice(0, 4), "circulant", [draw(1, 6)])]).backward(g)
    torch.testing.assert_close(bias.grad, g.reshape(-1, 4).sum(0))


def test_an_input_that_needs_no_gradient_costs_no_sum_in_the_backward_pass():
    update = Update(slice(0, 4), "circulant", [draw(1, 6).requires_grad_()])
    with patch.object(ops, "summed_weight", wraps=ops.summed_weight) as formed:
        updated_linear(draw(3, 6), draw(4, 6), None, 4, [update]).sum().backward()
    assert formed.call_count == 1
