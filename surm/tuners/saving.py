"""What PEFT's saving lacks for a method that is not its own: a line in the model card, and names in older versions.

PEFT < 0.21 stores no biases of the base model for such a method, and takes an adapter's name out of a key only where it
stands right before the last part, which it does not in surm_adapter.default.inner.r1.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

OLD_PEFT = not hasattr(BaseTuner, "_remove_adapter_name_from_key")

NOTE = (
    "This adapter is of the method SURM, which PEFT does not have by itself: install the package `surm` and "
    "`import surm` before loading the adapter as any other."
)


def note_import(directory: Path) -> None:
    """Put `NOTE` below the title of the model card that PEFT wrote, once.

    PEFT writes one card for all adapters of a model, into the folder of the adapter "default" or above the others'.
    """
    path = next((folder / "README.md" for folder in (directory, directory.parent) if _has_card(folder)), None)
    if path is None:
        return
    card = ModelCard.load(path)
    if NOTE in card.text:
        return
    lines = card.text.splitlines()
    title = next((index for index, line in enumerate(lines) if line.startswith("# ")), -1)
    card.text = "\n".join([*lines[: title + 1], "", NOTE, *lines[title + 1 :]])
    card.save(path)


def _has_card(directory: Path) -> bool:
    """Whether PEFT's card is here, and not the user's own README of a folder that a configuration is saved into."""
    path = directory / "README.md"
    return path.is_file() and ModelCard.load(path, ignore_metadata_errors=True).data.library_name == "peft"


def put_names_last(layer: nn.Module) -> None:
    """Call it surm_adapter.inner.default.r1 in the layer's state, and undo that on loading."""
    layer.register_state_dict_post_hook(_name_last)  # type: ignore[no-untyped-call]
    layer.register_load_state_dict_pre_hook(_name_first)  # type: ignore[no-untyped-call]


def _name_last(layer: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name, *rest = key.removeprefix(prefix).split(".")
        if _is_by_adapter(layer, name):
            state_dict[prefix + ".".join([name, *rest[1:-1], rest[0], rest[-1]])] = state_dict.pop(key)


def _name_first(layer: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name, *rest = key.removeprefix(prefix).split(".")
        # PEFT puts the name of the adapter that it fills in front itself.
        if _is_by_adapter(layer, name) and rest[0] not in getattr(layer, name):
            state_dict[prefix + ".".join([name, rest[-2], *rest[:-2], rest[-1]])] = state_dict.pop(key)


def _is_by_adapter(layer: nn.Module, name: str) -> bool:
    return name.startswith("surm_") and isinstance(getattr(layer, name, None), nn.ModuleDict)
