"""Text and vision backbones from transformers: weights of the hub or of a folder in its layout, under a new head."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging

from surm.models.backbone import Backbone, check_images, check_size, initialise_head, one_line
from surm.models.hub import HubFiles
from surm.models.output import check_language_model, replace_output_layer
from surm.shared.errors import ModelError, ModelNotFoundError

AUTO_CLASSES = {
    ("text", "labels"): AutoModelForSequenceClassification,
    ("text", "tokens"): AutoModelForCausalLM,
    ("image", "labels"): AutoModelForImageClassification,
}
MOST_BLOCKS = 1000  # a larger number is a slip, and building them would take all memory
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in PIL's numbering


def load(
    files: HubFiles, content_hash: str, *, num_labels: int, predicts: str | None = None, image_size: int | None = None
) -> Backbone:
    """The pretrained model with a new head, or its own output layer, and its tokenizer or image processor.

    predicts: one of `can_predict`; None is the first of them.

    Raises `ValueError`, one sentence, unless the weights hold every tensor of the model but its head.
    """
    folder = files.locate()
    config = files.read_config()
    kind, predicts = modality(config), predicts or can_predict(config)[0]
    with quiet(), torch.random.fork_rng(devices=[]):
        module, report = AUTO_CLASSES[kind, predicts].from_pretrained(
            folder,
            **({"num_labels": num_labels} if predicts == "labels" else {"use_cache": False}),
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # of the head, which may be another task's
            output_loading_info=True,
        )
    head = _head(module, predicts)
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if strangers := sorted(key for key in lacking if not key.startswith(tuple(f"{name}." for name in head))):
        raise ModelError(
            f"The weights of {files.name} are not those of the model: {len(strangers)} tensors are missing or of "
            f"another shape, such as {strangers[0]}."
        )
    if kind == "image":
        images = _preprocessing(folder, files, image_size)
        backbone = Backbone(module, head, kind, content_hash, input_name="pixel_values", **images)
        check_images(files.name, backbone)
    else:
        backbone = Backbone(module, head, kind, content_hash, tokenizer=_tokenizer(folder, files, module))
    initialise_head(module, head)
    if predicts == "tokens":
        replace_output_layer(module)
        check_language_model(module)
    return backbone


def skeleton(
    files: HubFiles, content_hash: str, *, num_labels: int, predicts: str | None = None, image_size: int | None = None
) -> Backbone:
    """The same model without weights and tokenizer, for the meta device."""
    config = files.read_config()
    kind, predicts = modality(config), predicts or can_predict(config)[0]
    module = build(config, num_labels, predicts)
    if predicts == "tokens":
        replace_output_layer(module)
    if kind == "text":
        return Backbone(module, _head(module, predicts), kind, content_hash)
    size = image_size or module.config.image_size
    return Backbone(module, _head(module, predicts), kind, content_hash, size, input_name="pixel_values")


def build(config: Mapping[str, Any], num_labels: int, predicts: str = "labels") -> Any:
    """A module of the shape that a config.json describes, with random weights."""
    described = model_config(config)
    if predicts == "labels":
        described.num_labels = num_labels
    try:
        return AUTO_CLASSES[modality(config), predicts].from_config(described)  # type: ignore[no-untyped-call]
    except Exception as error:  # of whatever the file says
        raise ModelError(
            f"transformers cannot build the {config['model_type']} that config.json describes: {one_line(error)}."
        ) from None


def facts(files: HubFiles) -> dict[str, Any]:
    """What `ModelEntry` holds of a model, without its weights."""
    config = files.read_config()
    kind, described = modality(config), model_config(config)
    try:
        width = described.hidden_size
    except AttributeError:
        raise ModelError(
            f"{files.name}: a {config['model_type']} has no single hidden_size; choose a model of one width."
        ) from None
    if kind == "text":
        return {"modality": kind, "width": width, "predicts": can_predict(config)}
    # transformers has no weights for another size; timm resamples the position embedding.
    return {"modality": kind, "width": width, "fixed_size": getattr(described, "image_size", None)}


def check(files: HubFiles) -> None:
    """Refuse, in one sentence, a folder whose files do not fit together, before its weights are read."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        backbone = skeleton(files, "none", num_labels=2)
    check_size(files.name, backbone.module, backbone.head, files.weight_elements())
    folder = files.locate()
    if backbone.modality == "text":
        _tokenizer(folder, files, backbone.module)
    else:
        check_images(files.name, replace(backbone, **_preprocessing(folder, files, None)))


