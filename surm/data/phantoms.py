"""`phantoms`: ellipsoids with noise, to show that segmentation runs; evidence of nothing."""

import hashlib
from functools import cache, partial

import numpy as np

from surm.data.base import Corpus, Split
from surm.data.segmentation import Masks, Pixels, Slice, by_position

SIZE, SLICES = 64, 8  # pixels, slices of a volume
TRAIN, TEST = 6, 3  # volumes
ORGANS = ("large ellipsoid", "middle ellipsoid", "small ellipsoid")
RADII, LEVELS, NOISE = (18, 12, 8), (0.4, 0.65, 0.9), 0.05
CENTRES = ((24, 24), (40, 44), (46, 18))


def phantoms() -> Corpus:
    """48 training and 24 test slices of 64 x 64 pixels, of 6 and 3 volumes; the last training volume chooses settings.

    Source: this file. Each volume has three ellipsoids of their own grey levels, at places and with axes that vary, in
    noise; in the outer slices they are smaller or absent.
    Shows that a model's masks are trained, scored and reported. Does not show anything about medical images.
    """
    train, test = (split(range(first, last)) for first, last in ((0, TRAIN), (TRAIN, TRAIN + TEST)))
    content = hashlib.sha256(b"".join(part.tobytes() for of in (train, test) for raw in of.inputs for part in raw))
    return Corpus(
        "image",
        ("background", *ORGANS),
        train,
        test,
        selection=np.flatnonzero(train.labels == TRAIN - 1),
        metrics=Masks(ORGANS).metrics,
        baselines=partial(by_position, organs=len(ORGANS)),
        source_hash=content.hexdigest(),
        objective=Masks(ORGANS),
    )


def split(numbers: range) -> Split:
    """The slices of these volumes, in order."""
    slices = [Slice(*pair) for number in numbers for pair in zip(*volume(number), strict=True)]
    return Split(slices, np.repeat(np.array(numbers, dtype=np.int64), SLICES))


@cache
def volume(number: int) -> tuple[Pixels, Pixels]:
    """Grey levels and classes of one volume, each (slices, height, width)."""
    rng = np.random.default_rng(number)
    z, y, x = np.ogrid[-1 : 1 : SLICES * 1j, :SIZE, :SIZE]
    levels, classes = np.full((SLICES, SIZE, SIZE), 0.1), np.zeros((SLICES, SIZE, SIZE), dtype=np.uint8)
    for organ, (radius, level, centre) in enumerate(zip(RADII, LEVELS, CENTRES, strict=True), start=1):
        cy, cx = centre + rng.uniform(-6, 6, 2)
        ry, rx = radius * rng.uniform(0.7, 1.1, 2)
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 + (z - rng.uniform(-0.2, 0.2)) ** 2 < 1
        levels[inside], classes[inside] = level, organ
    levels += rng.normal(0, NOISE, levels.shape)
    return np.rint(255 * levels.clip(0, 1)).astype(np.uint8), classes
