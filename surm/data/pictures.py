"""From the file of a picture to pixels, as timm reads it: in RGB, without transparency and without turning it.

An orientation in the EXIF data is not applied, an alpha channel is dropped, and of several frames the first is taken.
16-bit grey is scaled from 0..65535, floating point from 0..1. 32-bit integers, whose white is not known, are refused.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from surm.shared.errors import DataError, UserError
from surm.shared.paths import cache_folder

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others may start programs, as EPS does
CHUNK = 256  # pictures in memory while they are checked


def decode(raw: Path | bytes, name: str = "") -> NDArray[np.uint8]:
    """The pixels of a file or of its bytes, shape (height, width, 3).

    name: what the sentence of an error calls it; default: its path.
    Raises `DataError` for what is no picture, a damaged one, or one whose range of brightness is not known.
    """
    name = name or (str(raw) if isinstance(raw, Path) else "a picture of the data")
    try:
        with Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw, formats=FORMATS) as image:
            return _rgb(image, name)
    except UserError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise DataError(f"{name} has more than {most} megapixels: make it smaller or take it out.") from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is no picture of {', '.join(FORMATS)}: convert it or take it out.") from None
    except Exception as error:  # of a damaged file; Pillow's readers have no common class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name} is a damaged picture ({reason}): write it again or take it out.") from None


def check_pictures(splits: Mapping[str, Sequence[Any]], content_hash: str) -> None:
    """Decode every picture once, so that a broken one is met before training and not when it is first drawn.

    splits: the inputs of each; of arrays there is nothing to check.
    content_hash: of all of them; below it the cache keeps that they are whole.
    """
    marker = cache_folder() / "pictures" / f"{content_hash}-{PIL.__version__}"
    if marker.exists():
        return
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for split, of_split in splits.items():
            for first in range(0, len(of_split), CHUNK):
                rows = range(first, min(first + CHUNK, len(of_split)))
                chunk = [(of_split[row], f"The picture in row {row + 1} of the {split} split") for row in rows]
                list(threads.map(_check, chunk))
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError:  # read-only: checked again the next time
        pass


def _check(item: tuple[Any, str]) -> None:
    raw, row = item
    if isinstance(raw, bytes | Path):
        decode(raw, str(raw) if isinstance(raw, Path) else row)


def _rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image, dtype=np.float64) / 65535)
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if not (values.min() >= 0 and values.max() <= 1):  # not a number fails both
            raise DataError(
                f"{name} holds floating-point values from {values.min():g} to {values.max():g}: scale them to 0..1, or "
                "save the picture with 8 bits."
            )
        return _grey(values)
    if image.mode == "I":
        raise DataError(f"{name} holds 32-bit integers, whose white is not known: save it with 8 or 16 bits.")
    return np.array(image.convert("RGB"))


def _grey(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """From shares of white, (height, width)."""
    return np.repeat(np.rint(share * 255).astype(np.uint8)[..., None], 3, axis=-1)
