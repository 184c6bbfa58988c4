"""The adapted layers: what those of both forms share, and the one of the weight form."""

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from surm.structures import Structure, build
from surm.tuners.config import SurmConfig


class SurmLayer(BaseTunerLayer):
    """A module with a structured matrix, or several, for each adapter.

    They are in `nn.ModuleDict`s `surm_<name>` by adapter, so that parameters are called as PEFT expects it:
    `surm_<name>.<adapter>.<parameter>`.
    """

    form: ClassVar[str]

    def __init__(self, base_layer: nn.Module, names: Iterable[str]) -> None:
        """Wrap `base_layer`; `names` are those of the dictionaries, without their prefix."""
        self.base_layer = base_layer
        self.adapter_layer_names = tuple(f"surm_{name}" for name in names)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    @abstractmethod
    def places(self, adapter_name: str) -> Iterator[tuple[nn.Module, str]]:
        """Where the adapter's structures are: the module that holds each, and its name there."""


class SurmLinear(nn.Module, SurmLayer):
    """W x + b + sum over active adapters of alpha S x (paper section 4); each part of a fused output has its own S.

    A fused query-key-value projection has the parts q, k and v; any other layer is one part.
    """

    form = "weight"
    WHOLE = "update"  # name of the part of a layer that is not fused

    other_param_names = ("alpha", "surm_dropout")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SurmConfig, parts: Mapping[str, int]) -> None:
        """Wrap `base_layer`; `parts` gives name and size of each part of its output in order, nothing for a whole."""
        super().__init__()
        linear = cast(nn.Linear, base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.parts = dict(parts) or {self.WHOLE: self.out_features}
        SurmLayer.__init__(self, base_layer, self.parts)
        self.surm_dropout = nn.ModuleDict()
        self.alpha: dict[str, float] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: SurmConfig) -> None:
        """Add an adapter.

        Raises:
            ValueError: one sentence, where the structure's options do not fit the layer's sizes.
        """
        chosen = self.parts if config.fused_parts is None or self.WHOLE in self.parts else config.fused_parts
        for part in chosen:
            structure = build(config.structure, self.parts[part], self.in_features, **(config.structure_options or {}))
            if config.init_weights is not True:  # which is what building does
                structure.reset_parameters(config.init_weights)
            getattr(self, f"surm_{part}")[adapter_name] = structure
        self.surm_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.alpha[adapter_name] = config.alpha
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def structures(self, adapter_name: str) -> Iterator[tuple[int, Structure]]:
        """The adapter's structures, each with the index of the part that it updates."""
        for index, name in enumerate(self.adapter_layer_names):
            by_adapter = getattr(self, name)
            if adapter_name in by_adapter:
                yield index, by_adapter[adapter_name]

    def places(self, adapter_name: str) -> Iterator[tuple[nn.Module, str]]:
        for name in self.adapter_layer_names:
            if adapter_name in getattr(self, name):
                yield getattr(self, name), adapter_name

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        outputs = list(torch.split(result, list(self.parts.values()), dim=-1))
        for adapter in self.active_adapters:
            if adapter not in self.alpha:
                continue
            dropped = self.surm_dropout[adapter](x)
            for index, structure in self.structures(adapter):
                update = structure(self._cast_input_dtype(dropped, next(structure.parameters()).dtype))
                outputs[index] = torch.add(outputs[index], update, alpha=self.alpha[adapter])
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)).to(dtype)

    @property
    def _base_weight(self) -> Tensor:
        return cast(Tensor, self.get_base_layer().weight)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """alpha S, or the S of all parts above one another (out_features, in_features), in float32 or float64."""
        weight = self._base_weight
        delta = torch.zeros(weight.shape, dtype=_merge_dtype(weight), device=weight.device)
        return self._add_delta(delta, adapter, 1.0)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of `adapter_names`, or of the active adapters, to the base weight.

        The sum is formed in float32 (float64 for a float64 weight) and cast once.

        Raises:
            ValueError: with `safe_merge`, when an update is not finite; the base weight is then unchanged.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.alpha]
        if not names:
            return
        weight = self._base_weight
        merged = weight.detach().to(_merge_dtype(weight), copy=True)
        for name in names:
            self._add_delta(merged, name, 1.0)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        weight.data = merged.to(weight.dtype)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Subtract the merged updates; the base weight returns to what it was, up to rounding in its dtype."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self._base_weight
        restored = weight.detach().to(_merge_dtype(weight), copy=True)
        while self.merged_adapters:
            self._add_delta(restored, self.merged_adapters.pop(), -1.0)
        weight.data = restored.to(weight.dtype)

    @torch.no_grad()
    def _add_delta(self, weight: Tensor, adapter: str, sign: float) -> Tensor:
        """Add an adapter's update, times `sign`, to `weight` in place, touching the rows of its parts only."""
        rows = torch.split(weight, list(self.parts.values()))
        for index, structure in self.structures(adapter):
            # The parameters may be half precision; a copy in the wider dtype keeps the dense matrix from rounding.
            dense = copy.deepcopy(structure).to(weight.dtype).dense()
            rows[index].add_(dense, alpha=sign * self.alpha[adapter])
        return weight

    def __repr__(self) -> str:
        return f"surm.{super().__repr__()}"


def _merge_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
