"""Every structure keeps the contract of `surm.structures.Structure`: products and gradients, by every backend.

Its own product and the way "fft" run the same code, apart from what is kept for the backward pass: so one of the two is
tried on all sizes. Linearity and the transposed product in the backward pass follow from product and gradients that
equal those of the dense twin.
"""

import numpy as np
import pytest
import torch

from surm.structures.backends import product
from tests.contract.cases import BACKENDS, different_backends, draw, random_structure, rows, shapes, twin
from tests.contract.rows import ROWS, Row


@rows
@shapes
@different_backends
def test_product_and_dense_equal_the_twin(row: Row, m: int, n: int, multiply) -> None:
    structure = random_structure(row, m, n)
    expected, x = twin(row, structure), draw(5, n)
    torch.testing.assert_close(structure.dense(), expected)
    torch.testing.assert_close(multiply(structure, x), x @ expected.T)


@rows
@shapes
@different_backends
def test_gradients_equal_the_twins(row: Row, m: int, n: int, multiply) -> None:
    structure = random_structure(row, m, n)
    x, g = draw(3, 2, n).requires_grad_(), draw(3, 2, m, seed=1)
    parameters = list(structure.parameters())
    expected = torch.autograd.grad(x @ twin(row, structure).T, [x, *parameters], g)
    torch.testing.assert_close(torch.autograd.grad(multiply(structure, x), [x, *parameters], g), expected)


@rows
@different_backends
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
@different_backends
def test_gradcheck(row: Row, multiply) -> None:
    structure = random_structure(row, 3, 5)
    # gradcheck changes its inputs, here the parameters themselves, in place.
    inputs = (draw(2, 5).requires_grad_(), *structure.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: multiply(structure, x), inputs)


@rows
def test_plain_products_have_second_derivatives(row: Row) -> None:
    structure = random_structure(row, 3, 4)
    inputs = (draw(2, 4).requires_grad_(), *structure.parameters())
    assert torch.autograd.gradgradcheck(lambda x, *_: product(structure, x, "fft"), inputs)


@pytest.mark.parametrize("multiply", [BACKENDS["dense"], BACKENDS["fused"]], ids=["dense", "fused"])
def test_others_refuse_second_derivatives(multiply) -> None:
    structure = random_structure(ROWS[0], 3, 4)
    x = draw(2, 4).requires_grad_()
    with pytest.raises(RuntimeError, match=r"second derivatives .* give backend='fft'") as error:
        torch.autograd.grad(multiply(structure, x).square().sum(), x, create_graph=True)
    assert "\n" not in str(error.value)


@rows
def test_plain_products_are_known_to_torch_func(row: Row) -> None:
    structure = random_structure(row, 7, 5)
    g = draw(4, 7)
    _, vjp = torch.func.vjp(structure, draw(4, 5, seed=1))
    torch.testing.assert_close(vjp(g)[0], g @ twin(row, structure))


@rows
@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 0, 3), (2, 3, 4)], ids=str)
@different_backends
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


@pytest.mark.parametrize("shape", [(), (5,), (7,), (6, 4)], ids=str)
@pytest.mark.parametrize("way", ["module", "fft", "dense"])
def test_refuses_another_last_dimension(shape: tuple[int, ...], way: str) -> None:
    """Which no structure does by itself: it is checked before its product is taken."""
    with pytest.raises(ValueError, match="give it a last dimension of n=6"):
        BACKENDS[way](random_structure(ROWS[0], 4, 6), draw(*shape))
