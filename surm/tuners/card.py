"""The line of a saved adapter's model card that says how to load it."""

from pathlib import Path

from huggingface_hub import ModelCard

NOTE = (
    "This adapter is of the method SURM, which PEFT does not have by itself: install the package `surm` and "
    "`import surm` before loading the adapter as any other."
)


def note_import(directory: Path) -> None:
    """Put `NOTE` below the title of the model card that PEFT wrote, once.

    PEFT writes one card for all adapters of a model, into the folder of the adapter "default" or above the others'.
    """
    path = next((place / "README.md" for place in (directory, directory.parent) if _has_card(place)), None)
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
