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

from surm.structures.autocast import without_autocast
from surm.structures.kernels import KERNELS, Kernel

NO_SECOND_DERIVATIVES = (
    "surm: second derivatives of a layer with an update are not available this way: give backend='fft', whose products "
    "are differentiable as often as one likes."
)


class Term(NamedTuple):
    """alpha S in a layer.

    Attributes:
        rows: those of W that it updates.
        kernel: by which S is written.
        generators: the kernel's.
        alpha: the factor.
        outer: whether the kernel makes its gradients from H = g^T x.
    """

    rows: slice
    kernel: str
    generators: Sequence[Tensor]
    alpha: float = 1.0
    outer: bool = False


def updated_linear(x: Tensor, weight: Tensor | None, bias: Tensor | None, m: int, terms: Sequence[Term]) -> Tensor:
    """y = x (W + D)^T + b, or x D^T without W: x (..., n), W (m, n), b (m,) -> (..., m).

    D is formed in the dtype of the generators. In the forward pass that costs O(m n) for each term besides the product
    with W; in the backward pass, besides the product for the gradient of x, O(m n) again and what the gradients of the
    generators take. W gets no gradient.

    Raises:
        RuntimeError: second derivatives are asked for.
    """
    plan = ";".join(
        [str(m), *(f"{term.rows.start}:{term.rows.stop}:{term.kernel}:{term.alpha}:{term.outer:d}" for term in terms)]
    )
    generators = [generator for term in terms for generator in term.generators]
    if torch.compiler.is_compiling():
        return cast(Tensor, _operator(x, weight, bias, generators, plan))
    return cast(Tensor, _Linear.apply(plan, x, weight, bias, *generators))


class _Place(NamedTuple):
    rows: slice
    kernel: Kernel
    generators: slice  # in the list of all
    alpha: float
    outer: bool


@lru_cache(maxsize=1024)
def _parse(plan: str) -> tuple[int, tuple[_Place, ...]]:
    m, *terms = plan.split(";")
    places, first = [], 0
    for term in terms:
        start, stop, name, alpha, outer = term.split(":")
        kernel, last = KERNELS[name], first + KERNELS[name].generators
        places.append(_Place(slice(int(start), int(stop)), kernel, slice(first, last), float(alpha), outer == "1"))
        first = last
    return int(m), tuple(places)


class _Group(NamedTuple):
    """Neighbours of one kind and size, which are computed together, with their generators side by side."""

    rows: slice
    first: _Place  # whose kernel, alpha and way to the gradients are those of all
    parts: int
    generators: list[Tensor]  # each (parts, ...)

    @property
    def size(self) -> int:
        """Rows of a part."""
        return int(self.rows.stop - self.rows.start) // self.parts


def _groups(plan: str, generators: Sequence[Tensor]) -> list[_Group]:
    groups: list[list[_Place]] = []
    for place in _parse(plan)[1]:
        if groups and _beside(groups[-1][-1], place, generators):
            groups[-1].append(place)
        else:
            groups.append([place])
    return [
        _Group(
            slice(places[0].rows.start, places[-1].rows.stop),
            places[0],
            len(places),
            [_side_by_side(same) for same in zip(*(generators[place.generators] for place in places), strict=True)],
        )
        for places in groups
    ]


def _beside(last: _Place, place: _Place, generators: Sequence[Tensor]) -> bool:
    size = place.rows.stop - place.rows.start
    follows = last.rows == slice(place.rows.start - size, place.rows.start)
    if not follows or (last.kernel, last.alpha, last.outer) != (place.kernel, place.alpha, place.outer):
        return False
    shapes = [[tensor.shape for tensor in generators[one.generators]] for one in (last, place)]
    return shapes[0] == shapes[1]


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def _sum(weight: Tensor | None, groups: Sequence[_Group], m: int, n: int, dtype: torch.dtype) -> Tensor:
    """W + D, or D: (m, n)."""
    if len(groups) == 1 and groups[0].rows == slice(0, m):
        D, alpha = _dense(groups[0], n), groups[0].first.alpha
        return (D.mul_(alpha) if weight is None else torch.add(weight, D, alpha=alpha, out=D)).to(dtype)
    total = groups[0].generators[0].new_zeros(m, n) if weight is None else weight.clone()
    for group in groups:
        total[group.rows].add_(_dense(group, n), alpha=group.first.alpha)
    return total.to(dtype)


def _dense(group: _Group, n: int) -> Tensor:
    """D of the group, one part below the other."""
    return group.first.kernel.dense(group.generators, group.size, n).flatten(0, 1)


def _forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, generators: list[Tensor], plan: str) -> Tensor:
    m, n = _parse(plan)[0], x.shape[-1]
    with without_autocast(x):  # in whose dtype D would be formed
        return linear(x, _sum(weight, _groups(plan, generators), m, n, x.dtype), bias)


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor | None, generators: list[Tensor], plan: str, needs_x: bool
) -> list[Tensor]:
    """The gradients of the generators and, if it is needed, that of x behind them."""
    m, n = g.shape[-1], x.shape[-1]
    # As matrices: a product of g as it comes, with a W + D for each example, would be slow where g is not contiguous.
    g_rows, x_rows = g.reshape(-1, m), x.reshape(-1, n)
    gradients = []
    with without_autocast(x):
        groups = _groups(plan, generators)
        # First, as it reads g, and W + D is gone when the others are computed.
        x_gradient = [(g_rows @ _sum(weight, groups, m, n, g.dtype)).view(x.shape)] if needs_x else []
        for group in groups:
            compute = group.first.kernel.gradients(group.first.outer)
            found = compute(group.generators, g_rows[:, group.rows].view(-1, group.parts, group.size), x_rows)
            # New tensors, which share nothing.
            gradients += [group.first.alpha * gradient for part in zip(*found, strict=True) for gradient in part]
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
