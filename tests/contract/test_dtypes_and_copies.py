"""Every structure keeps the contract of `surm.structures.Structure`: storage, copies, dtypes, compilation, any size."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from surm.structures import Structure
from surm.structures.backends import product
from tests.contract.cases import backends, different_backends, draw, made, random_structure, rows, twin
from tests.contract.rows import ROWS, Row


@rows
def test_saved_and_loaded_bit_by_bit(row: Row) -> None:
    structure = random_structure(row, 7, 5, torch.float32)
    loaded = made(row, 7, 5)
    loaded.load_state_dict(load(save(structure.state_dict())))
    x = draw(3, 5, dtype=torch.float32)
    assert torch.equal(loaded(x), structure(x))
    assert torch.equal(loaded.dense(), structure.dense())


@rows
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(row: Row, clone) -> None:
    structure = random_structure(row, 4, 6)
    before = structure.dense().detach().clone()
    other = clone(structure)
    assert type(other) is type(structure)
    assert torch.equal(other.dense(), before)
    other.reset_parameters()
    assert torch.equal(structure.dense(), before)


@rows
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(row: Row, dtype: torch.dtype) -> None:
    structure = random_structure(row, 7, 9, torch.float32)
    x = draw(4, 9, dtype=dtype)
    assert torch.equal(structure(x), structure(x.float()).to(dtype))
    structure.to(dtype)
    expected = x.double() @ twin(row, structure).T
    assert structure(x).dtype == structure.dense().dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(structure(x).double(), expected, rtol=tolerance, atol=1e-4)
    structure(x).sum().backward()
    assert all(parameter.grad.dtype == dtype and parameter.grad.any() for parameter in structure.parameters())


@rows
def test_autocast_does_not_reach_the_product(row: Row) -> None:
    structure = random_structure(row, 7, 9, torch.float32)
    x = draw(4, 9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, dense = structure(x), structure.dense()
    assert torch.equal(y, structure(x))
    assert torch.equal(dense, structure.dense())


@rows
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_dense_products_in_half_precision(row: Row, dtype: torch.dtype, autocast: bool) -> None:
    structure = random_structure(row, 70, 90, torch.float32)
    x, g = draw(300, 90, dtype=dtype).requires_grad_(), draw(300, 70, seed=1, dtype=dtype)
    parameters = list(structure.parameters())
    exact = x.double() @ twin(row, structure).T
    expected = torch.autograd.grad(exact, [x, *parameters], g.double())
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        y = product(structure, x.float() if autocast else x, "dense")
    assert y.dtype == dtype
    step = torch.finfo(dtype).eps
    assert (y.double() - exact).norm() < step * exact.norm()
    for gradient, twins in zip(torch.autograd.grad(y, [x, *parameters], g), expected, strict=True):
        assert (gradient.double() - twins).norm() < step * twins.norm()


@rows
@different_backends
def test_float64_keeps_its_precision(row: Row, multiply) -> None:
    structure = random_structure(row, 8, 8, torch.float32)
    x = draw(4, 8)
    assert multiply(structure, x).dtype == torch.float64
    torch.testing.assert_close(multiply(structure, x), x @ twin(row, structure).T, rtol=1e-12, atol=1e-12)


def compiled_equals_eager(structure: Structure, multiply: Callable[[Structure, Tensor], Tensor], backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: multiply(structure, x), fullgraph=True, backend=backend)
    x, g = draw(3, structure.n, dtype=torch.float32).requires_grad_(), draw(3, structure.m, dtype=torch.float32)
    inputs = [x, *structure.parameters()]
    torch.testing.assert_close(compiled(x), structure(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x), inputs, g), torch.autograd.grad(structure(x), inputs, g), rtol=1e-5, atol=1e-5
    )


@pytest.mark.sample(80)
@rows
@backends
def test_compiles_without_a_graph_break(row: Row, multiply) -> None:
    compiled_equals_eager(random_structure(row, 6, 9, torch.float32), multiply, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("row", {row.name: row for row in ROWS}.values(), ids=str)
@backends
def test_compiles_with_inductor(row: Row, multiply) -> None:
    compiled_equals_eager(random_structure(row, 6, 9, torch.float32), multiply, "inductor")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    row=st.sampled_from(ROWS),
    m=st.integers(1, 24),
    n=st.integers(1, 24),
    batch=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    backend=st.sampled_from(["fft", "dense", "auto"]),
)
def test_any_size_and_dtype(row: Row, m: int, n: int, batch: list[int], dtype: torch.dtype, backend: str) -> None:
    structure = random_structure(row, m, n, torch.promote_types(dtype, torch.float32))
    x = draw(*batch, n, dtype=dtype)
    expected = x.double() @ twin(row, structure).T
    y = product(structure, x, backend)
    assert y.dtype == dtype
    # Rounding is relative to the size of the terms that a sum cancels, hence to the largest output.
    tolerance = 16 * torch.finfo(dtype).eps * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)
