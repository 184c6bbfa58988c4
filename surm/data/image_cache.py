"""Decoded and resized images of a split in one memory-mapped file, so that an epoch need not decode them again.

Per image on one core: a photograph (JPEG, 500 x 375) is decoded and resized to 224 pixels in 0.95 ms, a CIFAR-10 one
(PNG, 32 x 32) in 0.21 ms; reading 3 x 224 x 224 bytes of such a file takes 0.08 ms. Hence a split is cached where its
images have at least as many pixels as a model sees, and only if it is too large for `EncodedDataset`'s own memory,
which holds 512 MiB of the same bytes.

The file lies in the `cache_folder`. Its name is a hash of the split's content, the size, crop and interpolation, and
the versions of what decodes and resizes. It is written beside its place and renamed, under a lock: two processes build
it once, and a killed one leaves no half of it.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from surm.data.base import Split
from surm.shared.paths import cache_folder

LARGEST_FILE = 32 * 2**30  # bytes
PROBED = 16  # images, whose size in pixels decides
CHUNK = 256  # images in memory while a file is built

Resize = Callable[[Any], Tensor]


class CachedImages(Sequence[Any]):
    """Resized images, uint8 tensors of shape (3, size, size), read from a file when they are asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.pixels = np.load(file, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any) -> Any:
        return torch.from_numpy(np.array(self.pixels[index]))

    def __reduce__(self) -> Any:  # a worker process maps the file itself: a pickled map would be a copy
        return CachedImages, (self.file,)


def cached_images(split: Split, size: int, settings: dict[str, Any], resize: Resize) -> CachedImages | None:
    """The images of a split as `resize` gives them; None where a cache does not pay or cannot be written.

    size: pixels, height and width of what `resize` gives.
    settings: everything else that `resize` depends on.
    """
    needed = len(split) * 3 * size**2
    if not _pays(split, size) or needed > LARGEST_FILE:
        return None
    root = cache_folder()
    file = root / f"{_key(split, size, settings)}.npy"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not _is_whole(file, len(split), size):
                if needed > shutil.disk_usage(root).free / 2:
                    return None
                _build(file, split.inputs, size, resize)
            return CachedImages(file)
    except (OSError, NotImplementedError):  # read-only, full, or a file system without locks
        return None


def _is_whole(file: Path, length: int, size: int) -> bool:
    """Whether the file is there, and holds as many images as it should; a damaged one is named and built again."""
    try:
        if CachedImages(file).pixels.shape == (length, 3, size, size):
            return True
    except FileNotFoundError:
        return False
    except (ValueError, EOFError):  # cut off, or no array
        pass
    warnings.warn(f"{file} is a damaged cache of images: it is built again.", stacklevel=2)
    return False


def _pays(split: Split, size: int) -> bool:
    """Whether the images are encoded, of known content, and at least as large as what the model sees."""
    if split.identity is None or not len(split) or not isinstance(split.inputs[0], bytes | Path):
        return False
    pixels = []
    for index in np.linspace(0, len(split) - 1, min(PROBED, len(split)), dtype=int).tolist():
        raw = split.inputs[index]
        with Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw) as image:  # reads the header alone
            pixels.append(image.width * image.height)
    return median(pixels) >= size**2


def _key(split: Split, size: int, settings: dict[str, Any]) -> str:
    versions = {"pillow": PIL.__version__, "torch": torch.__version__}
    question = {"split": split.identity, "size": size, "settings": settings, "versions": versions}
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32]


def _build(file: Path, inputs: Sequence[Any], size: int, resize: Resize) -> None:
    partial = file.with_suffix(".part")
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(inputs), 3, size, size)}
    try:
        # Written, not mapped: where the disk is full this raises an error, whereas a map would end the process.
        with (
            partial.open("wb") as stream,
            ThreadPoolExecutor(os.cpu_count()) as threads,
            Progress(transient=True) as progress,
        ):
            np.lib.format.write_array_header_1_0(stream, header)
            task = progress.add_task(f"resizing {len(inputs):,} images once", total=len(inputs))
            for first in range(0, len(inputs), CHUNK):
                chunk = [inputs[index] for index in range(first, min(first + CHUNK, len(inputs)))]
                for pixels in threads.map(resize, chunk):
                    stream.write(pixels.contiguous().numpy().tobytes())
                progress.advance(task, len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
