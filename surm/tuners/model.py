"""The tuner that puts adapted layers into a model."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer, onload_layer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from surm.tuners import trained
from surm.tuners.adapter import SurmAdapter
from surm.tuners.bases import SUPPORTED, keep_layout, weight_layer
from surm.tuners.bypass import watch
from surm.tuners.checks import SITES
from surm.tuners.config import SurmConfig
from surm.tuners.layer import SurmLayer, SurmLinear, SurmWeight
from surm.tuners.loading import Fresh, check_weights
from surm.tuners.mixed import pass_adapter_names
from surm.tuners.shared import SharingTuner, nearest_parameter
from surm.tuners.siblings import introduce
from surm.tuners.targets import adapter_sites, default_targets, fused_parts, input_features, output_features


class SurmModel(SharingTuner):
    """A model with structured matrices beside weights (paper section 4) or behind modules (section 5.2).

    `peft.get_peft_model` makes it.
    """

    prefix = "surm_"
    tuner_layer_cls = SurmLayer

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        super()._pre_injection_hook(model, config, adapter_name)
        keep_layout(model)
        self.fresh: dict[str, Fresh] = {}  # adapters whose weights are to be loaded next

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: SurmConfig, model_config: dict[str, Any]
    ) -> SurmConfig:
        targets = peft_config.target_modules
        if peft_config.form == "weight" and targets is None:
            peft_config.target_modules = default_targets(self.model)
        elif peft_config.form == "adapter" and (targets is None or targets in SITES):
            sites = adapter_sites(self.model, targets or "houlsby", peft_config.adapter_position)
            blocks = peft_config.layers_to_transform
            if blocks is not None:  # PEFT looks at the index of a block only where a name is not given in full
                blocks = blocks if isinstance(blocks, list) else [blocks]
                sites = [site for site in sites if any(f".{block}." in f".{site}" for block in blocks)]
            peft_config.target_modules = set(sites)
        return peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As in PEFT; where that fails, the model is afterwards as it was before.

        Raises:
            ValueError: an adapter has the name of a parameter, such as A, by which PEFT would not save the parameter.
        """
        adapted: set[Any] = {module for module in model.modules() if isinstance(module, SurmLayer)}
        flags = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            self._check_names()
        except Exception:
            self.delete_shared(adapter_name)
            for name, module in list(model.named_modules()):
                if isinstance(module, SurmLayer) and module not in adapted:
                    parent, _, child = name.rpartition(".")
                    setattr(model.get_submodule(parent), child, module.base_layer)
                elif isinstance(module, SurmLayer) and adapter_name not in module.active_adapters:
                    module.delete_adapter(adapter_name)
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)
            raise
        introduce(model, SurmLinear)
        new = (n for n, m in model.named_modules() if isinstance(m, SurmWeight) and m not in adapted)
        unwatch = watch(model, list(new))  # for layers that it bypasses, in its first forward pass
        if self.peft_config[adapter_name].was_read:
            layers = (layer for layer in model.modules() if isinstance(layer, SurmLayer))
            own = [holder.get_submodule(name) for layer in layers for holder, name in layer.holders(adapter_name)]
            self.fresh[adapter_name] = Fresh.of(flags, (p for one in own for p in one.parameters()), unwatch)

    def take_back(self, adapter_name: str, fresh: Fresh) -> None:
        """Take out an adapter whose weights were refused; without another one, the base model is what it was."""
        fresh.unwatch()
        if self.peft_config.keys() == {adapter_name}:
            _unwrap(self.model, lambda wrapper: True)
            del self.model.peft_config
        else:
            self.delete_adapter(adapter_name)
            _unwrap(self.model, _is_empty)
        for parameter, requires_grad in fresh.flags:
            parameter.requires_grad_(requires_grad)

    def _check_names(self) -> None:
        layers = [module for module in self.model.modules() if isinstance(module, SurmLayer)]
        dictionaries = [getattr(layer, name) for layer in layers for name in layer.adapter_layer_names]
        dictionaries.append(self.surm_shared)
        paths = [name.split(".")[1:] for one in dictionaries for name, _ in one.named_parameters()]
        taken = sorted(self.peft_config.keys() & set(chain(*paths)))
        if taken:
            raise ValueError(
                f"Adapter name {taken[0]!r} is also that of a parameter of a structure, which PEFT then does not save: "
                "give another name."
            )

    def attach_weights(self) -> None:
        """Let structures made from the weights that they update see these, after a load other than `load_state_dict`.

        For a model that was adapted on the device "meta" only; otherwise they have seen them.
        """
        for layer in self.model.modules():
            if isinstance(layer, SurmWeight):
                layer.attach_waiting()

    def _check_target_module_compatiblity(self, peft_config: PeftConfig, model: nn.Module, target_name: str) -> None:
        # What LoRA cannot adapt: layers whose weight a fused kernel reads without calling them, as in Mamba.
        super()._check_target_module_compatiblity(LoraConfig(), model, target_name)

    def _add_modules_to_save_to_tie(self, peft_config: PeftConfig, tied_weight_keys: list[str]) -> None:
        LoraModel._add_modules_to_save_to_tie(cast(LoraModel, self), cast(LoraConfig, peft_config), tied_weight_keys)

    def _add_targets_to_tie(self, peft_config: PeftConfig, tied_weight_keys: list[str]) -> None:
        raise ValueError(
            "ensure_weight_tying=True is not possible where an update is added to the tied embedding: name the "
            "embedding in modules_to_save, or leave ensure_weight_tying at False."
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        with pass_adapter_names(self, **kwargs):
            yield

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
        if peft_config.leaves_out(current_key):
            return
        config = peft_config.for_module(current_key)
        try:
            adapted = self._adapt(config, adapter_name, target, current_key, parent)
        except ValueError as error:
            raise ValueError(f"Target module {current_key}: {error}") from None
        if adapted is target:
            return
        if adapter_name not in self.active_adapters:
            adapted.requires_grad_(False)
        self._replace_module(parent, target_name, adapted, target)

    def _adapt(
        self, config: SurmConfig, adapter_name: str, target: nn.Module, name: str, parent: nn.Module
    ) -> SurmWeight | SurmAdapter:
        """The target with one more adapter: itself, or a new layer around it."""
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(target, SurmLayer) and target.form != config.form:
            raise ValueError(
                f"it has an adapter of form={target.form!r}, and a module takes one form: adapt another one with "
                f"form={config.form!r}."
            )
        _check_called(parent)
        adapted = (
            self._with_update(config, adapter_name, target, base, name)
            if config.form == "weight"
            else self._with_body(config, adapter_name, target, base, parent)
        )
        if adapted is None:
            supported = (
                SUPPORTED
                if config.form == "weight"
                else "linear layers, normalisations over the last dimension, LayerScale, Dropout and Identity"
            )
            raise TypeError(
                f"Target module {name} of type {type(base).__name__} is not supported: only {supported} are."
            )
        return adapted

    def _with_update(
        self, config: SurmConfig, adapter_name: str, target: nn.Module, base: nn.Module, name: str
    ) -> SurmWeight | None:
        parts = fused_parts(name, base, config, self.model)
        of_parts = self.peft_config[adapter_name].for_parts(name, list(parts))
        if isinstance(target, SurmWeight):
            if target.parts != (parts or {target.WHOLE: target.rows}):
                raise ValueError(
                    f"it is adapted in the parts {target.parts}, and the new adapter would divide it otherwise: give "
                    "both the same fused."
                )
            target.update_layer(adapter_name, config, of_parts)
            return target
        layer, backend = weight_layer(base, self.model)
        return None if layer is None else layer(target, adapter_name, config, parts, backend, of_parts)

    def _with_body(
        self, config: SurmConfig, adapter_name: str, target: nn.Module, base: nn.Module, parent: nn.Module
    ) -> SurmAdapter | None:
        like = nearest_parameter(base, parent, self.model)
        if isinstance(target, SurmAdapter):
            target.update_layer(adapter_name, config, like)
            return target
        if config.adapter_side == "input":
            features: int | None = input_features(base)
        else:
            features = output_features(base, self.model, config.adapter_width)
        return None if features is None else SurmAdapter(target, adapter_name, config, features, like)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own moves the new module to the child's device, which ours know; there may be no weight to tell it.
        setattr(parent, child_name, new_module)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As in PEFT; with `safe_merge` all layers are looked at before the first is changed.

        Raises:
            ValueError: one of the adapters is of form "adapter" with an activation, or not of plain linear layers, or,
                with `safe_merge`, one is not finite; nothing is then merged.
        """
        self._check_mergeable(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """As in PEFT; with `safe_merge` all layers are looked at before the first is changed.

        Raises:
            ValueError: one of the adapters is of form "adapter" with an activation, or not of plain linear layers, or,
                with `safe_merge`, one is not finite; nothing is then merged.
        """
        self._check_mergeable(adapter_names, safe_merge)
        merged: nn.Module = super().merge_and_unload(progressbar, safe_merge, adapter_names)
        return merged

    def _check_mergeable(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        names = self.active_adapters if adapter_names is None else adapter_names
        for layer in self.model.modules():
            if isinstance(layer, SurmWeight):
                layer.check_mergeable(names)
            if isinstance(layer, SurmAdapter):
                with onload_layer(layer):
                    layer.check_mergeable(names, safe_merge)
        for layer in self.model.modules() if safe_merge else ():
            if isinstance(layer, SurmWeight):
                new = [name for name in names if name in layer.alpha and name not in layer.merged_adapters]
                with onload_layer(layer):
                    layer.merged_weight(new, safe_merge=True)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "linear",
        **lora_options: Any,
    ) -> dict[str, float]:
        """Add the adapter with the updates sum_i weights[i] alpha_i S_i; it is frozen until it is set.

        Exact, up to rounding, where in a module all adapters have one structure with the same options: circulants and
        single Toeplitz matrices add up to one, of other structures the terms stand side by side. Else it is the nearest
        member of the first adapter's structure to the dense sum, with a warning.

        Args:
            adapters: names of adapters in weight form.
            weights: a factor for each.
            adapter_name: name of the new one.
            combination_type: "linear", "cat" or "svd", which are one here: the sum.
            lora_options: what LoRA's sums take further, such as `svd_rank`, is refused.

        Returns:
            By module, the error in Frobenius norm relative to the sum, 0 where it is exact.

        Raises:
            ValueError: an adapter does not exist, is of form "adapter" or has `modules_to_save`; the name is taken;
                there are not as many weights as adapters; an option of LoRA's that is not the sum. Nothing is then
                changed.
        """
        trained.check_sum_options(combination_type, lora_options)
        inject = partial(self.inject_adapter, self.model)
        return trained.add_weighted(self.model, self.peft_config, inject, adapters, weights, adapter_name)

    def collapse(self, adapter_name: str | None = None) -> None:
        """Replace an adapter's structures, or the active adapters', by the same matrices with fewer stored numbers.

        A circulant needs one vector in place of the two it is trained with (paper section 5.2). Outputs stay equal up
        to rounding; an optimiser keeps the parameters from before, so that this comes after training.

        Raises:
            ValueError: no such adapter, or a structure without a shorter form; nothing is then changed.
        """
        names = self.active_adapters if adapter_name is None else [adapter_name]
        trained.collapse(self.model, self.peft_config, names)

    def compact(self, adapter_name: str | None = None) -> None:
        """Take the components whose gate is zero out of the gated structures of an adapter, or of the active adapters.

        After an allocator's pruning (`surm.tuners.allocation`). Outputs stay what they are; a layer in weight form
        whose gates are all zero is left out. The configuration says so in `structure_pattern`, so that the adapter is
        saved and loaded as it is then; an optimiser keeps the parameters from before.

        Raises:
            ValueError: no such adapter, or one that is merged; nothing is then changed.
        """
        names = self.active_adapters if adapter_name is None else [adapter_name]
        trained.compact(self.model, self.peft_config, names)
        _unwrap(self.model, lambda wrapper: isinstance(wrapper, SurmWeight) and _is_empty(wrapper))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """As in PEFT, of weights that are those of the adapter.

        Raises:
            ValueError: they are of another structure or other layers than the configuration says, or not finite.
                Nothing is loaded, and an adapter that was made for them is taken out again.
        """
        remapped = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        kept = model.state_dict()
        names = {key for key in kept if cls._remove_adapter_name_from_key(key, adapter_name) != key}
        expected = {key: kept[key] for key in names if f".{cls.prefix}" in key}
        given = {key: tensor for key, tensor in remapped.items() if f".{cls.prefix}" in key}
        tuner = getattr(model, "base_model", None)
        fresh = tuner.fresh.pop(adapter_name, None) if isinstance(tuner, cls) else None
        try:
            check_weights(given, expected, adapter_name)
        except ValueError:
            if isinstance(tuner, cls) and fresh is not None and fresh.is_untouched():
                tuner.take_back(adapter_name, fresh)
            raise
        return remapped

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the adapter's name right before the parameter's, which a sum of structures has further back.
        own = re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}\.", r"\1.", key)
        return own if own != key else super()._remove_adapter_name_from_key(key, adapter_name)


def _unwrap(model: nn.Module, chosen: Callable[[Any], bool]) -> None:
    """Put the modules from before in their places: PEFT's `unload` would leave the copies of `modules_to_save`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, (SurmLayer, AuxiliaryTrainingWrapper)) and chosen(module):
            parent, _, child = name.rpartition(".")
            kept = module.base_layer if isinstance(module, SurmLayer) else module.original_module
            setattr(model.get_submodule(parent), child, kept)


def _is_empty(wrapper: Any) -> bool:
    if isinstance(wrapper, SurmLayer):
        return not any(len(getattr(wrapper, name)) for name in wrapper.adapter_layer_names)
    return not wrapper._adapters


def _check_called(parent: nn.Module) -> None:
    """Raises ValueError for a layer that `parent` does not call, but reads, so that an adapter would do nothing."""
    if isinstance(parent, nn.MultiheadAttention):
        raise ValueError(
            "MultiheadAttention reads the weight of this layer without calling it, so that an adapter would do "
            "nothing: leave it out with exclude_modules."
        )
    if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        raise ValueError(
            "TransformerEncoderLayer does not call this layer in eval mode, so that an adapter would do nothing: call "
            "torch.backends.mha.set_fastpath_enabled(False) first."
        )
