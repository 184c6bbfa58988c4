"""The adapted layers: what those of both forms share, what all layers of the weight form share, and the linear one."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from surm.structures import Structure, build
from surm.structures.autocast import autocasts
from surm.structures.backends import choose, product, transformed, updates
from surm.structures.ops import updated_linear
from surm.structures.plan import Update
from surm.tuners.config import SurmConfig
from surm.tuners.merging import Merging
from surm.tuners.offload import call_device, parameters_here
from surm.tuners.saving import OLD_PEFT, put_names_last
from surm.tuners.siblings import Chosen, Siblings

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BASE_MODEL = "__base__"  # PEFT's name, in `adapter_names`, for a row without an adapter


def rows_of(adapter_names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Each adapter with the indices of its rows, in the order of their first; rows of the base model are left out."""
    for adapter in dict.fromkeys(adapter_names):
        if adapter != BASE_MODEL:
            yield adapter, torch.tensor([row for row, name in enumerate(adapter_names) if name == adapter])


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
        self.cast_input_dtype_enabled = True  # `peft.helpers.disable_input_dtype_casting` sets it
        self.merged_adapters: list[str] = []
        if OLD_PEFT:
            put_names_last(cast(nn.Module, self))

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        device = device or call_device(self.get_base_layer())
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)

    @abstractmethod
    def holders(self, adapter_name: str) -> Iterator[tuple[nn.Module, str]]:
        """The modules that hold the adapter's structures, each with the name of one in it."""

    def check_rows(self, x: Tensor, adapter_names: Sequence[str] | None) -> None:
        """Refuse an adapter for each row of x where that is not possible.

        Raises:
            ValueError: there are not as many names as rows, or an adapter is merged.
        """
        if adapter_names is None:
            return
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )


