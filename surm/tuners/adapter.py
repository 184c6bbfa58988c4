"""The adapter form: a matrix and an activation behind a module."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from surm.structures import build
from surm.structures.family import UPDATE_STD, Family
from surm.tuners.config import BOTTLENECK, BOTTLENECK_SIZE, SurmConfig
from surm.tuners.layer import SurmLayer

ACTIVATIONS = {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "identity": nn.Identity}

AUTHORS_STD = 0.02  # of every random factor in the authors' adapters

CANNOT_MERGE = (
    "form='adapter' cannot be merged, as its activation leaves no weight that it could be added to: keep it, shorten "
    "it with collapse(), or take it off with unload()."
)


class Body(nn.Module):
    """What an adapter adds to a module's output X: outer(dropout(activation(inner X))), (..., n) -> (..., n)."""

    inner: nn.Module
    outer: nn.Module

    def __init__(self, config: SurmConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.adapter_activation]()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.outer(self.dropout(self.activation(self.inner(x))))
        return result


class Structured(Body):
    """act(S X) + b (paper section 5.2); parameters: those of the n x n matrix S, and n for b."""

    def __init__(self, width: int, config: SurmConfig) -> None:
        super().__init__(config)
        self.inner = structure = build(config.structure, width, width, **(config.structure_options or {}))
        self.outer = Shift(width) if config.adapter_bias else nn.Identity()
        if config.init_weights == "authors":
            for family in structure.modules():
                if isinstance(family, Family):
                    for factor in list(family.parameters())[1:]:
                        nn.init.normal_(factor, std=AUTHORS_STD)
        elif not config.init_weights:
            structure.reset_parameters(False)
            for bias in self.outer.parameters():
                nn.init.normal_(bias, std=UPDATE_STD)


class Shift(nn.Module):
    """X + b, with b zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Bottleneck(Body):
    """up act(down X), both with a bias (Houlsby et al. 2019; paper section 5.2): 2 n size + n + size parameters.

    `up` starts at zero, `down` as any linear layer.
    """

    def __init__(self, width: int, config: SurmConfig) -> None:
        super().__init__(config)
        size = (config.structure_options or {}).get("size", BOTTLENECK_SIZE)
        self.inner = nn.Linear(width, size, bias=config.adapter_bias)
        self.outer = nn.Linear(size, width, bias=config.adapter_bias)
        for parameter in self.outer.parameters():
            nn.init.zeros_(parameter) if config.init_weights else nn.init.normal_(parameter, std=UPDATE_STD)


class SurmAdapter(nn.Module, SurmLayer):
    """X + sum over active adapters of what their bodies make of X, the output of the wrapped module.

    Of a tuple, the first element is X.
    """

    form = "adapter"

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: SurmConfig, features: int, like: Tensor | None
    ) -> None:
        super().__init__()
        SurmLayer.__init__(self, base_layer, ["adapter"])
        self.surm_adapter: nn.ModuleDict
        self.features = features
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, like)

    def update_layer(self, adapter_name: str, config: SurmConfig, like: Tensor | None) -> None:
        """Add an adapter, in the dtype and on the device of `like`, since the wrapped module may have no parameters.

        Raises:
            ValueError: one sentence, where the structure's options do not fit the layer's size.
        """
        body = (Bottleneck if config.structure == BOTTLENECK else Structured)(self.features, config)
        if like is not None and not any(parameter.is_meta for parameter in body.parameters()):
            body = body.to(like.device, like.dtype)
        self.surm_adapter[adapter_name] = body
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return result
        x, *others = result if isinstance(result, tuple) else (result,)
        output = x
        for adapter in self.active_adapters:
            if adapter in self.surm_adapter:
                body = self.surm_adapter[adapter]
                output = output + body(self._cast_input_dtype(x, next(body.parameters()).dtype))
        output = output.to(x.dtype)
        return (output, *others) if isinstance(result, tuple) else output

    def places(self, adapter_name: str) -> Iterator[tuple[nn.Module, str]]:
        if adapter_name in self.surm_adapter:
            yield self.surm_adapter[adapter_name], "inner"

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge an adapter of this layer; others pass, since they are in other layers.

        Raises:
            ValueError: always, where one of `adapter_names`, or of the active adapters, is this layer's.
        """
        names = self.active_adapters if adapter_names is None else adapter_names
        if any(name in self.surm_adapter for name in names):
            raise ValueError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Nothing is ever merged here."""

    def __repr__(self) -> str:
        return f"surm.{super().__repr__()}"
