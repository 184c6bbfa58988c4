"""A linear layer with updates, as one function of autograd, and as one operator that torch.compile does not look into.

    y = x (W + D)^T + b                     D has, in each of its parts of rows, a sum of structured matrices

Either W + D is formed and multiplied once, or x D^T is added into x W^T + b where that lies. Without W it is added to
an output that is there already, or it is all. D is formed in the forward pass and again in the backward pass; of all
that has the size of the tokens, only x is kept between them.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from surm.structures.autocast import without_autocast
from surm.structures.plan import Plan, Update, plan_of, read, with_tensors
from surm.structures.traced import Traced
from surm.structures.ways import PLAIN, TRACED, Group, Parts, Plain, Way

NO_SECOND_DERIVATIVES = (
    "surm: second derivatives of a layer with an update are not available this way: give backend='fft', whose products "
    "are differentiable as often as one likes."
)


def updated_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    m: int,
    updates: Sequence[Update],
    *,
    together: bool = True,
    base: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """y = x (W + D)^T + b, or x D^T without W: x (..., n), W (m, n), b (m,) -> (..., m), in `dtype`.

    D is formed in the dtype of the generators. In the forward pass that costs O(m n) for each update besides the
    products; in the backward pass, besides those for the gradient of x, O(m n) again and what the gradients of the
    generators take. W gets no gradient.

    Args:
        together: with W, one product with W + D; else a second one with D, which half precision needs, as it would
            round most of a small D away in the sum.
        base: without W, what is added to: (..., m) in `dtype`; it is not changed.
        dtype: that of W and b, to which x is cast as `torch.autocast` does it; None: that of x.

    Raises:
        RuntimeError: second derivatives are asked for.
    """
    plan = plan_of(m, weight is not None and together, updates)
    tensors = [tensor for update in updates for tensor in update.generators]
    dtype = dtype or x.dtype
    if torch.compiler.is_compiling():
        x = x.to(dtype)
        if all(group.way == TRACED for group in plan.groups):
            return cast(Tensor, _TracedLinear.apply(plan, dtype, x, weight, bias, base, *tensors))
        return cast(Tensor, _operator(x, weight, bias, base, tensors, plan.written()))
    return cast(Tensor, _Linear.apply(plan, dtype, x, weight, bias, base, *tensors))


def updated_linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], updates: Sequence[Update]
) -> tuple[Tensor, ...]:
    """y_i = x (W_i + D_i)^T + b_i of layers that share x (..., n): W_i (m_i, n) -> (..., m_i), all in the dtype of x.

    As `updated_linear` with `together` for each; D is formed and H made for all at once, which spares calls where x has
    few rows. In return W_i + D_i of all layers are in memory together, and so are the gradients of all y_i.

    Args:
        updates: their rows count through the layers, as if all W_i stood one below the other.

    Raises:
        RuntimeError: second derivatives are asked for.
    """
    plan = plan_of(sum(len(weight) for weight in weights), True, updates)
    tensors = [tensor for update in updates for tensor in update.generators]
    return cast(tuple[Tensor, ...], _Linears.apply(plan, len(weights), x, *weights, *biases, *tensors))


_PLAIN, _TRACED = Plain(), Traced()


def way(name: str) -> Way:
    """A way by its name; those of a GPU are loaded with the first of them, as Triton is not everywhere."""
    if name == PLAIN:
        return _PLAIN
    return _TRACED if name == TRACED else _of_gpu()[name]


@cache
def _of_gpu() -> dict[str, Way]:
    from surm.structures.gpu.ways import WAYS

    return WAYS


def summed_weight(weight: Tensor, groups: Sequence[tuple[Group, Parts]], dtype: torch.dtype) -> Tensor:
    """W + D (m, n) in `dtype`."""
    m, n = weight.shape
    group, tensors = groups[0]
    if len(groups) == 1 and group.covers(m):
        return way(group.way).form(group, tensors, n, weight, dtype)
    total = weight.to(dtype, copy=True)
    for group, tensors in groups:
        total[group.rows].add_(way(group.way).form(group, tensors, n, None, dtype))
    return total


def _summed_weights(weights: Sequence[Tensor], groups: Sequence[tuple[Group, Parts]], dtype: torch.dtype) -> Tensor:
    """W_i + D_i of layers one below the other, in `dtype`; the W_i are never copied side by side."""
    m, n = sum(len(weight) for weight in weights), weights[0].shape[1]
    group, tensors = groups[0]
    if len(groups) == 1 and group.covers(m):
        total = way(group.way).form(group, tensors, n, None, dtype)
        for own, weight in zip(_rows_of(total, weights), weights, strict=True):
            own.add_(weight)
        return total
    return summed_weight(torch.cat(tuple(weights)), groups, dtype)


def _rows_of(total: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.split(total, [len(weight) for weight in weights])


def _matrix(x: Tensor, plan: Plan) -> Tensor:
    """x (..., n) as rows (T, n), each contiguous where a kernel of a GPU reads them."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or plan.is_plain else rows.contiguous()


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    tensors: Sequence[Tensor],
    plan: Plan,
) -> Tensor:
    groups, m = with_tensors(plan, tensors), plan.m
    with without_autocast(x):  # in whose dtype D would be formed
        if weight is not None and plan.together:
            return linear(x, summed_weight(weight, groups, x.dtype), bias)
        # One group for all rows writes what others would have to add to.
        fresh = weight is None and base is None and len(groups) == 1 and groups[0][0].covers(m)
        if weight is not None:
            y = linear(x, weight, bias)
        elif base is not None:
            y = base.clone(memory_format=torch.contiguous_format)
        else:
            y = (x.new_empty if fresh else x.new_zeros)((*x.shape[:-1], m))
        rows, out = _matrix(x, plan), y if y.dim() == 2 else y.view(-1, m)
        for group, parts in groups:
            way(group.way).add(group, parts, rows, out if group.covers(m) else out[:, group.rows], fresh)
    return y


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor | None, tensors: Sequence[Tensor], plan: Plan, needs_x: bool, needs: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradient of x, if it is needed, and those of the generators, if any `needs` them."""
    # As matrices: a product of g as it comes, with a W + D for each example, would be slow where g is not contiguous.
    g_rows, x_rows, groups, m = _matrix(g, plan), _matrix(x, plan), with_tensors(plan, tensors), plan.m
    dx, fresh = None, False
    gradients: list[Tensor] = []
    with without_autocast(x):
        # First, as it reads g, and W + D is gone when the others are computed.
        if needs_x and weight is not None:
            dx = torch.mm(g_rows, summed_weight(weight, groups, g.dtype) if plan.together else weight)
        elif needs_x:
            dx, fresh = torch.empty_like(x_rows, memory_format=torch.contiguous_format), True
        if needs or not plan.together:
            into = None if plan.together else dx
            for group, parts in groups:
                own = g_rows if group.covers(m) else g_rows[:, group.rows]
                gradients += way(group.way).backward(group, parts, own, x_rows, into, fresh, needs)
                fresh = False
    return dx if dx is None or x.dim() == 2 else dx.view(x.shape), gradients


def _bias_gradient(g: Tensor) -> Tensor:
    return g.reshape(-1, g.shape[-1]).sum(dim=0)


# In eager mode a plain function of autograd, as an operator of torch.library took 0.15 ms a step more; the operator is
# for graphs, which it enters whole.


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        dtype: torch.dtype,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        base: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.plan, ctx.dtype = plan, x.dtype
        x = x.to(dtype)  # here, as autograd's own cast would be one node more
        ctx.save_for_backward(x, weight, *tensors)
        return _forward(x, weight, bias, base, tensors, plan)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(NO_SECOND_DERIVATIVES)
        return _backward(ctx, g)


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, layers: int, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, biases, generators = tensors[:layers], tensors[layers : 2 * layers], tensors[2 * layers :]
        ctx.plan, ctx.layers = plan, layers
        ctx.set_materialize_grads(False)  # of an output that nothing depends on
        ctx.save_for_backward(x, *weights, *generators)
        own = _rows_of(_summed_weights(weights, with_tensors(plan, generators), x.dtype), weights)
        return tuple(linear(x, weight, bias) for weight, bias in zip(own, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(NO_SECOND_DERIVATIVES)
        x, *saved = ctx.saved_tensors
        weights, generators = saved[: ctx.layers], saved[ctx.layers :]
        _, _, needs_x, *needs = ctx.needs_input_grad
        pairs = list(zip(gradients, weights, strict=True))
        each = [x.new_zeros(*x.shape[:-1], len(weight)) if g is None else g for g, weight in pairs]
        g, of_biases = torch.cat(each, dim=-1), needs[ctx.layers : 2 * ctx.layers]
        biases = [_bias_gradient(own) if needed else None for own, needed in zip(each, of_biases, strict=True)]
        dx = None
        if needs_x:
            with without_autocast(x):
                total = _summed_weights(weights, with_tensors(ctx.plan, generators), x.dtype)
                dx = torch.mm(g.view(-1, len(total)), total).view(x.shape)
            del total  # before the gradients of the generators
        _, found = _gradients(g, x, None, generators, ctx.plan, False, any(needs[2 * ctx.layers :]))
        return None, None, dx, *(None for _ in weights), *biases, *(found or (None for _ in generators))


class _TracedLinear(_Linear):
    """The same for torch.compile, which looks into it, and which gives no second derivatives itself."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return _backward(ctx, g)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, weight, *tensors = ctx.saved_tensors
    _, _, needs_x, _, needs_bias, needs_base, *needs = ctx.needs_input_grad
    dx, gradients = _gradients(g, x, weight, tensors, ctx.plan, needs_x, any(needs))
    dx = None if dx is None else dx.to(ctx.dtype)
    bias, base = _bias_gradient(g) if needs_bias else None, g if needs_base else None
    return None, None, dx, None, bias, base, *(gradients or (None for _ in tensors))


