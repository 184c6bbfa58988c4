"""Merging updates into a weight, and taking them out again."""

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor

from surm.structures import Structure
from surm.tuners.offload import parameters_here


class Merging(BaseTunerLayer):
    """A layer whose base weight takes sums of alpha S, one for each part of its rows."""

    rows: int  # of S, for all parts together
    columns: int
    parts: dict[str, int]  # names and numbers of rows
    alpha: dict[str, float]  # by adapter
    keeps_weight: dict[str, bool]  # by adapter: whether unmerging restores the weight bit for bit
    kept_weight: Tensor | None
    adapter_layer_names: tuple[str, ...]

    @abstractmethod
    def structures(self, adapter_name: str) -> Iterator[tuple[int, Structure]]:
        """The adapter's structures, each with the index of the part that it updates."""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the base weight, before it was packed."""
        return self.rows, self.columns

    def as_matrix(self, weight: Tensor) -> Tensor:
        """A contiguous tensor of the shape of the base weight, viewed as a matrix of the shape of S."""
        return weight

    def get_delta_weight(self, adapter: str) -> Tensor:
        """alpha S of the shape of the base weight, in float32 or float64: zero where no part has the adapter."""
        any_adapters = (structure for name in self.adapter_layer_names for structure in getattr(self, name).values())
        zeros = next(any_adapters).factors()[0].new_zeros(self.weight_shape)
        return self._add_delta(_wide(zeros), adapter, 1.0)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of `adapter_names`, or of the active adapters, to the base weight.

        The sum is formed in float32 (float64 for a float64 weight) and cast once; a quantised weight is dequantised
        before and quantised again after.

        Raises:
            ValueError: with `safe_merge`, when an update is not finite; a quantised weight that cannot be kept; an
                adapter with a gate. The base weight is then unchanged.
            TypeError: PEFT cannot dequantise the weight, which is then unchanged.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.alpha]
        self.check_mergeable(names)
        if not names:
            return
        merged = self.merged_weight(names, safe_merge)
        if not self.merged and any(self.keeps_weight[name] for name in names):
            if self.quantization_backend is not None:
                raise ValueError("keep_base_weight=True is not possible with a quantised layer: leave it at False.")
            self.kept_weight = self._base_weight().detach().clone()
        self._set_base_weight(merged)
        self.merged_adapters.extend(names)

    def check_mergeable(self, names: Sequence[str]) -> None:
        """Raises ValueError where one of these adapters has a gate, which a merge would lose."""
        for name in names:
            for _, structure in self.structures(name):
                if structure.options.get("gate"):
                    raise ValueError(
                        f"{structure.name} with gate=True cannot be merged, as its gate acts on the outputs of blocks, "
                        "which no weight takes up: keep the adapter, or train one with gate=False."
                    )

    def merged_weight(self, names: Sequence[str], safe_merge: bool = False) -> Tensor:
        """The base weight plus the updates of the named adapters, in float32 or float64; nothing is changed.

        Raises:
            ValueError: with `safe_merge`, when an update is not finite.
        """
        weight = self._base_weight()
        merged = _wide(weight)
        for name in names:
            self._add_delta(merged, name, 1.0)
            if safe_merge and not torch.isfinite(merged.to(weight.dtype)).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        return merged

    def unmerge(self) -> None:
        """Take the merged updates out of the base weight.

        Where an adapter of the first merge has `keep_base_weight`, it is what it was, bit for bit; a write to it in
        between is lost. Else the updates are
        subtracted: it returns to what it was up to a rounding in its dtype for the merge and one for this, relative to
        the larger of the weight and the merged one; a quantised weight is quantised twice more.
        """
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        restored, self.kept_weight = self.kept_weight, None
        if restored is None:
            restored = _wide(self._base_weight())
            for name in self.merged_adapters:
                self._add_delta(restored, name, -1.0)
        self._set_base_weight(restored)
        self.merged_adapters = []

    def attach_weight(self, adapters: Sequence[str]) -> bool:
        """Show the adapters' structures the rows of the base weight that they update, dequantised, where they need it.

        Returns:
            Whether the weight was there: without storage, on the device "meta", it is not.
        """
        if self.merged:
            raise ValueError(
                f"A structure made from the weight that it updates cannot be added while {self.merged_adapters[0]!r} "
                "is merged into the weight: call unmerge_adapter first."
            )
        with parameters_here(self.get_base_layer()):
            weight = self._base_weight()
            if weight.is_meta:
                return False
            wide = _wide(weight)
        rows = torch.split(self.as_matrix(wide), list(self.parts.values()))
        for adapter in adapters:
            for index, structure in self.structures(adapter):
                for member in structure.summands():
                    if member.needs_weight:
                        member.attach(rows[index])
        return True

    def _base_weight(self) -> Tensor:
        if self.quantization_backend is not None:
            return self.quantization_backend.get_base_weight(self.get_base_layer())
        weight = self.weight
        if weight.shape != self.weight_shape or not weight.is_floating_point():
            raise TypeError(
                f"{type(self.get_base_layer()).__name__} is quantised in a way that this version of PEFT cannot undo: "
                "keep the adapter, or merge it into a base model that is not quantised."
            )
        return weight

    def _set_base_weight(self, wide: Tensor) -> None:
        weight = self._base_weight()
        cast_once = torch.empty_like(weight).copy_(wide)  # in the dtype and the memory format of the weight
        if self.quantization_backend is not None:
            self.quantization_backend.set_base_weight(self, cast_once)
        else:
            weight.data = cast_once

    @torch.no_grad()
    def _add_delta(self, weight: Tensor, adapter: str, sign: float) -> Tensor:
        """Add an adapter's update, times `sign`, to `weight` in place, touching the rows of its parts only."""
        rows = torch.split(self.as_matrix(weight), list(self.parts.values()))
        for index, structure in self.structures(adapter):
            # In the wider dtype, as the dense matrix would be rounded in that of parameters in half precision.
            dense = structure.dense(weight.dtype).to(weight.device)
            rows[index].add_(dense, alpha=sign * self.alpha[adapter])
        return weight


def _wide(weight: Tensor) -> Tensor:
    """A contiguous copy in float32, or in float64 of a float64 tensor."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
