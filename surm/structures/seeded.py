"""Frozen random tensors that a seed gives."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from surm.structures.base import Device, Shape


class Seeded(nn.Module):
    """Frozen tensors by name, with entries N(0, 1) from a seed: they are not trained, not counted and not saved.

    Equal on every device and for every dtype: drawn on the CPU, one after another, in float32, which they keep whatever
    the module is cast to. They have storage under meta construction too, and are drawn again where a move lost them.
    """

    def __init__(self, seed: int, shapes: Mapping[str, Shape], device: Device = None) -> None:
        super().__init__()
        self.seed, self.shapes = seed, dict(shapes)
        device = torch.device(device or torch.get_default_device())
        for name, tensor in self._drawn(device).items():
            self.register_buffer(name, tensor, persistent=False)

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """One tensor, on the CPU in float32; a subclass may take another distribution."""
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    def draw_again(self, seed: int) -> None:
        """Take another seed, where they are."""
        self.seed = seed
        self._buffers.update(self._drawn(next(iter(self.buffers())).device))

    def _drawn(self, device: torch.device) -> dict[str, Tensor]:
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(self.seed)
            tensors = {name: self.draw(shape, generator) for name, shape in self.shapes.items()}
        return tensors if device.type == "meta" else {name: tensor.to(device) for name, tensor in tensors.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._materialise()
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # A cast has rounded them, `to_empty` lost them.
        device = next(iter(self.buffers())).device
        if device.type != "meta" and any(self._buffers[name] is not before[name] for name in self.shapes):
            self._buffers.update(self._drawn(device))
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._materialise()

    def _materialise(self) -> None:
        """Where there is no storage, draw them on the CPU."""
        if any(tensor.is_meta for tensor in self.buffers()):
            self._buffers.update(self._drawn(torch.device("cpu")))