def _operator_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, base: Tensor | None, tensors: list[Tensor], plan: str
) -> Tensor:
    return _forward(x, weight, bias, base, tensors, read(plan))


def _operator_gradients(
    g: Tensor, x: Tensor, weight: Tensor | None, tensors: list[Tensor], plan: str, needs_x: bool
) -> list[Tensor]:
    dx, gradients = _gradients(g, x, weight, tensors, read(plan), needs_x, True)
    # What an operator returns must share no memory, as views of one tensor for all parts do.
    return [_own(gradient) for gradient in gradients] + ([dx] if dx is not None else [])


def _own(tensor: Tensor) -> Tensor:
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


_operator = torch.library.custom_op("surm::linear", _operator_forward, mutates_args=())
_backward_operator = torch.library.custom_op("surm::linear_backward", _operator_gradients, mutates_args=())


@_operator.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, base: Tensor | None, tensors: list[Tensor], plan: str
) -> Tensor:
    return x.new_empty(*x.shape[:-1], read(plan).m)


@_backward_operator.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor | None, tensors: list[Tensor], plan: str, needs_x: bool) -> list[Tensor]:
    like_x = [torch.empty_like(x, memory_format=torch.contiguous_format)] if needs_x else []
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors] + like_x


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, _, tensors, ctx.plan = inputs
    ctx.save_for_backward(x, weight, *tensors)


def _operator_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, weight, *tensors = ctx.saved_tensors
    needs_x, _, needs_bias, *_ = ctx.needs_input_grad
    gradients = _backward_operator(g, x, weight, tensors, ctx.plan, needs_x)
    # Taken out of the list, as autograd copies a gradient that somebody else holds too.
    dx = gradients.pop() if needs_x else None
    base = g if ctx.needs_input_grad[3] else None
    return dx, None, _bias_gradient(g) if needs_bias else None, base, gradients, None


def _refuse(ctx: Any, *_: Any) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVES)


_operator.register_autograd(_operator_backward, setup_context=_keep)
_backward_operator.register_autograd(_refuse)
