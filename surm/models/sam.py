"""SAM (Kirillov et al. 2023): its ViT encoder, and its mask decoder with one mask for each class.

No prompt is given. The decoder has one token for each class, background included, in place of three for one prompt; the
new tokens and the layers behind them start anew, the rest of the decoder as trained, as in SAMed (Zhang and Liu 2023).
What encodes prompts and what scores masks is left out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import SamConfig, SamModel

from surm.models.backbone import Backbone, check_size
from surm.models.from_transformers import model_config, quiet
from surm.models.hub import HubFiles
from surm.shared.errors import ModelError

HEAD = ("mask_decoder",)
NEW = ("mask_tokens", "output_hypernetworks_mlps")  # of the decoder: as many as there are masks
UNUSED = ("mask_decoder.iou_prediction_head", "prompt_encoder.mask_embed", "prompt_encoder.not_a_point_embed")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # SAM's own preprocessing
IMAGE_SIZE = 512  # pixels, as in SAMed; SAM was trained at 1,024
WIDTH = 768  # of ViT-B
SEED = 20240617
TINY: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 16,
        "initializer_range": 0.02,
    },
    "prompt_encoder_config": {"hidden_size": 32, "patch_size": 8},
    "mask_decoder_config": {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    },
}


def load(files: HubFiles, content_hash: str, *, num_labels: int, image_size: int = IMAGE_SIZE) -> Backbone:
    """The pretrained model for `num_labels` masks of images of this size; its position embeddings are resampled.

    Raises `ValueError`, one sentence, unless the weights hold every tensor of the model.
    """
    config = _described(files)
    folder = files.locate()
    read: Any = SamModel.from_pretrained
    with quiet(), torch.random.fork_rng(devices=[]):
        trained, report = read(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
        module = build(config, num_labels, image_size)
    if lacking := sorted(report["missing_keys"]):
        raise ModelError(
            f"The weights of {files.name} are not those of the model: {len(lacking)} tensors are missing, such as "
            f"{lacking[0]}."
        )
    module.load_state_dict(_fitted(trained.state_dict(), module.state_dict()))
    return _backbone(module, content_hash, image_size)


def skeleton(files: HubFiles, content_hash: str, *, num_labels: int, image_size: int = IMAGE_SIZE) -> Backbone:
    """The same model without weights, for the meta device."""
    return _backbone(build(_described(files), num_labels, image_size), content_hash, image_size)


def load_tiny(weights: None, content_hash: str, *, num_labels: int, image_size: int = 64) -> Backbone:
    """`tiny_sam`: random weights from a fixed seed, two layers of width 32; for tests only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = build(TINY, num_labels, image_size)
    return _backbone(module, content_hash, image_size)


def check(files: HubFiles) -> None:
    """Refuse, in one sentence, a folder whose files do not fit together, before its weights are read."""
    config = _described(files)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        module = build(config, 2, config["vision_config"]["image_size"])
    check_size(files.name, module, HEAD, files.weight_elements())


def build(config: Mapping[str, Any], num_labels: int, image_size: int) -> Any:
    """A SAM with random weights.

    Args:
        config: as in its config.json.
        num_labels: masks, that of the background included.
        image_size: side of the square image in pixels, a multiple of the patch size.
    """
    names = ("vision", "prompt_encoder", "mask_decoder")
    parts: dict[str, Any] = {name: dict(config.get(f"{name}_config") or {}) for name in names}
    parts["vision"]["image_size"] = parts["prompt_encoder"]["image_size"] = image_size
    parts["prompt_encoder"].pop("image_embedding_size", None)  # follows from the size
    parts["mask_decoder"]["num_multimask_outputs"] = num_labels
    described: Any = SamConfig
    module: Any = SamModel(described(**{f"{key}_config": values for key, values in parts.items()}))
    for name in UNUSED:  # as there is no prompt and no choice among masks; they would be trained in name only
        module.set_submodule(name, nn.Identity())
    module.prompt_encoder.point_embed = nn.ModuleList()
    return module


def start_head(module: nn.Module) -> None:
    """Draw what is new in the decoder from the global generator, each layer as torch does, as SAM itself started."""
    for name in NEW:
        for layer in module.get_submodule(f"mask_decoder.{name}").modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                layer.reset_parameters()


def _backbone(module: Any, content_hash: str, image_size: int) -> Backbone:
    start_head(module)
    return Backbone(
        *(module, HEAD, "image", content_hash, image_size, MEAN, STD),
        interpolation="bilinear",
        input_name="pixel_values",
    )


def _described(files: HubFiles) -> dict[str, Any]:
    """What config.json says, defaults filled in: of a ViT-B."""
    config: dict[str, Any] = model_config(files.read_config()).to_dict()
    if (width := config["vision_config"]["hidden_size"]) != WIDTH:
        raise ModelError(f"{files.name} holds a SAM whose encoder has width {width}: give ViT-B's, of width {WIDTH}.")
    return config


def _fitted(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors in the shapes of the model; what is new in the decoder stays as it is there."""
    fitted = dict(wanted)
    for name, tensor in state.items():
        if name not in wanted or name.startswith(tuple(f"mask_decoder.{new}." for new in NEW)):
            continue
        shape = wanted[name].shape
        if tensor.shape == shape:
            fitted[name] = tensor
        elif name.endswith("pos_embed"):  # (1, height, width, n)
            fitted[name] = interpolate(tensor.permute(0, 3, 1, 2), shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
        elif "rel_pos" in name:  # (distances, n), of the layers that see the whole image
            fitted[name] = interpolate(tensor.T[None], shape[0], mode="linear")[0].T
        else:
            raise ModelError(f"{name} of the weights has the shape {tuple(tensor.shape)}, not {tuple(shape)}.")
    return fitted
