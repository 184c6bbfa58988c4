"""How much of a layer's training step is calls: what the host does, whatever the size, and what a GPU would launch."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.layers import Layer

# Operators that compute nothing, where none within them does.
SHAPES = {
    f"aten::{name}"
    for name in (
        *("alias", "as_strided", "chunk", "contiguous", "detach", "empty", "empty_like", "empty_strided", "expand"),
        *("expand_as", "flatten", "lift_fresh", "mT", "narrow", "new_empty", "new_empty_strided", "permute"),
        *("promote_types", "real", "reshape", "_reshape_alias", "resize_", "resolve_conj", "resolve_neg"),
        *("result_type", "select", "set_", "slice", "split", "split_with_sizes", "squeeze", "t", "to", "transpose"),
        *("unbind", "unfold", "_unsafe_view", "unsqueeze", "view", "view_as", "view_as_real"),
    )
}
PREFIX = "aten::"


class Calls(NamedTuple):
    """Of one forward and backward pass.

    Attributes:
        name: of the layer.
        calls: operators of torch that Python or autograd calls, views too.
        computing: operators that compute, those within others too: on a CPU, what would be kernels.
        kernels: launched on a GPU, copies and fills too; None on a CPU.
    """

    name: str
    calls: int
    computing: int
    kernels: int | None


def count_calls(
    chosen: Iterable[Layer], width: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> Iterable[Calls]:
    """What the second step of each layer calls; x has three dimensions and a gradient, as in a model."""
    for layer in chosen:
        torch.manual_seed(0)
        x = torch.randn(1, tokens, width, dtype=dtype, device=device, requires_grad=True)
        g = torch.randn(1, tokens, width, dtype=dtype, device=device)
        module = layer.build(nn.Linear(width, width, dtype=dtype, device=device))
        module(x).backward(g)
        x.grad = None
        for parameter in module.parameters():
            parameter.grad = None
        on_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities, acc_events=True) as profiled:
            module(x).backward(g)
            if on_gpu:
                torch.cuda.synchronize(device)
        yield _counted(layer.name, profiled.events() or [], on_gpu)


def _counted(name: str, events: Iterable[Any], on_gpu: bool) -> Calls:
    events = list(events)
    ours = [event for event in events if event.name.startswith(PREFIX)]
    outer = [event for event in ours if event.cpu_parent is None or not event.cpu_parent.name.startswith(PREFIX)]
    kernels = sum(event.device_type == DeviceType.CUDA for event in events) if on_gpu else None
    return Calls(name, len(outer), sum(map(_computing, outer)), kernels)


def _computing(event: Any) -> int:
    """Operators that compute, of this one and those within it: the innermost of each chain."""
    within = sum(_computing(child) for child in event.cpu_children if child.name.startswith(PREFIX))
    return within or int(event.name not in SHAPES)
