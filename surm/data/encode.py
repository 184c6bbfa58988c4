"""From raw inputs to what a backbone takes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from surm.data.base import MAX_TOKENS, Split
from surm.data.image_cache import cached_images
from surm.data.pictures import decode
from surm.models.backbone import Backbone

CACHE_BYTES = 512 * 2**20

Example = dict[str, Tensor]


class EncodedDataset(Dataset[Example]):
    """Examples as tensors without a batch dimension: an image's pixels, or what the tokenizer gives, and `labels`.

    Labels are int64 classes, or float32 values of a regression. Each example is encoded when first asked for and kept
    in memory if the whole split stays below 512 MiB.
    """

    def __init__(self, split: Split, encode_input: Callable[[Any], Example], padding: dict[str, int]) -> None:
        self.split = split
        self.encode_input = encode_input
        self.padding = padding
        self.cache: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Example:
        if index in self.cache:
            return self.cache[index]
        example = self.encode_input(self.split.inputs[index])
        label = torch.as_tensor(self.split.labels[index])
        example["labels"] = label.float() if label.is_floating_point() else label
        if len(self) * sum(tensor.nbytes for tensor in example.values()) < CACHE_BYTES:
            self.cache[index] = example
        return example

    def collate(self, examples: Sequence[Example]) -> Example:
        """A batch, (B, ..): text is padded on the right to the longest of the batch."""
        return {
            key: pad_sequence([example[key] for example in examples], batch_first=True, padding_value=self.padding[key])
            if key in self.padding
            else torch.stack([example[key] for example in examples])
            for key in examples[0]
        }


def encode(split: Split, backbone: Backbone) -> EncodedDataset:
    """The split as the backbone's inputs.

    Images are resized to (3, image_size, image_size), with antialias, and normalised with the backbone's mean and
    standard deviation. With `crop` below 1 the shorter side becomes image_size / crop pixels, rounded down, and the
    middle is cut out, as timm does; else the whole image becomes a square. Large splits of large images are resized
    once, see `surm.data.image_cache`. Text, one sentence or a pair, is cut at 128 tokens.
    """
    if backbone.tokenizer is not None:
        return EncodedDataset(split, _text_encoder(backbone.tokenizer), _padding(backbone.tokenizer))
    assert backbone.image_size is not None
    size, resize = backbone.image_size, _resizer(backbone)
    if len(split) * 3 * size**2 * torch.float32.itemsize >= CACHE_BYTES:
        settings = {"crop": backbone.crop, "interpolation": backbone.interpolation}
        split = replace(split, inputs=cached_images(split, size, settings, resize) or split.inputs)
    return EncodedDataset(split, _image_encoder(backbone, resize), padding={})


def _resizer(backbone: Backbone) -> Callable[[Any], Tensor]:
    """From an image of any kind to pixels, a uint8 tensor of shape (3, image_size, image_size)."""
    assert backbone.image_size is not None
    size, crop, mode = backbone.image_size, backbone.crop, backbone.interpolation
    shorter = math.floor(size / crop)

    def resize(raw: Any) -> Tensor:
        pixels = torch.from_numpy(decode(raw) if isinstance(raw, bytes | Path) else raw).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        if crop == 1:
            target = (size, size)
        else:
            target = (
                shorter if height <= width else int(shorter * height / width),
                shorter if width <= height else int(shorter * width / height),
            )
        # On uint8 this is PIL's arithmetic, and many times faster than on floats.
        resized = interpolate(pixels[None], target, mode=mode, antialias=mode in ("bilinear", "bicubic"))[0]
        top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
        return resized[:, top : top + size, left : left + size]

    return resize


def _image_encoder(backbone: Backbone, resize: Callable[[Any], Tensor]) -> Callable[[Any], Example]:
    mean = torch.tensor(backbone.mean).view(3, 1, 1)
    std = torch.tensor(backbone.std).view(3, 1, 1)

    def encode_image(raw: Any) -> Example:
        resized = raw if isinstance(raw, Tensor) else resize(raw)
        return {backbone.input_name: (resized / 255 - mean) / std}

    return encode_image


def _text_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Example]:
    def encode_text(raw: str | tuple[str, str]) -> Example:
        texts = (raw,) if isinstance(raw, str) else raw
        tokens = tokenizer(*texts, truncation=True, max_length=MAX_TOKENS)
        return {key: torch.tensor(values) for key, values in tokens.items()}

    return encode_text


def _padding(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "attention_mask": 0,
    }
