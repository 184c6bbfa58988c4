"""What every model file of this package returns, and the one way a new task head starts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd as _Dropout
from transformers import PreTrainedTokenizerBase

from surm.shared.errors import ModelError

LARGEST_IMAGE = 4096  # pixels; the side of an input, beyond any model's
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")  # what torch resizes integers with
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

    def example(self) -> dict[str, Tensor]:
        """One input of the module, on its device: an image of zeros, or four tokens."""
        device = next(self.module.parameters()).device
        if self.image_size is None:
            return {"input_ids": torch.zeros(1, 4, dtype=torch.long, device=device)}
        return {self.input_name: torch.zeros(1, 3, self.image_size, self.image_size, device=device)}


def initialise_head(module: nn.Module, head: tuple[str, ...]) -> None:
    """Draw the head's Linear layers from the global generator: one seed, one head, whatever the method."""
    for name in head:
        for layer in module.get_submodule(name).modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=HEAD_STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def set_dropout(module: nn.Module, probability: float) -> None:
    """Give every dropout of a model one probability, whichever way its layers hold it.

    Most models have `nn.Dropout` layers; some of their attention layers hold the probability as a number of their own.
    """
    for layer in module.modules():
        if isinstance(layer, _Dropout):
            layer.p = probability
        for name, value in list(vars(layer).items()):
            if "drop" in name and isinstance(value, float):
                setattr(layer, name, probability)


def check_images(files: str, backbone: Backbone) -> None:
    """Refuse, in one sentence, preprocessing of images that a model's files state and that is impossible.

    files: what the sentence calls them.
    """
    size, numbers = backbone.image_size, (*(backbone.mean or ()), *(backbone.std or ()))
    wrong = {
        f"a size of {size} pixels": not isinstance(size, int) or not 1 <= size <= LARGEST_IMAGE,
        f"mean {backbone.mean} and standard deviation {backbone.std}": len(numbers) != 6
        or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        or min(backbone.std or (0,)) <= 0,
        f"a crop of {backbone.crop}": not isinstance(backbone.crop, int | float) or not 0 < backbone.crop <= 1,
        f"the interpolation {backbone.interpolation}": backbone.interpolation not in INTERPOLATIONS,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ModelError(f"{files} asks for images with {what}, which is not possible: correct or fetch its files.")


def check_size(files: str, module: nn.Module, head: tuple[str, ...], elements: int) -> None:
    """Refuse, in one sentence, a configuration of a far larger model than the weights have numbers for."""
    body = sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if not name.startswith(tuple(f"{part}." for part in head))
    )
    if body > 2 * elements:
        raise ModelError(
            f"The weights of {files} hold {elements:,} numbers, but its config.json describes a model of {body:,}: "
            "give the files of one model."
        )


def check_image_size(image_size: int, patch: int) -> None:
    """Refuse, in one sentence, a size in pixels that does not divide into patches."""
    if image_size < patch or image_size % patch:
        raise ModelError(
            f"image_size={image_size}: the model's patches are {patch} pixels wide; give a multiple of it."
        )


def one_line(error: Exception) -> str:
    """What a library says is wrong, short enough for a sentence."""
    return " ".join(str(error).split())[:300].rstrip(".:") or type(error).__name__