class SurmWeight(nn.Module, SurmLayer, Merging):
    """A layer with the weight W + sum over active adapters of alpha S (paper section 4).

    A fused projection has a matrix S for each of its parts, any other layer is one part. Each kind of base layer has a
    subclass, which says of which size S is, how it acts, and where it stands in the layer's weight.
    """

    form = "weight"
    WHOLE = "update"  # name of the part of a layer that is not fused

    other_param_names = ("alpha", "surm_dropout", "keeps_weight", "backend")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: SurmConfig,
        parts: Mapping[str, int],
        backend: Any = None,
        of_parts: Mapping[str, SurmConfig | None] | None = None,
    ) -> None:
        """Wrap `base_layer`.

        Args:
            base_layer: a layer of the kind, or one that is adapted already by another method.
            adapter_name: name of the first adapter.
            config: its configuration.
            parts: name and size of each part of the output in order, nothing for a whole.
            backend: PEFT's `QuantizationBackend` of a quantised layer.
            of_parts: as in `update_layer`.
        """
        super().__init__()
        base = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        self.rows, self.columns = self.sizes(base)
        self.parts = dict(parts) or {self.WHOLE: self.rows}
        SurmLayer.__init__(self, base_layer, self.parts)
        self.surm_dropout = nn.ModuleDict()
        self.alpha: dict[str, float] = {}
        self.keeps_weight: dict[str, bool] = {}
        self.backend: dict[str, str] = {}
        self.waiting: list[str] = []  # adapters whose structures have not seen the weight that they need
        self.quantization_backend = backend
        # The weight from before the merge, which follows the layer's casts and moves as any buffer.
        self.register_buffer("kept_weight", None, persistent=False)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, of_parts)

    @property
    def in_features(self) -> int:
        return self.columns

    @property
    def out_features(self) -> int:
        return self.rows

    @classmethod
    @abstractmethod
    def sizes(cls, base: Any) -> tuple[int, int]:
        """Rows and columns of S for a base layer, from its sizes: a quantised weight may be packed."""

    @abstractmethod
    def product(self, structure: Structure, x: Tensor, backend: str) -> Tensor:
        """What S makes of the layer's input x."""

    def update_layer(
        self, adapter_name: str, config: SurmConfig, of_parts: Mapping[str, SurmConfig | None] | None = None
    ) -> None:
        """Add an adapter.

        Args:
            adapter_name: its name.
            config: its configuration.
            of_parts: by name of a part, what says its structure in place of `config`; None: it has none.

        Raises:
            ValueError: one sentence, where the structure's options do not fit the layer's sizes.
        """
        # A selection of parts is about layers that have them.
        chosen = [part for part in self.parts if part in (config.fused_parts or ())] or list(self.parts)
        for part in chosen:
            own = (of_parts or {}).get(part, config)
            if own is None:
                continue
            structure = build(own.structure, self.parts[part], self.columns, **(own.structure_options or {}))
            if config.init_weights is not True:  # which is what building does
                structure.reset_parameters(config.init_weights)
            getattr(self, f"surm_{part}")[adapter_name] = structure
        self.surm_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.alpha[adapter_name] = config.alpha
        self.keeps_weight[adapter_name] = config.keep_base_weight
        self.backend[adapter_name] = config.backend
        self._move_adapter_to_device_of_base_layer(adapter_name)
        if any(structure.needs_weight for _, structure in self.structures(adapter_name)):
            self.waiting.append(adapter_name)
            self.attach_waiting()
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def attach_waiting(self) -> None:
        """Show structures the base weight, where they wait for it and it is there; else when it was loaded."""
        if self.waiting and self.attach_weight(self.waiting):
            self.waiting = []
        elif self.waiting and not self._load_state_dict_post_hooks:
            self.register_load_state_dict_post_hook(_attach_loaded)  # type: ignore[no-untyped-call]

    def structures(self, adapter_name: str) -> Iterator[tuple[int, Structure]]:
        """The adapter's structures, each with the index of the part that it updates."""
        for index, name in enumerate(self.adapter_layer_names):
            by_adapter = getattr(self, name)
            if adapter_name in by_adapter:
                yield index, by_adapter[adapter_name]

    def holders(self, adapter_name: str) -> Iterator[tuple[nn.Module, str]]:
        for name in self.adapter_layer_names:
            if adapter_name in getattr(self, name):
                yield getattr(self, name), adapter_name

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        self.check_rows(x, adapter_names)
        if self.disable_adapters and self.merged:
            self.unmerge()
        updated = not (self.disable_adapters or self.merged)
        direct = self._direct(x) if updated and adapter_names is None else None
        weight = self.frozen_weight(x) if direct and not (args or kwargs) else None
        if direct and weight is not None and not torch.compiler.is_compiling():
            y = self._by_siblings(x, direct)
            if y is not None:
                return y
        if direct and weight is not None and (y := self._updated(direct, x, weight, None)) is not None:
            return y
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if not updated:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        if direct and weight is None and (y := self._updated(direct, x, None, result)) is not None:
            return y
        outputs = self._divided(result)
        if adapter_names is None:
            for adapter in self.active_adapters:
                for index, update in self._updates(adapter, x):
                    outputs[index] = torch.add(outputs[index], update, alpha=self.alpha[adapter])
        else:
            for adapter, rows in rows_of(adapter_names):
                rows = rows.to(x.device)
                for index, update in self._updates(adapter, x[rows]):
                    outputs[index] = outputs[index].index_add(0, rows, update.to(result), alpha=self.alpha[adapter])
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)).to(result.dtype)

    def _direct(self, x: Tensor) -> list[tuple[str, int, Structure]]:
        """The structures of active adapters, with their adapter and part, if one function of autograd may add them."""
        return []

    def frozen_weight(self, x: Tensor) -> Tensor | None:
        """The weight (rows, columns), where the base layer is nothing but a product of it with x, and it is frozen."""
        return None

    def _by_siblings(self, x: Tensor, chosen: Chosen) -> Tensor | None:
        """The output, where another layer that reads x has computed it or this one computes theirs, too."""
        return None

    def _updated(
        self, chosen: Sequence[tuple[str, int, Structure]], x: Tensor, weight: Tensor | None, base: Tensor | None
    ) -> Tensor | None:
        """The output, from the weight or from the base layer's; None where the structures' own products cost less."""
        dtype = torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype
        if base is not None and (base.dtype != dtype or base.shape != (*x.shape[:-1], self.rows)):
            return None
        # In half precision the sum with W would round most of the update away.
        exact = weight is not None and dtype in (torch.float32, torch.float64)
        backends = frozenset(self.backend[name] for name, _, _ in chosen)
        choice = choose([item for _, _, item in chosen], x, dtype, exact=exact, backends=backends)
        if choice.fft:
            return None
        ways, starts = list(choice.ways), [0, *accumulate(self.parts.values())]
        listed: list[Update] = []
        for name, index, structure in chosen:
            own = updates(structure, x, slice(starts[index], starts[index + 1]), self.alpha[name], ways)
            ways = ways[len(own) :]
            listed += own
        bias: Tensor | None = None if weight is None else cast(nn.Linear, self.base_layer).bias
        if weight is not None and weight.dtype != dtype:
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return updated_linear(x, weight, bias, self.rows, listed, together=choice.together, base=base, dtype=dtype)

    def _divided(self, output: Tensor) -> list[Tensor]:
        """The output by parts; a layer that is not fused has its features in any dimension."""
        return [output] if len(self.parts) == 1 else list(torch.split(output, list(self.parts.values()), dim=-1))

    def _updates(self, adapter: str, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What an adapter makes of x, without alpha, with the index of the part."""
        if adapter in self.alpha:
            dropped = self.surm_dropout[adapter](x) if x.is_floating_point() else x
            for index, structure in self.structures(adapter):
                with parameters_here(structure):
                    update = self.product(structure, dropped, self.backend[adapter])
                yield index, update

    def __repr__(self) -> str:
        return f"surm.{super().__repr__()}"


def _attach_loaded(layer: nn.Module, incompatible_keys: Any) -> None:
    cast(SurmWeight, layer).attach_waiting()


def _is_plain(base: nn.Module) -> bool:
    """Whether nothing else acts when the layer is called: no hook, and no `forward` of the instance's own."""
    hooks = (base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks)
    return "forward" not in vars(base) and not any(hooks)


class SurmLinear(SurmWeight):
    """W x + b + sum over active adapters of alpha S x, also around a quantised W."""

    kind: ClassVar[type[nn.Module]] = nn.Linear  # the class whose forward is W x + b
    siblings: Siblings | None = None

    @classmethod
    def sizes(cls, base: Any) -> tuple[int, int]:
        return base.out_features, base.in_features

    def product(self, structure: Structure, x: Tensor, backend: str) -> Tensor:
        return product(structure, x, backend)

    def _direct(self, x: Tensor) -> list[tuple[str, int, Structure]]:
        chosen = [(name, *item) for name in self.active_adapters for item in self.structures(name)]
        if transformed() or not x.is_floating_point() or x.shape[-1:] != (self.columns,):  # else the base layer says so
            return []
        for name, _, structure in chosen:
            if self.backend[name] == "fft" or (self.training and isinstance(self.surm_dropout[name], nn.Dropout)):
                return []
            if structure.factors()[0].is_meta:  # accelerate keeps it elsewhere, and brings it for `parameters_here`
                return []
        return chosen

    def frozen_weight(self, x: Tensor) -> Tensor | None:
        base: Any = self.base_layer
        if type(base).forward is not self.kind.forward or not _is_plain(base):
            return None
        weight = base.weight
        # A sharded or packed weight has another shape or type.
        whole = type(weight) in (nn.Parameter, Tensor) and weight.shape == self.weight_shape
        fits = x.dtype == weight.dtype or (autocasts(x) and weight.dtype in FLOATS)
        trained = weight.requires_grad and torch.is_grad_enabled()
        return self.as_matrix(weight) if whole and fits and not trained else None

    def frozen_parts(self, x: Tensor) -> tuple[list[tuple[str, int, Structure]], Tensor] | None:
        """The structures that act on x, and the weight, if the layer is nothing but a product with their sum."""
        if self.disable_adapters or self.merged or self.quantization_backend is not None or not _is_plain(self):
            return None
        direct = self._direct(x)
        weight = self.frozen_weight(x) if direct else None
        return None if weight is None else (direct, weight)

    def _by_siblings(self, x: Tensor, chosen: Chosen) -> Tensor | None:
        return None if self.siblings is None else self.siblings.output(self, x, chosen)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return not any(structure.options.get("gate") for _, structure in self.structures(adapter_name))
