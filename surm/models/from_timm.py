"""Vision backbones from timm: weights of the hub or of a folder in timm's layout, under a new head."""

import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config

from surm.models.backbone import Backbone, check_images, check_size, initialise_head, one_line
from surm.models.hub import HubFiles
from surm.shared.errors import ModelError
from surm.shared.registry import nearest

MOST_BLOCKS = 1000  # a larger number is a slip, and building them would take all memory


def load(files: HubFiles, content_hash: str, *, num_labels: int, image_size: int | None = None) -> Backbone:
    """The pretrained model with a new head; its position embedding is resampled to `image_size` pixels.

    Raises `ValueError`, one sentence, unless the weights are exactly those of the model without its head.
    """
    with torch.random.fork_rng(devices=[]):
        module = build(f"local-dir:{files.locate()}", files, image_size)
        _load_weights(module, files)
        module.reset_classifier(num_labels)
    backbone = _backbone(module, content_hash, image_size)
    check_images(files.name, backbone)
    initialise_head(module, backbone.head)
    return backbone


def skeleton(files: HubFiles, content_hash: str, *, num_labels: int, image_size: int | None = None) -> Backbone:
    """The same model without weights, for the meta device."""
    name = f"local-dir:{files.locate()}" if files.path else files.read_config()["architecture"]
    module = build(name, files, image_size)
    module.reset_classifier(num_labels)
    return _backbone(module, content_hash, image_size)


def repository(name: str) -> str | None:
    """The hub's repository of timm's model `name`, with or without the tag of its weights; None where timm has none.

    Raises `ValueError`, one sentence, for a name that timm does not have.
    """
    if not timm.is_model(name):
        close = nearest(name, timm.list_models())
        raise ModelError(f"model.name={name}: timm has no such model{f'; did you mean {close}?' if close else '.'}")
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
        raise ModelError(f"model.name={name}: timm has no such weights; choose one of {', '.join(tags)}.") from None
    return found.hf_hub_id if found else None


def facts(files: HubFiles) -> dict[str, Any]:
    """What `ModelEntry` holds of a model, without its weights."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        module = skeleton(files, "none", num_labels=0).module
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    return {"modality": "image", "width": module.num_features, "patch": patch[0] if patch else None}


def check(files: HubFiles) -> None:
    """Refuse, in one sentence, a folder whose config.json cannot be built or does not fit its weights."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        backbone = skeleton(files, "none", num_labels=2)
    check_images(files.name, backbone)
    check_size(files.name, backbone.module, backbone.head, files.weight_elements())


def build(name: str, files: HubFiles, image_size: int | None = None) -> Any:
    """timm's module `name` without a head, at `image_size` pixels, with random weights."""
    options = dict(files.config.get("model_args", {}))
    try:
        if files.path is not None:
            _check_depth(files.read_config())
        if image_size is not None:
            with torch.device("meta"):
                model: Any = timm.create_model(name, num_classes=0)
            options |= {"img_size": image_size} if model.pretrained_cfg["fixed_input_size"] else {}
        return timm.create_model(name, num_classes=0, **options)
    except Exception as error:  # of whatever config.json says
        raise ModelError(f"timm cannot build {name.removeprefix('local-dir:')}: {one_line(error)}.") from None


def _check_depth(config: Mapping[str, Any]) -> None:
    depth = (config.get("model_args") or {}).get("depth", 0)
    if depth > MOST_BLOCKS:
        raise ValueError(f"its config.json says depth={depth}, more than {MOST_BLOCKS}")


def _load_weights(module: Any, files: HubFiles) -> None:
    state = files.read_weights()
    # Every timm file that has models of more than one origin translates their weights in a function of this name,
    # which also resamples the position embedding.
    translate = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        state = translate(state, module)
    head = tuple(f"{name}." for name in _head(module))
    state = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"The weights of {files.name} are not those of the model: {one_line(error)}.") from None


def _head(module: Any) -> tuple[str, ...]:
    names: Any = module.pretrained_cfg["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def _backbone(module: Any, content_hash: str, image_size: int | None) -> Backbone:
    data = resolve_data_config({}, pretrained_cfg=module.pretrained_cfg)  # type: ignore[no-untyped-call]
    if data["input_size"][0] != 3:
        raise ModelError(
            f"The model takes images of {data['input_size'][0]} channels: choose one of red, green and blue."
        )
    return Backbone(
        module,
        _head(module),
        "image",
        content_hash,
        image_size or data["input_size"][-1],
        tuple(data["mean"]),
        tuple(data["std"]),
        crop=data["crop_pct"],
        interpolation=data["interpolation"],
    )
