"""From raw inputs to what a backbone takes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from surm.data.base import Split
from surm.models.backbone import Backbone

MAX_TOKENS = 128
CACHE_BYTES = 512 * 2**20

Example = dict[str, Tensor]


class EncodedDataset(Dataset[Example]):
    """Examples as tensors without a batch dimension: `x`, or what the tokenizer gives, beside `labels`.

    Each is encoded when first asked for and kept in memory if the whole split stays below 512 MiB.
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
        example["labels"] = torch.as_tensor(self.split.labels[index])
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

    Images are resized to (3, image_size, image_size), bicubic with antialias, and normalised with the backbone's mean
    and standard deviation; text is cut at 128 tokens.
    """
    if backbone.tokenizer is None:
        return EncodedDataset(split, _image_encoder(backbone), padding={})
    return EncodedDataset(split, _text_encoder(backbone.tokenizer), _padding(backbone.tokenizer))


def _image_encoder(backbone: Backbone) -> Callable[[Any], Example]:
    assert backbone.image_size is not None
    size = (backbone.image_size, backbone.image_size)
    mean = torch.tensor(backbone.mean).view(3, 1, 1)
    std = torch.tensor(backbone.std).view(3, 1, 1)

    def encode_image(raw: Any) -> Example:
        image = np.array(Image.open(raw).convert("RGB")) if isinstance(raw, Path) else raw
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        # On uint8 this is PIL's arithmetic, and many times faster than on floats.
        resized = interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
        return {"x": (resized / 255 - mean) / std}

    return encode_image


def _text_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], Example]:
    def encode_text(raw: str) -> Example:
        tokens = tokenizer(raw, truncation=True, max_length=MAX_TOKENS)
        return {key: torch.tensor(values) for key, values in tokens.items()}

    return encode_text


def _padding(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "attention_mask": 0,
    }
