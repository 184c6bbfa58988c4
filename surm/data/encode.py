"""From raw inputs to what a backbone takes."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from surm.data.base import MAX_TOKENS, Example, Split
from surm.data.image_cache import CHUNK, cached_images
from surm.data.pictures import decode
from surm.models.backbone import Backbone

CACHE_BYTES = 512 * 2**20


class EncodedDataset(Dataset[Example]):
    """Examples as tensors without a batch dimension: an image's pixels, or what the tokenizer gives, and `labels`.

    Labels are int64 classes, or float32 values of a regression. Each example is encoded when first asked for and kept
    in memory if the whole split stays below 512 MiB. An image is kept as uint8, a quarter of what the model takes:
    `finish` makes the rest of an example or of a batch, where it lies; `unfinished` gives examples before that.
    Where `encode_input` gives `labels` of its own, such as a token at each place, those of the split are not used.
    """

    def __init__(
        self,
        split: Split,
        encode_input: Callable[[Any], Example],
        padding: dict[str, int],
        finish: Callable[[Example], Example] = lambda example: example,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.split = split
        self.encode_input = encode_input
        self.padding = padding
        self.finish = finish
        self.lengths = lengths
        self.unfinished = Unfinished(self)
        self.cache: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Example:
        return self.finish(self.unfinished[index])

    def collate(self, examples: Sequence[Example]) -> Example:
        """A batch, (B, ..): text is padded on the right to the longest of the batch."""
        return {
            key: pad_sequence([example[key] for example in examples], batch_first=True, padding_value=self.padding[key])
            if key in self.padding
            else torch.stack([example[key] for example in examples])
            for key in examples[0]
        }

    def fill(self) -> None:
        """Decode all images that come as files and fit in memory, in parallel, before the first of them is needed."""
        self.unfinished.fill()


class Unfinished(Dataset[Example]):
    """The examples of a dataset as they are kept, which is what a batch is moved to a device as."""

    def __init__(self, dataset: EncodedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        dataset = self.dataset
        if index in dataset.cache:
            return dataset.cache[index]
        example = dict(dataset.encode_input(dataset.split.inputs[index]))
        if "labels" not in example:
            label = torch.as_tensor(dataset.split.labels[index])
            example["labels"] = label.float() if label.is_floating_point() else label
        if self._fits(example):
            dataset.cache[index] = example
        return example

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """A batch's examples: files of images that are not kept are decoded in parallel."""
        new = [index for index in dict.fromkeys(indices) if index not in self.dataset.cache]
        if len(new) < 2 or get_worker_info() is not None or not self._are_files():
            return [self[index] for index in indices]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            found = dict(zip(new, threads.map(self.__getitem__, new), strict=True))
        return [found[index] if index in found else self[index] for index in indices]

    def fill(self) -> None:
        """As of the dataset."""
        if not len(self) or not self._are_files() or not self._fits(self[0]):
            return
        with Progress(transient=True) as progress:
            task = progress.add_task(f"resizing {len(self):,} images once", total=len(self))
            for first in range(0, len(self), CHUNK):
                chunk = range(first, min(first + CHUNK, len(self)))
                self.__getitems__(chunk)
                progress.advance(task, len(chunk))

    def _fits(self, example: Example) -> bool:
        """Whether the whole split does, if all examples are as large as this one."""
        return len(self) * sum(tensor.nbytes for tensor in example.values()) < CACHE_BYTES

    def _are_files(self) -> bool:
        return isinstance(self.dataset.split.inputs[0], bytes | Path)


class Normalise:
    """From grey levels, uint8 (.., 3, height, width), to float32 inputs, (level / 255 - mean) / std by channel.

    A table holds the value of each level in each channel, so that all devices give the bits of one division.
    """

    def __init__(self, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        """name: of the pixels in an example; mean, std: of each channel."""
        self.name = name
        levels = torch.arange(256, dtype=torch.uint8) / 255
        table = (levels - torch.tensor(mean).view(3, 1)) / torch.tensor(std).view(3, 1)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._table = table.flatten(), torch.arange(0, 768, 256, dtype=torch.int32).view(3, 1, 1)

    def __call__(self, example: Example) -> Example:
        pixels = example[self.name]
        if pixels.device not in self._on:
            self._on[pixels.device] = self._table[0].to(pixels.device), self._table[1].to(pixels.device)
        table, first = self._on[pixels.device]
        values = table.index_select(0, (pixels + first).flatten()).view(pixels.shape)
        return example | {self.name: values}


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
    assert backbone.mean is not None
    assert backbone.std is not None
    size, resize = backbone.image_size, resizer(backbone)
    if len(split) * 3 * size**2 >= CACHE_BYTES:
        settings = {"crop": backbone.crop, "interpolation": backbone.interpolation}
        split = replace(split, inputs=cached_images(split, size, settings, resize) or split.inputs)
    finish = Normalise(backbone.input_name, backbone.mean, backbone.std)
    return EncodedDataset(split, _image_encoder(backbone, resize), padding={}, finish=finish)


def resizer(backbone: Backbone) -> Callable[[Any], Tensor]:
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
    def encode_image(raw: Any) -> Example:
        return {backbone.input_name: raw if isinstance(raw, Tensor) else resize(raw).contiguous()}

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
