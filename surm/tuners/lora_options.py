"""What `LoraConfig` takes and `SurmConfig` does not, with what to give in its place."""

import dataclasses
import functools
from typing import Any, TypeVar

from peft import LoraConfig

INSTEAD = {
    "r": "give the size in structure_options, such as {'terms': 4}, or structure='low_rank' with {'rank': 8}",
    "lora_alpha": "give alpha, the factor itself, which LoRA has as lora_alpha / r",
    "lora_dropout": "give dropout",
    "lora_bias": "give bias='surm_only' to train the biases of the adapted layers",
    "init_lora_weights": "give init_weights",
    "rank_pattern": "give structure_pattern",
    "use_rslora": "give alpha, the factor itself",
    "fan_in_fan_out": "leave it out, as the layer tells how its weight is stored",
    "target_parameters": "name linear layers in target_modules",
    "loftq_config": "leave it out: a quantised model is adapted as it is",
}
OTHERWISE = "leave it out, or use LoraConfig"

Config = TypeVar("Config")


def refuses_lora_options(config: type[Config]) -> type[Config]:
    """Let a configuration's `__init__` say in one sentence what takes the place of an option of LoRA's.

    Other unknown names keep Python's own TypeError, by which PEFT knows configurations of a newer version.
    """
    init = config.__init__
    own = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    refused = {field.name for field in dataclasses.fields(LoraConfig)} | INSTEAD.keys()

    @functools.wraps(init)
    def checked(self: Config, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name in refused - own:
                raise TypeError(
                    f"{name}={kwargs[name]!r} is an option of LoRA that SURM does not have: "
                    f"{INSTEAD.get(name, OTHERWISE)}."
                )
        init(self, *args, **kwargs)

    config.__init__ = checked  # type: ignore[method-assign,assignment]
    return config
