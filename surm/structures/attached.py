"""Families made from the frozen weight that they update."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from surm.structures.family import Family


class WeightFamily(Family):
    """A family that sees the weight beside it in `attach`, and keeps frozen tensors of it, such as singular vectors.

    They keep the dtype that they were made in, whatever the module is cast to.
    """

    needs_weight: ClassVar[bool] = True
    kept_names: ClassVar[tuple[str, ...]] = ()  # of what is kept, where that may come from an adapter's file first

    def keep(self, *, saved: bool = False, **tensors: Tensor) -> None:
        """Keep tensors by name, as buffers: not trained, and only if `saved` in the adapter's file."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=saved)

    def kept(self, name: str) -> Tensor:
        """One of them.

        Raises:
            ValueError: one sentence, where `attach` was not called yet.
        """
        if not hasattr(self, name):
            raise ValueError(
                f"{self.name} is made from the weight that it updates, which has no storage yet: load the model's "
                "weights by load_state_dict first, or in another way and then call attach_weights()."
            )
        tensor: Tensor = getattr(self, name)
        return tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            moved = self._buffers[name]
            assert tensor is not None
            assert moved is not None
            if tensor.is_meta and not moved.is_meta:  # `to_empty` has not brought the numbers back
                del self._buffers[name]
            elif moved.dtype != tensor.dtype:  # a cast has rounded them
                self._buffers[name] = tensor.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take what a file gives before the weight is there, in place of making it from the weight."""
        for name in self.kept_names:
            if name not in self._buffers and prefix + name in state_dict:
                self.keep(saved=True, **{name: torch.empty_like(state_dict[prefix + name])})
        super()._load_from_state_dict(state_dict, prefix, *args)
