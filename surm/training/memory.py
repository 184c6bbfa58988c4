"""Peak memory of one training step."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory:
    """Peak memory in bytes, known after the `with` block of `measure_peak`."""

    bytes: int | None = None


@contextmanager
def measure_peak(module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory of the step inside the block.

    CUDA: the allocator's own high-water mark. CPU: bytes of all tensors alive at the worst moment, that is parameters,
    buffers, gradients and optimiser state held before the step, and every tensor that an operator returned and that was
    not yet freed; what an operator allocates and frees inside itself is not seen. The resident size of the process is
    no measure: it holds the libraries, and memory that the allocator has not given back.
    """
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    held = [*module.parameters(), *module.buffers()]
    held += [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    held += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    with LiveTensors(held) as live:
        yield peak
    peak.bytes = live.peak


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operators return until they are freed.

    Args:
        held: tensors that are alive before and count from the start.
    """

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in held:
            self._count(tensor)

    def __torch_dispatch__(
        self, operator: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
