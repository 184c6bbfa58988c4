"""One suite over every structure: each keeps the contract of `surm.structures.Structure`."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import linear

from surm.structures import STRUCTURES, Structure, build, structure_class
from surm.structures.backends import product, terms
from surm.structures.ops import updated_linear
from tests.contract.rows import ROWS, Row

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


def beside_a_weight(structure: Structure, x: Tensor) -> Tensor:
    """W x as what it adds to a layer that has a weight and a bias."""
    m, n = structure.m, structure.n
    numbers = torch.arange(m * n + m, dtype=x.dtype).sin()  # which torch.compile can follow, unlike a generator
    weight, bias = numbers[m:].reshape(m, n), numbers[:m]
    return updated_linear(x, weight, bias, m, terms(structure, x.dtype)) - linear(x, weight, bias)


BACKENDS: dict[str, Callable[[Structure, Tensor], Tensor]] = {
    "module": lambda structure, x: structure(x),
    "fft": lambda structure, x: product(structure, x, "fft"),
    "dense": lambda structure, x: product(structure, x, "dense"),
    "fused": beside_a_weight,
}

backends = pytest.mark.parametrize("multiply", BACKENDS.values(), ids=BACKENDS)
rows = pytest.mark.parametrize("row", ROWS, ids=str)
shapes = pytest.mark.parametrize(("m", "n"), SHAPES.values(), ids=SHAPES)


def random_structure(row: Row, m: int, n: int, dtype: torch.dtype = torch.float64) -> Structure:
    """A member with all parameters of order one."""
    structure = build(row.name, m, n, dtype=dtype, **row.options)
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


def test_every_structure_has_a_row() -> None:
    assert {row.name for row in ROWS} >= STRUCTURES.keys()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)  # products of two random numbers are now and then as small as what counts as zero


@rows
@shapes
@backends
def test_product_and_dense_equal_the_twin(row: Row, m: int, n: int, multiply) -> None:
    structure = random_structure(row, m, n)
    expected, x = twin(row, structure), draw(5, n)
    torch.testing.assert_close(structure.dense(), expected)
    torch.testing.assert_close(multiply(structure, x), x @ expected.T)


@rows
@shapes
@backends
def test_gradients_equal_the_twins(row: Row, m: int, n: int, multiply) -> None:
    structure = random_structure(row, m, n)
    x, g = draw(3, 2, n).requires_grad_(), draw(3, 2, m, seed=1)
    parameters = list(structure.parameters())
    expected = torch.autograd.grad(x @ twin(row, structure).T, [x, *parameters], g)
    torch.testing.assert_close(torch.autograd.grad(multiply(structure, x), [x, *parameters], g), expected)


@rows
@backends
def test_gradients_of_many_rows_on_a_large_matrix_equal_the_twins(row: Row, multiply) -> None:
    """More rows than are transformed at a time, and a matrix of several blocks."""
    structure = random_structure(row, 132, 90)
    x, g = draw(600, 90).requires_grad_(), draw(600, 132, seed=1)
    parameters = list(structure.parameters())
    expected = torch.autograd.grad(x @ twin(row, structure).T, [x, *parameters], g)
    torch.testing.assert_close(torch.autograd.grad(multiply(structure, x), [x, *parameters], g), expected)


@rows
@shapes
def test_gradients_of_the_dense_form_equal_the_twins(row: Row, m: int, n: int) -> None:
    structure = random_structure(row, m, n)
    parameters = list(structure.parameters())
    G = draw(m, n, seed=2)
    torch.testing.assert_close(
        torch.autograd.grad(structure.dense(), parameters, G),
        torch.autograd.grad(twin(row, structure), parameters, G),
    )


@rows
@pytest.mark.parametrize(("m", "n"), [(4, 4), (3, 5), (5, 2)])
@backends
def test_gradcheck(row: Row, m: int, n: int, multiply) -> None:
    structure = random_structure(row, m, n)
    # gradcheck changes its inputs, here the parameters themselves, in place.
    inputs = (draw(2, n).requires_grad_(), *structure.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: multiply(structure, x), inputs)


@rows
def test_plain_products_have_second_derivatives(row: Row) -> None:
    structure = random_structure(row, 3, 4)
    inputs = (draw(2, 4).requires_grad_(), *structure.parameters())
    assert torch.autograd.gradgradcheck(lambda x, *_: structure(x), inputs)


@pytest.mark.parametrize("multiply", [BACKENDS["dense"], BACKENDS["fused"]], ids=["dense", "fused"])
def test_others_refuse_second_derivatives(multiply) -> None:
    structure = random_structure(ROWS[0], 3, 4)
    x = draw(2, 4).requires_grad_()
    with pytest.raises(RuntimeError, match=r"second derivatives .* give backend='fft'") as error:
        torch.autograd.grad(multiply(structure, x).square().sum(), x, create_graph=True)
    assert "\n" not in str(error.value)


@rows
@shapes
def test_backward_is_the_transposed_product(row: Row, m: int, n: int) -> None:
    structure = random_structure(row, m, n)
    g = draw(4, m)
    _, vjp = torch.func.vjp(structure, draw(4, n, seed=1))
    torch.testing.assert_close(vjp(g)[0], g @ twin(row, structure))


@rows
@shapes
def test_linear_in_x(row: Row, m: int, n: int) -> None:
    structure = random_structure(row, m, n)
    x, y = draw(3, n), draw(3, n, seed=1)
    torch.testing.assert_close(structure(2 * x - 3 * y), 2 * structure(x) - 3 * structure(y))


@rows
@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 0, 3), (2, 3, 4)], ids=str)
@backends
def test_leading_dimensions(row: Row, batch: tuple[int, ...], multiply) -> None:
    structure = random_structure(row, 4, 6)
    x = draw(*batch, 6)
    expected = x.reshape(-1, 6).numpy() @ twin(row, structure).detach().numpy().T
    y = multiply(structure, x.requires_grad_())
    assert y.shape == (*batch, 4)
    np.testing.assert_allclose(y.detach().numpy().reshape(-1, 4), expected, rtol=1e-10, atol=1e-12)
    y.sum().backward()
    expected = np.broadcast_to(twin(row, structure).detach().numpy().sum(axis=0), x.shape)
    np.testing.assert_allclose(x.grad, expected, rtol=1e-10, atol=1e-12)


@rows
@pytest.mark.parametrize("shape", [(), (5,), (7,), (6, 4)], ids=str)
def test_refuses_another_last_dimension(row: Row, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give it a last dimension of n=6"):
        random_structure(row, 4, 6)(draw(*shape))


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


@rows
def test_init_weights_refuses_another_word(row: Row) -> None:
    structure = build(row.name, 4, 4, **row.options)
    with pytest.raises(ValueError, match="init_weights='gaussian' is unknown"):
        structure.reset_parameters("gaussian")


@rows
@shapes
def test_number_of_parameters(row: Row, m: int, n: int) -> None:
    expected = row.count(m, n)
    assert structure_class(row.name).num_parameters(m, n, **row.options) == expected
    assert sum(parameter.numel() for parameter in build(row.name, m, n, **row.options).parameters()) == expected


@rows
def test_options_are_resolved_and_checked(row: Row) -> None:
    family = structure_class(row.name)
    resolved = family.check_options(6, 4, **row.options)
    assert resolved == build(row.name, 6, 4, **resolved).options
    assert resolved.items() >= row.options.items()
    assert family.check_options(6, 4, **dict.fromkeys(resolved)) == family.check_options(6, 4)
    with pytest.raises(ValueError, match="has no option 'bandwidth'; its options are"):
        family.check_options(6, 4, bandwidth=1)
    for count in (0, -1, 1.0, "2", True):
        with pytest.raises(ValueError, match="give an integer of at least 1"):
            family.check_options(6, 4, terms=count)
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


# Storage, dtypes, compilation


@rows
def test_saved_and_loaded_bit_by_bit(row: Row) -> None:
    structure = random_structure(row, 7, 5, torch.float32)
    loaded = build(row.name, 7, 5, **row.options)
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
@backends
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
