"""The ways to run one training step on a GPU: as Python starts it, as a CUDA graph, or compiled; and its kernels."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from benchmarks.result import Kernels

MODES = ("eager", "graph", "compiled")
WARM_UP = 3  # steps before a graph is recorded: libraries choose their work space and kernels in the first ones
COUNTED = 3  # steps that the profiler sees

Module = TypeVar("Module", bound=nn.Module)


def replayed(step: Callable[[], object]) -> Callable[[], object]:
    """The step as a recorded CUDA graph: the same kernels on the same memory, without Python.

    Raises:
        RuntimeError: the step waits for the GPU, or does something else that a graph cannot hold.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def compiled(module: Module, device: torch.device) -> Module:
    """The module by `torch.compile`, for the shapes of its first call; on a CPU it is traced alone."""
    torch._dynamo.config.recompile_limit = 64  # all adapted layers are one piece of code to it
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    module.compile(dynamic=False, backend=backend)
    return module


def count_kernels(step: Callable[[], object]) -> Kernels:
    """Seconds and number of kernels (copies and fills among them) that one step starts on the GPU."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(COUNTED):
            step()
        torch.cuda.synchronize()
    results = recorded.profiler.kineto_results
    started = [event for event in results.events() if event.device_type() == DeviceType.CUDA]
    return Kernels(sum(event.duration_ns() for event in started) / 1e9 / COUNTED, round(len(started) / COUNTED))
