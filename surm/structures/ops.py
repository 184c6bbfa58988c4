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


class Update(NamedTuple):
    """alpha S, which a layer adds to some rows of its weight.

    Attributes:
        rows: those of W that it updates.
        kernel: name of the kernel that writes S.
        generators: the tensors that the kernel writes S by.
        alpha: the factor.
        outer: whether the gradients of the generators are made from H = g^T x.
    """

    rows: slice
    kernel: str
    generators: Sequence[Tensor]
    alpha: float = 1.0
    outer: bool = False


def updated_linear(x: Tensor, weight: Tensor | None, bias: Tensor | None, m: int, updates: Sequence[Update]) -> Tensor:
    """y = x (W + D)^T + b, or x D^T without W: x (..., n), W (m, n), b (m,) -> (..., m).

    D is formed in the dtype of the generators. In the forward pass that costs O(m n) for each update besides the
    product with W; in the backward pass, besides the product for the gradient of x, O(m n) again and what the gradients
    of the generators take. W gets no gradient.

    Raises:
        RuntimeError: second derivatives are asked for.
    """
    plan = ";".join([str(m), *map(_written, updates)])
    generators = [generator for update in updates for generator in update.generators]
    if torch.compiler.is_compiling():
        return cast(Tensor, _operator(x, weight, bias, generators, plan))
    return cast(Tensor, _Linear.apply(plan, x, weight, bias, *generators))


# An operator of torch.library takes tensors, lists of tensors, numbers and text, but nothing nested. So the tensors of
# all updates go in as one flat list, and what is said about them as one text, the plan: the number of outputs, then of
# each update its rows, kernel, alpha, way to the gradients and number of generators. A graph sees a constant.


def _written(update: Update) -> str:
    rows, kernel, generators, alpha, outer = update
    return f"{rows.start}:{rows.stop}:{kernel}:{alpha}:{outer:d}:{len(generators)}"


class _Planned(NamedTuple):
    """An update as the plan has it: with the positions of its generators in the list of all, without the tensors."""

    rows: slice
    kernel: Kernel
    generators: slice
    alpha: float
    outer: bool


@lru_cache(maxsize=1024)
def _parse(plan: str) -> tuple[int, tuple[_Planned, ...]]:
    m, *written = plan.split(";")
    updates, first = [], 0
    for one in written:
        start, stop, name, alpha, outer, count = one.split(":")
        rows, last = slice(int(start), int(stop)), first + int(count)
        updates.append(_Planned(rows, KERNELS[name], slice(first, last), float(alpha), outer == "1"))
        first = last
    return int(m), tuple(updates)


class _Group(NamedTuple):
    """Neighbours of one kind and size, as a fused layer's queries, keys and values have them, computed together.

    One product with x for all of them costs less than one for each, so that their generators are put side by side.
    """

    rows: slice
    first: _Planned  # whose kernel, alpha and way to the gradients are those of all
    parts: int
    generators: list[Tensor]  # each (parts, ...)

    @property
    def size(self) -> int:
        """Rows of a part."""
        return int(self.rows.stop - self.rows.start) // self.parts


def _groups(plan: str, generators: Sequence[Tensor]) -> list[_Group]:
    groups: list[list[_Planned]] = []
    for update in _parse(plan)[1]:
        if groups and _beside(groups[-1][-1], update, generators):
            groups[-1].append(update)
        else:
            groups.append([update])
    return [
        _Group(
            slice(updates[0].rows.start, updates[-1].rows.stop),
            updates[0],
            len(updates),
            [_side_by_side(same) for same in zip(*(generators[one.generators] for one in updates), strict=True)],
        )
        for updates in groups
    ]


def _beside(last: _Planned, update: _Planned, generators: Sequence[Tensor]) -> bool:
    size = update.rows.stop - update.rows.start
    follows = last.rows == slice(update.rows.start - size, update.rows.start)
    if not follows or (last.kernel, last.alpha, last.outer) != (update.kernel, update.alpha, update.outer):
        return False
    shapes = [[tensor.shape for tensor in generators[one.generators]] for one in (last, update)]
    return shapes[0] == shapes[1]


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def _sum(weight: Tensor | None, groups: Sequence[_Group], m: int, n: int, dtype: torch.dtype) -> Tensor:
    """W + D, or D: (m, n)."""
    if len(groups) == 1 and groups[0].rows == slice(0, m):  # in D's own memory, which saves a copy of the weight
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
            g_parts = g_rows[:, group.rows].view(-1, group.parts, group.size)
            by_generator = compute(group.generators, g_parts, x_rows)
            # New tensors: what an operator returns must share no memory, and these are views of one for all parts.
            gradients += [group.first.alpha * gradient for part in zip(*by_generator, strict=True) for gradient in part]
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
