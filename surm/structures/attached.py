"""Families made from the frozen weight that they update."""

from typing import ClassVar

from torch import Tensor

from surm.structures.family import Family


class WeightFamily(Family):
    """A family that sees the weight beside it in `attach`, and keeps frozen tensors of it, such as singular vectors."""

    needs_weight: ClassVar[bool] = True

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
