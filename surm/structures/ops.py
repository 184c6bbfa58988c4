"""A linear layer with updates, as one operator that torch.compile does not look into.

    y = x (W + D)^T + b                     D has, in each of its parts of rows, a sum of structured matrices

W + D is formed in the forward pass and again in the backward pass; of all that has the size of the tokens, only x is
kept between them. Without W the result is the update's alone, x D^T.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from surm.structures.kernels import KERNELS, Kernel

NO_SECOND_DERIVATIVES = (
    "surm: second derivatives of a layer with an update are not available this way: give backend='fft', whose products "
    "are differentiable as often as one likes."
)


class Term(NamedTuple):
    """alpha S in a layer: the rows of W that it updates, S by a kernel and its generators, and alpha."""

    rows: slice
    kernel: str
    generators: Sequence[Tensor]
    alpha: float = 1.0


def updated_linear(x: Tensor, weight: Tensor | None, bias: Tensor | None, m: int, terms: Sequence[Term]) -> Tensor:
    """y = x (W + D)^T + b, or x D^T without W: x (..., n), W (m, n), b (m,) -> (..., m).

    D is formed in the dtype of the generators. In the forward pass that costs O(m n) for each term besides the product
    with W; in the backward pass, besides the product for the gradient of x, O(m n) again and what the gradients of the
    generators take. W gets no gradient.

    Raises:
        RuntimeError: second derivatives are asked for.
    """
    plan = ";".join([str(m), *(f"{term.rows.start}:{term.rows.stop}:{term.kernel}:{term.alpha}" for term in terms)])
    generators = [generator for term in terms for generator in term.generators]
    if torch.compiler.is_compiling():
        return cast(Tensor, _operator(x, weight, bias, generators, plan))
    return cast(Tensor, _Linear.apply(plan, x, weight, bias, *generators))


class _Place(NamedTuple):
    rows: slice
    kernel: Kernel
    generators: slice  # in the list of all
    alpha: float


@lru_cache(maxsize=1024)
def _parse(plan: str) -> tuple[int, tuple[_Place, ...]]:
    m, *terms = plan.split(";")
    places, first = [], 0
    for term in terms:
        start, stop, name, alpha = term.split(":")
        kernel, last = KERNELS[name], first + KERNELS[name].generators
        places.append(_Place(slice(int(start), int(stop)), kernel, slice(first, last), float(alpha)))
        first = last
    return int(m), tuple(places)


def _sum(weight: Tensor | None, generators: Sequence[Tensor], plan: str, n: int, dtype: torch.dtype) -> Tensor:
    """W + D, or D: (m, n)."""
    m, places = _parse(plan)
    if len(places) == 1 and places[0].rows == slice(0, m):
        alpha, D = places[0].alpha, places[0].kernel.dense(generators, m, n)
        return (D.mul_(alpha) if weight is None else torch.add(weight, D, alpha=alpha, out=D)).to(dtype)
    total = generators[0].new_zeros(m, n) if weight is None else weight.clone()
    for rows, kernel, own, alpha in places:
        total[rows].add_(kernel.dense(generators[own], rows.stop - rows.start, n), alpha=alpha)
    return total.to(dtype)


def _groups(plan: str, generators: Sequence[Tensor]) -> list[list[_Place]]:
    """Neighbours of one kind and size, whose gradients are computed together."""
    groups: list[list[_Place]] = []
    for place in _parse(plan)[1]:
        last = groups[-1][-1] if groups else place
        size = place.rows.stop - place.rows.start
        beside = last.rows == slice(place.rows.start - size, place.rows.start)
        shapes = [[tensor.shape for tensor in generators[one.generators]] for one in (last, place)]
        if beside and last.kernel is place.kernel and shapes[0] == shapes[1]:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, generators: list[Tensor], plan: str) -> Tensor:
    return linear(x, _sum(weight, generators, plan, x.shape[-1], x.dtype), bias)


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor | None, generators: list[Tensor], plan: str, needs_x: bool
) -> list[Tensor]:
    """The gradients of the generators and, if it is needed, that of x behind them."""
    n = x.shape[-1]
    # First, as it reads g, and W + D is gone when the others are computed.
    x_gradient = [g @ _sum(weight, generators, plan, n, g.dtype)] if needs_x else []
    g_rows, x_rows = g.reshape(-1, g.shape[-1]), x.reshape(-1, n)
    gradients = []
    for group in _groups(plan, generators):
        stacked = [torch.stack(same) for same in zip(*(generators[place.generators] for place in group), strict=True)]
        g_group = g_rows[:, group[0].rows.start : group[-1].rows.stop]
        g_group = g_group.view(len(g_rows), len(group), g_group.shape[1] // len(group))
        found = group[0].kernel.gradients(stacked, g_group, x_rows)
        gradients += [place.alpha * own[index] for index, place in enumerate(group) for own in found]
    return gradients + x_gradient


def _backward(
    compute: Callable[..., list[Tensor]], ctx: Any, g: Tensor, needs_x: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """The gradients of x, of the bias and of the generators."""
    x, weight, *generators = ctx.saved_tensors
    gradients = compute(g, x, weight, generators, ctx.plan, needs_x)
    # Taken out of the list, as autograd copies a gradient that somebody else holds too.
    x_gradient = gradients.pop() if needs_x else None
    return x_gradient, g.reshape(-1, g.shape[-1]).sum(dim=0) if needs_bias else None, gradients


# In eager mode a plain function of autograd, as an operator of torch.library took 0.15 ms a step more; the operator is
# for graphs, which it enters whole.


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, *generators: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *generators)
        ctx.plan = plan
        return _forward(x, weight, bias, list(generators), plan)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(NO_SECOND_DERIVATIVES)
        _, needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        x, bias, generators = _backward(_gradients, ctx, g, needs_x, needs_bias)
        return None, x, None, bias, *generators


_operator = torch.library.custom_op("surm::linear", _forward, mutates_args=())
_operator_gradients = torch.library.custom_op("surm::linear_backward", _gradients, mutates_args=())


@_operator.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, generators: list[Tensor], plan: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], _parse(plan)[0])


@_operator_gradients.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor | None, generators: list[Tensor], plan: str, needs_x: bool) -> list[Tensor]:
    return [torch.empty_like(generator) for generator in generators] + ([torch.empty_like(x)] if needs_x else [])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, generators, ctx.plan = inputs
    ctx.save_for_backward(x, weight, *generators)


def _operator_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    needs_x, _, needs_bias, *_ = ctx.needs_input_grad
    x, bias, generators = _backward(_operator_gradients, ctx, g, needs_x, needs_bias)
    return x, None, bias, generators, None


def _refuse(ctx: Any, *_: Any) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVES)


_operator.register_autograd(_operator_backward, setup_context=_keep)
_operator_gradients.register_autograd(_refuse)
