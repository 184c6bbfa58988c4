"""Launches of compiled kernels without what Triton asks before each: a layer's step has several, of 20 us and more."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

ALIGNED = 16  # bytes: Triton compiles a kernel for pointers that are multiples of it, or for any
# Versions of Triton whose compiled kernels are called as below; any other one starts them itself, each time.
READ = (3, 6) <= tuple(map(int, triton.__version__.split(".")[:2])) <= (3, 9)
MOST = 4096  # launches that are remembered of a kernel, should sizes never repeat


class Launcher:
    """A kernel of Triton with arguments in this order: pointers, numbers that may change, numbers that do not.

    Triton compiles a kernel for the types of all arguments, the alignment of pointers, and some values of integers. It
    is found again by the types, and by the values of what does not change. What changes must be a float, or be listed
    in the kernel's `do_not_specialize`.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.known: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        pointers: Sequence[Tensor | None],
        changing: tuple[float, ...],
        fixed: tuple[Any, ...],
        **options: int,
    ) -> None:
        """Launch it on the current stream of the pointers' device.

        Args:
            grid: programs in each dimension.
            pointers: tensors on one device, the first of which is there; None for what is never read.
            changing: integers below 2^31, and floats.
            fixed: integers, and constants of the compilation.
            options: `num_warps` and `num_stages`.
        """
        device = pointers[0].get_device()  # type: ignore[union-attr]
        if device >= 0 and device != torch._C._cuda_getDevice():
            with torch.cuda.device(device):
                return self(grid, pointers, changing, fixed, **options)
        addresses: list[int | None] = []
        types: list[torch.dtype | None] = []
        all_bits = 0  # of all addresses: their last ones are zero where all are aligned
        for tensor in pointers:
            if tensor is None:
                addresses.append(None)
                types.append(None)
            else:
                address = tensor.data_ptr()
                all_bits |= address
                addresses.append(address)
                types.append(tensor.dtype)
        key = (device, fixed, *types, *options.values())
        known = self.known.get(key)
        if known is None or all_bits % ALIGNED:
            compiled = self.kernel[grid](*pointers, *changing, *fixed, **options)
            parts = tuple(getattr(compiled, name, None) for name in ("run", "function", "packed_metadata"))
            # The interpreter compiles nothing.
            if READ and None not in parts and not all_bits % ALIGNED and len(self.known) < MOST:
                self.known[key] = parts
            return None
        run, function, metadata = known
        stream = torch._C._cuda_getCurrentRawStream(device)
        # As `triton.JITFunction.run` calls it, but for three arguments of its profiler.
        run(*grid, stream, function, metadata, None, None, None, *addresses, *changing, *fixed)
        return None


def blocks_of(count: int, size: int) -> int:
    """The number of blocks of a size that hold so many; Triton's own `cdiv` takes 15 us where Python calls it."""
    return -(-count // size)
