"""Families whose matrices read tensors that the layers of a model share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from surm.structures.base import Device
from surm.structures.family import Family


class Site(NamedTuple):
    """Which of a model's matrices one is.

    Attributes:
        layer: full name of its layer.
        part: its part of a fused projection; "update" of a layer that is not fused, "adapter" in adapter form.
        m: rows.
        n: columns.
        block: what its layer's name has in common with those of the same block: the name up to its last number.
        projection: which of an attention's projections it is, "q", "k", "v" or "o"; else "mlp", or nothing.
        heads: number of heads that the attention around it has, or None where nothing tells.
    """

    layer: str
    part: str
    m: int
    n: int
    block: str = ""
    projection: str = ""
    heads: int | None = None


class SharedTensors(nn.Module, ABC):
    """What the members of a family in one adapter of a model share: parameters, `Seeded` tensors, or both."""

    has_gate: bool = False  # whether it also acts on the outputs of blocks, by `gate`; then the option `gate` is true

    def gate(self, block: int, attention: Tensor) -> Tensor:
        """What is added to the output of a block, by number, for the output of the attention in it."""
        raise NotImplementedError

    @abstractmethod
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        """As in `Structure`, for all members at once."""


class SharingFamily(Family):
    """A family whose members read the tensors of their model, each with its index among them.

    The tensors belong to the model, which counts, trains, saves, loads and moves them once. A member may have
    parameters of its own beside them, which `_parameter_shapes` names and `reset_parameters` draws.
    """

    shares: ClassVar[bool] = True
    shared: SharedTensors | None
    index: int
    anchor: Tensor

    @classmethod
    @abstractmethod
    def shared_tensors(
        cls, sites: Sequence[Site], *, device: Device, dtype: torch.dtype | None, **options: Any
    ) -> SharedTensors:
        """New tensors, for members at these sites in this order.

        Raises:
            ValueError: one sentence, where matrices of these sizes cannot share them.
        """

    @abstractmethod
    def read(self, shared: Any) -> list[Tensor]:
        """The `factors` of this member from the shared tensors, by its `index`, and its own parameters."""

    def use(self, shared: SharedTensors, index: int) -> None:
        """Read these tensors, as the member of this index."""
        # Past nn.Module, to which a module held here would belong to each of the layers.
        self.__dict__["shared"] = shared
        self.index = index

    def factors(self) -> list[Tensor]:
        if self.shared is None:
            raise ValueError(
                f"{self.name} reads tensors that a model's layers share: adapt a model with it, by peft.get_peft_model."
            )
        factors = self.read(self.shared)
        return factors if self.anchor.is_meta else [factor.to(self.anchor.device) for factor in factors]

    def reset_parameters(self, init_weights: bool | str = True) -> None:
        """Nothing, where a member has no parameters of its own."""

    def _build(self, device: Device, dtype: torch.dtype | None) -> None:
        super()._build(device, dtype)
        self.__dict__["shared"] = None
        # Empty: it moves with the layer, which may be on another device than the shared tensors.
        self.register_buffer("anchor", torch.empty(0, device=device), persistent=False)
