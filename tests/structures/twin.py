"""A layer with an update against the dense matrix of its parts, in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from surm.structures import Structure


def assert_dense(
    y: Tensor,
    parts: Sequence[Structure],
    alpha: float,
    x: Tensor,
    g: Tensor,
    *,
    weight: Tensor | None,
    base: Tensor | None,
    within: float,
) -> None:
    """y = x (W + alpha D)^T + base, and its gradients of x and of all parameters for the gradient g of y.

    parts: stand one below the other in D.
    within: relative error in the Frobenius norm.
    """
    inputs = [x, *(parameter for part in parts for parameter in part.parameters())]
    D = alpha * torch.cat([part.dense(torch.float64) for part in parts])
    expected = linear(x.double(), D if weight is None else D + weight)
    expected = expected if base is None else expected + base
    for found, exact in zip(
        [y, *torch.autograd.grad(y, inputs, g)],
        [expected, *torch.autograd.grad(expected, inputs, g.double())],
        strict=True,
    ):
        assert (found - exact).norm() < within * exact.norm()
