"""What the layers of a model share: the tuner that owns it."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from surm.structures.family import Family
from surm.structures.shared import SharingFamily, Site
from surm.tuners.config import SurmConfig
from surm.tuners.gate import add_gates, remove_gates
from surm.tuners.layer import SurmLayer
from surm.tuners.offload import call_device
from surm.tuners.saving import OLD_PEFT, put_names_last
from surm.tuners.targets import head_count, projection


class SharingTuner(BaseTuner):
    """A tuner that owns, for each adapter, the tensors that several of its layers read.

    They are made when all layers of the adapter are in the model, so that each knows its index among them. They are
    called `surm_shared.<adapter>.<number>.<parameter>`, with a number for each family and its options.
    """

    peft_config: dict[str, SurmConfig]  # type: ignore[assignment]
    surm_shared: nn.ModuleDict  # by adapter, lists of `SharedTensors`

    def __init__(
        self, model: nn.Module, peft_config: PeftConfig | dict[str, PeftConfig], *args: Any, **kwargs: Any
    ) -> None:
        # peft.inject_adapter_in_model, which keeps the layers and drops this, gives a configuration without a name.
        for kind in peft_config.structures() if isinstance(peft_config, SurmConfig) else ():
            if kind.shares:
                raise ValueError(
                    f"structure={kind.name!r} has tensors that belong to the PEFT model: adapt with "
                    "peft.get_peft_model, or load with PeftModel.from_pretrained."
                )
        super().__init__(model, peft_config, *args, **kwargs)

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.surm_shared = nn.ModuleDict()
        if OLD_PEFT:
            put_names_last(self)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        flags = [(parameter, parameter.requires_grad) for parameter in self.surm_shared.parameters()]
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for site, member in self._members(adapter_name):
            if member.needs_place:
                member.place(f"{site.layer}.{site.part}")
        self._add_shared(adapter_name, meta=kwargs.get("low_cpu_mem_usage", False))
        for parameter, requires_grad in flags:  # as PEFT does it for the layers' other adapters
            parameter.requires_grad_(requires_grad)

    def _add_shared(self, adapter_name: str, meta: bool) -> None:
        """Make the tensors that an adapter's layers share, one set for each family and its options."""
        config, groups = self.peft_config[adapter_name], dict[str, list[tuple[Site, SharingFamily]]]()
        for site, member in self._in_order(adapter_name, config):
            groups.setdefault(repr((member.name, member.options)), []).append((site, member))
        shared = nn.ModuleList()
        for group in groups.values():
            sites, members = [site for site, _ in group], [member for _, member in group]
            like = nearest_parameter(self.model.get_submodule(sites[0].layer), self.model)
            device, dtype = (None, None) if like is None else (like.device, like.dtype)
            device = torch.device("meta") if meta else device
            tensors = members[0].shared_tensors(sites, device=device, dtype=dtype, **members[0].options)
            if config.init_weights is not True:  # which is what making them does
                tensors.reset_parameters(config.init_weights)
            for index, member in enumerate(members):
                member.use(tensors, index)
            shared.append(tensors)
            if tensors.has_gate:
                layers: dict[str, Any] = {}  # the first of each block
                for site in sites:
                    layers.setdefault(site.block, self.model.get_submodule(site.layer))
                add_gates(self.model, adapter_name, layers, tensors)
        if len(shared):
            self.surm_shared[adapter_name] = shared
            self._train_shared(config.inference_mode)

    def _in_order(self, adapter_name: str, config: SurmConfig) -> list[tuple[Site, SharingFamily]]:
        """The adapter's structures that read shared tensors, in the order of their indices.

        That of the model's layers at first; a saved configuration keeps it, since a later version of the model may have
        them in another order.

        Raises:
            ValueError: the saved configuration is of other layers.
        """
        members = list(self._sharing(adapter_name))
        names = list(dict.fromkeys(f"{site.layer}.{site.part}" for site, _ in members))
        if not config.was_read or config.shared_order is None:
            config.shared_order = names or None
        elif differing := sorted(set(names).symmetric_difference(config.shared_order)):
            raise ValueError(
                f"The adapter {adapter_name!r} shares tensors among other layers than this model's: {differing[0]} is "
                f"in one of the two alone ({len(differing)} such): load it into the model that it was trained on."
            )
        index = {name: index for index, name in enumerate(config.shared_order or ())}
        return sorted(members, key=lambda member: index[f"{member[0].layer}.{member[0].part}"])

    def _sharing(self, adapter_name: str) -> Iterator[tuple[Site, SharingFamily]]:
        """The adapter's structures that read shared tensors, in the order of the model's layers."""
        return ((site, member) for site, member in self._members(adapter_name) if isinstance(member, SharingFamily))

    def _members(self, adapter_name: str) -> Iterator[tuple[Site, Family]]:
        """The adapter's structures, sums by their parts, in the order of the model's layers."""
        for name, layer in self.model.named_modules():
            for dictionary in layer.adapter_layer_names if isinstance(layer, SurmLayer) else ():
                by_adapter = getattr(layer, dictionary)
                for member in by_adapter[adapter_name].modules() if adapter_name in by_adapter else ():
                    if isinstance(member, Family):
                        yield site(self.model, name, dictionary.removeprefix(self.prefix), member), member

    def delete_shared(self, adapter_name: str) -> None:
        """Delete what an adapter's layers share, if they share anything."""
        remove_gates(self.model, adapter_name)
        if adapter_name in self.surm_shared:
            del self.surm_shared[adapter_name]

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:  # type: ignore[override]
        super()._unload_and_optionally_merge(*args, **kwargs)
        model: nn.Module = self.model
        remove_gates(model)
        return model

    # PEFT looks for tensors to train, cast and delete in layers; the shared ones follow here.

    def _train_shared(self, inference_mode: bool = False) -> None:
        for name, tensors in self.surm_shared.items():
            tensors.requires_grad_(name in self.active_adapters and not inference_mode)

    def set_adapter(self, adapter_name: str | list[str], *args: Any, **kwargs: Any) -> None:
        super().set_adapter(adapter_name, *args, **kwargs)
        self._train_shared(*args, **kwargs)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.surm_shared:
                self.surm_shared[name].requires_grad_(requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        self._train_shared(inference_mode=not enabled)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.delete_shared(adapter_name)
        self._train_shared()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for parameter in self.surm_shared[adapter_name].parameters() if adapter_name in self.surm_shared else ():
            if autocast_adapter_dtype and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()


def site(model: nn.Module, layer: str, part: str, member: Family) -> Site:
    """Where a member of a model's layer is."""
    numbered = re.match(r"(?:.*\.)?\d+(?=\.|$)", layer)
    block = numbered[0] if numbered else ""
    return Site(layer, part, member.m, member.n, block, projection(model, layer, part), head_count(model, layer))


def nearest_parameter(*modules: nn.Module) -> Tensor | None:
    """The first floating-point parameter of the base model in these modules, for device and dtype.

    Of a parameter that accelerate keeps elsewhere, an empty tensor where it computes.
    """
    for name, module in chain(*(module.named_modules() for module in modules)):
        for parameter in module.parameters(recurse=False) if "surm_" not in name else ():
            if parameter.is_floating_point():
                device = call_device(module)
                return parameter if device is None else torch.empty(0, dtype=parameter.dtype, device=device)
    return None
