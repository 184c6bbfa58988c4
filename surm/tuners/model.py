"""The tuner that puts adapted layers into a model."""

import re
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from surm.tuners.config import SurmConfig
from surm.tuners.layer import SurmLayer, SurmLinear
from surm.tuners.targets import fused_parts, projection_names


class SurmModel(BaseTuner):
    """A model whose targeted layers have structured updates (paper section 4); `peft.get_peft_model` makes it."""

    prefix = "surm_"
    tuner_layer_cls = SurmLayer

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: SurmConfig, model_config: dict[str, Any]
    ) -> SurmConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = set(projection_names(self.model))
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
            if isinstance(target, SurmLayer):
                target.update_layer(adapter_name, peft_config)
                return
            adapted = self._adapt(peft_config, adapter_name, target, current_key)
        except ValueError as error:
            raise ValueError(f"Target module {current_key}: {error}") from None
        if adapter_name not in self.active_adapters:
            adapted.requires_grad_(False)
        self._replace_module(parent, target_name, adapted, target)

    @staticmethod
    def _adapt(config: SurmConfig, adapter_name: str, target: nn.Module, name: str) -> SurmLinear:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear):
            raise TypeError(
                f"Target module {name} of type {type(base).__name__} is not supported: only torch.nn.Linear is."
            )
        return SurmLinear(target, adapter_name, config, fused_parts(name, base))

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the adapter's name right before the parameter's, which a sum of structures has further back.
        own = re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}\.", r"\1.", key)
        return own if own != key else super()._remove_adapter_name_from_key(key, adapter_name)
