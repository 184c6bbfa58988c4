"""The adapter form: a matrix and an activation behind a module."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from surm.structures import Structure, build
from surm.structures.backends import product
from surm.structures.family import UPDATE_STD, Family
from surm.structures.hypercomplex import Hypercomplex
from surm.tuners.checks import ADAPTERS
from surm.tuners.config import SurmConfig
from surm.tuners.layer import SurmLayer, rows_of
from surm.tuners.offload import parameters_here

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
        result: Tensor = self.outer(self.dropout(self.activation(self.product(x))))
        return result

    def product(self, x: Tensor) -> Tensor:
        """What the inner matrix makes of X."""
        return cast(Tensor, self.inner(x))

    @property
    def dtype(self) -> torch.dtype:
        """Of the inner matrix."""
        return cast(nn.Linear, self.inner).weight.dtype


class Structured(Body):
    """act(S X) + b (paper section 5.2); parameters: those of the n x n matrix S, and n for b."""

    def __init__(self, width: int, config: SurmConfig) -> None:
        super().__init__(config)
        self.inner = structure = build(config.structure, width, width, **(config.structure_options or {}))
        self.backend = config.backend
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

    def product(self, x: Tensor) -> Tensor:
        return product(cast(Structure, self.inner), x, self.backend)

    @property
    def dtype(self) -> torch.dtype:
        return cast(Structure, self.inner).factors()[0].dtype


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
        size = _options(config)["size"]
        self.inner = nn.Linear(width, size, bias=config.adapter_bias)
        self.outer = nn.Linear(size, width, bias=config.adapter_bias)
        for parameter in self.outer.parameters():
            nn.init.zeros_(parameter) if config.init_weights else nn.init.normal_(parameter, std=UPDATE_STD)


class Compacter(Body):
    """up act(down X), both with a bias, of the matrices of `Hypercomplex` (Mahabadi et al. 2021).

    In all places of a model together, with k = size: for each 2 rank (n + k) + n + k parameters, and terms^3 in the
    A_i that all matrices share. `up` starts at zero.
    """

    def __init__(self, width: int, config: SurmConfig) -> None:
        super().__init__(config)
        options = _options(config)
        size = options.pop("size") or compacter_size(width, options["terms"])
        self.inner = Hypercomplex(size, width, **options)
        self.inner.reset_parameters(False)
        outer = Hypercomplex(width, size, **options)
        if not config.init_weights:
            outer.reset_parameters(False)
        bias = config.adapter_bias
        self.shift = Shift(size) if bias else nn.Identity()
        self.outer = nn.Sequential(outer, Shift(width) if bias else nn.Identity())

    def product(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.shift(self.inner(x)))

    @property
    def dtype(self) -> torch.dtype:
        return cast(Hypercomplex, self.inner).L.dtype


def compacter_size(width: int, terms: int) -> int:
    """A sixteenth of the width (the paper's reduction factor), rounded up to a multiple of the number of terms."""
    return -(-width // (16 * terms)) * terms


def _options(config: SurmConfig) -> dict[str, Any]:
    """All options of an adapter of `ADAPTERS`; what is None or not given takes its default."""
    given = {name: value for name, value in (config.structure_options or {}).items() if value is not None}
    return {name: option.default for name, option in ADAPTERS[config.structure].items()} | given


BODIES: dict[str, Callable[[int, SurmConfig], Body]] = {"bottleneck": Bottleneck, "compacter": Compacter}
"""By structure; of all others it is `Structured`."""


class SurmAdapter(nn.Module, SurmLayer):
    """X + sum over active adapters of what their bodies make of X, the output or the input of the wrapped module.

    Of a tuple or a ModelOutput of transformers, the first element is X. Around a linear layer, adapters without an
    activation are merged: W (X + S X + b) or (I + S) (W x + c) + b are linear layers too.
    """

    form = "adapter"

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: SurmConfig, features: int, like: Tensor | None
    ) -> None:
        super().__init__()
        SurmLayer.__init__(self, base_layer, ["adapter"])
        self.surm_adapter: nn.ModuleDict
        self.in_features = self.out_features = features
        # Empty, and moved and cast with the model: a dropout has no parameter that tells where its adapters belong.
        self.side = config.adapter_side
        self.near: Tensor | None
        self.register_buffer("near", None, persistent=False)
        # Weight and bias from before a merge, which follow the layer's casts and moves as any buffer.
        self.kept_weight: Tensor | None
        self.kept_bias: Tensor | None
        self.register_buffer("kept_weight", None, persistent=False)
        self.register_buffer("kept_bias", None, persistent=False)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, like)

    def update_layer(self, adapter_name: str, config: SurmConfig, like: Tensor | None) -> None:
        """Add an adapter, in the dtype and on the device of `like`, since the wrapped module may have no parameters.

        Raises:
            ValueError: one sentence, where the structure's options do not fit the layer's size, or the side is not that
                of the adapters before.
        """
        if config.adapter_side != self.side:
            raise ValueError(f"it has an adapter of adapter_side={self.side!r}, and takes one side: give that.")
        self.surm_adapter[adapter_name] = BODIES.get(config.structure, Structured)(self.in_features, config)
        self.near = None if like is None else like.detach().new_empty(0)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT calls this too, after it filled an adapter that was made without storage; its own reads a weight.
        if adapter_name not in self.surm_adapter or self.near is None:
            return
        body = self.surm_adapter[adapter_name]
        if not any(parameter.is_meta for parameter in body.parameters()):
            body.to(device or self.near.device, self.near.dtype)

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """The module's output with the active adapters, or with that of `adapter_names` for each row of X.

        Where adapters are merged, the module has them.

        Raises:
            ValueError: one sentence, where X has another width than the adapters, or not one row for each name.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.merged and args:
            self.check_rows(args[0], adapter_names)
        updated = not (self.disable_adapters or self.merged)
        if updated and self.side == "input":
            args = (self._adapted(args[0], adapter_names), *args[1:])
        result = self.base_layer(*args, **kwargs)
        if not updated or self.side == "input":
            return result
        if isinstance(result, Tensor):
            return self._adapted(result, adapter_names)
        if isinstance(result, Mapping):  # such as a ModelOutput, which is made anew, as its fields mirror its items
            key = next(iter(result))
            return type(result)(**{**result, key: self._adapted(result[key], adapter_names)})
        elements = (self._adapted(result[0], adapter_names), *result[1:])
        return type(result)(*elements) if hasattr(result, "_fields") else type(result)(elements)

    def _adapted(self, x: Tensor, adapter_names: list[str] | None) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"{type(self.get_base_layer()).__name__} has an output of shape {tuple(x.shape)} and adapters of width "
                f"{self.in_features}: give adapter_width={x.shape[-1]}."
            )
        result = x
        if adapter_names is None:
            for name in self.active_adapters:
                if name in self.surm_adapter:
                    result = result + self._added(name, x)
            return result.to(x.dtype)
        self.check_rows(x, adapter_names)
        for name, rows in rows_of(adapter_names):
            if name in self.surm_adapter:
                index = rows.to(x.device)
                own = x[index]
                # Not in place: the output of a dropout may be its input, which others still read.
                result = result.index_copy(0, index, (own + self._added(name, own)).to(x.dtype))
        return result

    def _added(self, adapter_name: str, x: Tensor) -> Tensor:
        body = cast(Body, self.surm_adapter[adapter_name])
        with parameters_here(body):
            added: Tensor = body(self._cast_input_dtype(x, body.dtype))
        return added

    def holders(self, adapter_name: str) -> Iterator[tuple[nn.Module, str]]:
        if adapter_name in self.surm_adapter:
            yield self.surm_adapter[adapter_name], "inner"

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the adapters of `adapter_names`, or the active ones, into the weight and the bias of the linear layer.

        The sums are formed in float32 (float64 of float64) and cast once. Weight and bias are kept until `unmerge`.

        Raises:
            ValueError: an adapter has an activation, or the layer is no plain linear one, or has no bias where the
                adapter has; with `safe_merge`, where what is merged is not finite. Nothing is then changed.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.surm_adapter]
        self.check_mergeable(names, safe_merge)
        if not names:
            return
        base = cast(nn.Linear, self.get_base_layer())
        weight, bias = self._merged([*self.merged_adapters, *names])
        if self.kept_weight is None:
            self.kept_weight = base.weight.detach().clone()
            self.kept_bias = None if base.bias is None else base.bias.detach().clone()
        self._set(base, weight, bias)
        self.merged_adapters.extend(names)

    def check_mergeable(self, names: Sequence[str], safe_merge: bool = False) -> None:
        """Raises ValueError, as `merge` does, where one of these adapters is here and cannot be merged."""
        new = [name for name in names if name in self.surm_adapter and name not in self.merged_adapters]
        for name in new:
            if obstacle := self.obstacle(name):
                raise ValueError(obstacle)
        if new and safe_merge:
            dtype = cast(nn.Linear, self.get_base_layer()).weight.dtype
            merged = self._merged([*self.merged_adapters, *new])
            if not all(tensor.to(dtype).isfinite().all() for tensor in merged if tensor is not None):
                raise ValueError(f"NaNs detected in the merged weights. The adapter {new[0]} seems to be broken")

    def obstacle(self, adapter: str) -> str | None:
        """What hinders merging an adapter, in one sentence, if anything does."""
        body, base = self.surm_adapter[adapter], self.get_base_layer()
        if not isinstance(body, Structured) or not isinstance(body.activation, nn.Identity):
            return CANNOT_MERGE
        if type(base) is not nn.Linear:
            return (
                f"form='adapter' cannot be merged into {type(base).__name__}, which is no plain linear layer: keep it, "
                "or adapt linear layers alone."
            )
        if base.bias is None and isinstance(body.outer, Shift):
            return (
                "an adapter with a bias cannot be merged into a linear layer without one: keep it, or train it with "
                "adapter_bias=False."
            )
        return None

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What merging an adapter adds to the weight, S W on outputs or W S on inputs, in float32 or float64.

        The bias changes too.
        """
        return self._merged([adapter])[0] - self._merged([])[0]

    @torch.no_grad()
    def _merged(self, names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the linear layer with these adapters and no others, in float32 or float64."""
        base = cast(nn.Linear, self.get_base_layer())
        weight, bias = (base.weight, base.bias) if self.kept_weight is None else (self.kept_weight, self.kept_bias)
        W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        c = None if bias is None else bias.detach().to(W.dtype)
        S, shift = W.new_zeros(self.in_features, self.in_features), W.new_zeros(self.in_features)
        for name in names:
            body = cast(Structured, self.surm_adapter[name])
            with parameters_here(body):
                S += cast(Structure, body.inner).dense(W.dtype).to(W.device)
                shift += body.outer.bias.to(W) if isinstance(body.outer, Shift) else 0
        if self.side == "input":
            return W + W @ S, None if c is None else c + W @ shift
        return W + S @ W, None if c is None else c + S @ c + shift

    def _set(self, base: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
        base.weight.data = weight.to(base.weight.dtype)
        if bias is not None:
            base.bias.data = bias.to(base.bias.dtype)

    def unmerge(self) -> None:
        """Give the linear layer its weight and bias back, bit for bit, where an adapter is merged."""
        if self.kept_weight is not None:
            self._set(cast(nn.Linear, self.get_base_layer()), self.kept_weight, self.kept_bias)
            self.kept_weight = self.kept_bias = None
            self.merged_adapters = []

    def __repr__(self) -> str:
        return f"surm.{super().__repr__()}"
