"""What PEFT < 0.21 stores: the place of an adapter's name in a layer's keys.

Those versions store no biases of the base model for a method that is not their own, and take the name out of a key only
where it stands right before the last part, which it does not in surm_adapter.default.inner.r1.
"""

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

OLD_PEFT = not hasattr(BaseTuner, "_remove_adapter_name_from_key")


def put_names_last(layer: nn.Module) -> None:
    """Call it surm_adapter.inner.default.r1 in the layer's state, and undo that on loading."""
    layer.register_state_dict_post_hook(_name_last)  # type: ignore[no-untyped-call]
    layer.register_load_state_dict_pre_hook(_name_first)  # type: ignore[no-untyped-call]


def _name_last(layer: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name, *rest = key.removeprefix(prefix).split(".")
        if name in layer.adapter_layer_names:
            state_dict[prefix + ".".join([name, *rest[1:-1], rest[0], rest[-1]])] = state_dict.pop(key)


def _name_first(layer: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name, *rest = key.removeprefix(prefix).split(".")
        # PEFT puts the name of the adapter that it fills in front itself.
        if name in layer.adapter_layer_names and rest[0] not in getattr(layer, name):
            state_dict[prefix + ".".join([name, rest[-2], *rest[:-2], rest[-1]])] = state_dict.pop(key)
