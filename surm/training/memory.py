"""Peak memory of one training step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's words on how it starts, stops and finds no GPU


@dataclass
class PeakMemory:
    """Peak memory in bytes, known after the `with` block; None where the device does not tell."""

    bytes: int | None = None


@contextmanager
def measure_peak(module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory of the step inside the block, with what is held before it.

    That is what the allocator holds on an accelerator; on a CPU, which counts from the block on, parameters, buffers,
    gradients and the optimiser's state. The resident size of the process is no measure: it holds the libraries, and
    memory that the allocator has not given back.

    Records made before 2026-12 count on a CPU the tensors that operators return, and not what an operator allocates and
    frees inside itself: the same step has a slightly lower number there.
    """
    peak = PeakMemory()
    held = _held(module, optimizer, device)
    with measure_added(device) as added:
        yield peak
    peak.bytes = None if added.bytes is None else held + added.bytes


@contextmanager
def measure_added(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the most bytes that the block holds at once beside those that were held before it.

    The allocator counts them, so that what an operator takes and gives back inside itself is seen too: on an
    accelerator by its high-water mark; on a CPU by the profiler's events, which leave out the work space of a library
    with an allocator of its own, such as the FFT's.
    """
    peak = PeakMemory()
    if device.type == "cpu":
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            yield peak
        events = recorded.profiler.kineto_results.events()
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        peak.bytes = int(np.cumsum([0, *(size for _, size in changes)]).max())
        return
    allocator = torch.get_device_module(device)
    if not hasattr(allocator, "max_memory_allocated"):  # MPS
        yield peak
        return
    allocator.synchronize(device)
    allocator.reset_peak_memory_stats(device)
    before = allocator.memory_allocated(device)
    yield peak
    peak.bytes = allocator.max_memory_allocated(device) - before


def _held(module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    if device.type != "cpu":
        allocator = torch.get_device_module(device)
        return int(allocator.memory_allocated(device)) if hasattr(allocator, "memory_allocated") else 0
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    tensors += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())  # views and ties count once
