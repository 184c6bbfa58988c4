"""What every model file of this package returns, and the one way a new task head starts."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from surm.shared.errors import ModelError

HEAD_STD = 0.02  # of BERT's and of timm's own classifiers


@dataclass(frozen=True)
class Backbone:
    """A model with a new task head, and what is needed to feed it.

    `module(**inputs)` gives logits of shape (B, num_labels), or an object with `.logits`; inputs are what the tokenizer
    returns, (B, L), for text, and `input_name` of shape (B, 3, image_size, image_size) for images. An image is resized
    and cropped to that: `crop` is the share of the resized image's shorter side that is kept (1.0: the whole image,
    resized to a square), `interpolation` how it is resized.
    """

    module: nn.Module
    head: tuple[str, ...]
    modality: str
    content_hash: str
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    crop: float = 1.0
    interpolation: str = "bicubic"
    input_name: str = "x"


def initialise_head(module: nn.Module, head: tuple[str, ...]) -> None:
    """Draw the head's Linear layers from the global generator: one seed, one head, whatever the method."""
    for name in head:
        for layer in module.get_submodule(name).modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=HEAD_STD)
                nn.init.zeros_(layer.bias)


def check_image_size(image_size: int, patch: int) -> None:
    """Refuse, in one sentence, a size in pixels that does not divide into patches."""
    if image_size < patch or image_size % patch:
        raise ModelError(
            f"image_size={image_size}: the model's patches are {patch} pixels wide; give a multiple of it."
        )
