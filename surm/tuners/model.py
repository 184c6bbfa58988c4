"""The tuner that puts adapted layers into a model."""

import copy
import re
from itertools import chain
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from surm.structures import Structure
from surm.tuners.adapter import CANNOT_MERGE, SurmAdapter
from surm.tuners.config import BOTTLENECK, SurmConfig
from surm.tuners.layer import SurmLayer, SurmLinear
from surm.tuners.targets import SITES, adapter_sites, fused_parts, output_features, projection_names


class SurmModel(BaseTuner):
    """A model with structured matrices beside weights (paper section 4) or behind modules (section 5.2).

    `peft.get_peft_model` makes it.
    """

    prefix = "surm_"
    tuner_layer_cls = SurmLayer
    peft_config: dict[str, SurmConfig]  # type: ignore[assignment]

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: SurmConfig, model_config: dict[str, Any]
    ) -> SurmConfig:
        targets = peft_config.target_modules
        if peft_config.form == "weight" and targets is None:
            peft_config.target_modules = set(projection_names(self.model))
        elif peft_config.form == "adapter" and (targets is None or targets in SITES):
            sites = adapter_sites(self.model, targets or "houlsby", peft_config.adapter_position)
            blocks = peft_config.layers_to_transform
            if blocks is not None:  # PEFT looks at the index of a block only where a name is not given in full
                blocks = blocks if isinstance(blocks, list) else [blocks]
                sites = [site for site in sites if any(f".{block}." in f".{site}" for block in blocks)]
            peft_config.target_modules = set(sites)
        return peft_config

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: SurmConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        try:
            adapted = self._adapt(peft_config, adapter_name, target, current_key, parent)
        except ValueError as error:
            raise ValueError(f"Target module {current_key}: {error}") from None
        if adapted is target:
            return
        if adapter_name not in self.active_adapters:
            adapted.requires_grad_(False)
        self._replace_module(parent, target_name, adapted, target)

    def _adapt(
        self, config: SurmConfig, adapter_name: str, target: nn.Module, name: str, parent: nn.Module
    ) -> SurmLinear | SurmAdapter:
        """The target with one more adapter: itself, or a new layer around it."""
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(target, SurmLayer) and target.form != config.form:
            raise ValueError(
                f"it has an adapter of form={target.form!r}, and a module takes one form: adapt another one with "
                f"form={config.form!r}."
            )
        if config.form == "weight":
            if isinstance(target, SurmLinear):
                target.update_layer(adapter_name, config)
                return target
            if isinstance(base, nn.Linear):
                return SurmLinear(target, adapter_name, config, fused_parts(name, base))
            supported = "only torch.nn.Linear is"
        else:
            like = self._like(base, parent)
            if isinstance(target, SurmAdapter):
                target.update_layer(adapter_name, config, like)
                return target
            features = output_features(base, self.model, config.adapter_width)
            if features is not None:
                return SurmAdapter(target, adapter_name, config, features, like)
            supported = (
                "only linear layers, normalisations over the last dimension, LayerScale, Dropout and Identity are"
            )
        raise TypeError(f"Target module {name} of type {type(base).__name__} is not supported: {supported}.")

    def _like(self, base: nn.Module, parent: nn.Module) -> Tensor | None:
        """The floating-point parameter of the model that is nearest to a module, for device and dtype."""
        named = chain(*(module.named_parameters() for module in (base, parent, self.model)))
        return next((p for name, p in named if p.is_floating_point() and self.prefix not in name), None)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own looks for the child's weight, for a device; adapters know theirs, and may follow a dropout.
        if isinstance(new_module, SurmAdapter) or isinstance(child, SurmAdapter):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As in PEFT.

        Raises:
            ValueError: one of the adapters is of form "adapter"; nothing is then merged.
        """
        self._check_mergeable(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """As in PEFT.

        Raises:
            ValueError: one of the adapters is of form "adapter"; nothing is then merged.
        """
        self._check_mergeable(adapter_names)
        merged: nn.Module = super().merge_and_unload(progressbar, safe_merge, adapter_names)
        return merged

    def _check_mergeable(self, adapter_names: list[str] | None) -> None:
        names = self.active_adapters if adapter_names is None else adapter_names
        if any(name in self.peft_config and self.peft_config[name].form == "adapter" for name in names):
            raise ValueError(CANNOT_MERGE)

    def collapse(self, adapter_name: str | None = None) -> None:
        """Replace an adapter's structures, or the active adapters', by the same matrices with fewer stored numbers.

        A circulant needs one vector in place of the two it is trained with (paper section 5.2). Outputs stay equal up
        to rounding; an optimiser keeps the parameters from before, so that this comes after training.

        Raises:
            ValueError: no such adapter, or a structure without a shorter form; nothing is then changed.
        """
        names = self.active_adapters if adapter_name is None else [adapter_name]
        for name, structures in [(name, self._collapsed(name)) for name in names]:
            for holder, key, structure in structures:
                holder.register_module(key, structure)
            config = copy.copy(self.peft_config[name])
            config.structure_options = dict(structures[0][-1].options)
            self.peft_config[name] = config

    def _collapsed(self, adapter_name: str) -> list[tuple[nn.Module, str, Structure]]:
        """An adapter's structures, collapsed, with the places where they belong."""
        if adapter_name not in self.peft_config:
            raise ValueError(f"There is no adapter {adapter_name!r}: give one of {', '.join(self.peft_config)}.")
        if self.peft_config[adapter_name].structure == BOTTLENECK:
            raise ValueError("bottleneck cannot be collapsed: an activation stands between its two matrices.")
        layers = [module for module in self.model.modules() if isinstance(module, SurmLayer)]
        found = []
        for holder, key in (place for layer in layers for place in layer.places(adapter_name)):
            structure = holder.get_submodule(key)
            assert isinstance(structure, Structure)
            trained = any(parameter.requires_grad for parameter in structure.parameters())
            found.append((holder, key, structure.collapse().requires_grad_(trained)))
        return found

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the adapter's name right before the parameter's, which a sum of structures has further back.
        own = re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}\.", r"\1.", key)
        return own if own != key else super()._remove_adapter_name_from_key(key, adapter_name)