def model_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """transformers' own view of a config.json, defaults filled in."""
    try:
        with quiet():
            described: PreTrainedConfig = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    except Exception as error:  # of whatever the file says
        raise ModelError(f"config.json describes no {config['model_type']}: {one_line(error)}.") from None
    for key, most in (("hidden_size", 2**20), ("num_attention_heads", 2**20), ("num_hidden_layers", MOST_BLOCKS)):
        value = getattr(described, key, 1)
        if isinstance(value, int) and not 1 <= value <= most:
            raise ModelError(f"{key}={value} in config.json is not between 1 and {most}: correct or fetch the file.")
    return described


def modality(config: Mapping[str, Any]) -> str:
    """`text` or `image`: which of the two a model of this config.json reads."""
    kind = str(config.get("model_type"))
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES or _is_causal(kind):
        return "text"
    if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image"
    raise ModelError(
        f"model_type={kind} in config.json: transformers classifies neither text nor images with it, and it is no "
        "causal language model."
    )


def can_predict(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model can be loaded to give: labels, where transformers has a classifier of it, and of text, tokens."""
    kind = str(config.get("model_type"))
    classifies = kind in {
        *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    return ("labels",) * classifies + ("tokens",) * _is_causal(kind)


def _is_causal(kind: str) -> bool:
    """Whether it predicts the next token; transformers builds such models of BERT's kind, too, trained to fill gaps."""
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers: that the classifier is new is what was asked for, and the bar is over before it is seen."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _head(module: Any, predicts: str) -> tuple[str, ...]:
    """What stands beside the body, which is transformers' base model or, in a few classes, the largest child.

    A language model's output layer is its own, and no head of a task.
    """
    if predicts == "tokens":
        return ()
    sizes = {name: sum(map(torch.numel, child.parameters())) for name, child in module.named_children()}
    body = module.base_model_prefix if module.base_model_prefix in sizes else max(sizes, key=sizes.__getitem__)
    return tuple(name for name, size in sizes.items() if size and name != body)


def _tokenizer(folder: Path, files: HubFiles, module: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; transformers makes one up, which knows no word, where there are no files of it."""
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            special = {*tokenizer.all_special_ids}
            words = [index for index in tokenizer.get_vocab().values() if index not in special]
    except Exception as error:  # of a damaged file; no common class
        raise ModelError(
            f"{files.name} has no tokenizer that can be read ({one_line(error)}): fetch tokenizer.json, or the "
            "vocabulary, beside the weights."
        ) from None
    if not words:
        raise ModelNotFoundError(
            f"{files.name} has no tokenizer that knows a word: fetch tokenizer.json, or the vocabulary, beside the "
            "weights."
        )
    embedded = getattr(module.config, "vocab_size", None)
    if isinstance(embedded, int) and sum(index >= embedded for index in words) > len(words) / 2:
        raise ModelError(
            f"The tokenizer of {files.name} knows {len(words)} tokens, but the model embeds {embedded}: give the "
            "files of one model."
        )
    if tokenizer.pad_token is None:  # models that generate text were trained without padding
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"The tokenizer of {files.name} has neither a padding nor an end token: name one in its files."
        )
    module.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _preprocessing(folder: Path, files: HubFiles, image_size: int | None) -> dict[str, Any]:
    """Size in pixels, mean, standard deviation, crop and interpolation, as the model's image processor says."""
    if not any((folder / f"{name}_config.json").is_file() for name in ("preprocessor", "processor")):
        raise ModelNotFoundError(f"{files.name} has no preprocessor_config.json: fetch it beside the weights.")
    read: Any = AutoImageProcessor.from_pretrained
    try:
        with quiet():
            return _stated(read(folder, local_files_only=True), image_size)
    except Exception as error:  # of whatever the file says
        raise ModelError(
            f"{folder / 'preprocessor_config.json'} does not say how images are prepared ({one_line(error)}): fetch it "
            "again."
        ) from None


def _stated(processor: Any, image_size: int | None) -> dict[str, Any]:
    resized: int = processor.size.get("shortest_edge") or processor.size["height"]
    cropped: int = processor.crop_size["height"] if getattr(processor, "do_center_crop", False) else resized
    return {
        "image_size": image_size or cropped,
        "mean": tuple(processor.image_mean),
        "std": tuple(processor.image_std),
        "crop": cropped / resized,
        "interpolation": INTERPOLATIONS[int(processor.resample)],
    }
