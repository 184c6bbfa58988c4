"""Image classification from folders, one a class: `imagenet1k`, `inat2021`, and a user's own `image_folder`.

Under the path lie `train/<class>/*` and one of `test/<class>/*`, `val/<class>/*` and `validation/<class>/*`, the first
of which is the reported split. Of ImageNet-1k and iNaturalist 2021 that is `val`: the test splits' labels are not
public.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from surm.data.base import Corpus, Split, listing_hash
from surm.data.hub import DataFacts

EVALUATIONS = ("test", "val", "validation")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


@dataclass(frozen=True)
class ImageFolder:
    """A public data set that is read from a folder: which release it is, and what brings it."""

    revision: str
    facts: DataFacts


FOLDERS = {
    "imagenet1k": ImageFolder(
        "ilsvrc2012",
        DataFacts(
            1000,
            1_281_167,
            50_000,
            None,
            "ILSVRC 2012 from image-net.org (an account is needed), its two archives sorted into train/<class>/ and "
            "val/<class>/, about 150 GB",
        ),
    ),
    "inat2021": ImageFolder(
        "2021",
        DataFacts(
            10_000,
            2_686_843,
            100_000,
            None,
            "train.tar.gz and val.tar.gz of the iNaturalist 2021 competition (github.com/visipedia/inat_comp), "
            "about 230 GB",
        ),
    ),
}

FACTS = {name: folder.facts for name, folder in FOLDERS.items()}


def read(name: str, path: str | None, columns: Mapping[str, str]) -> Corpus:
    """Both splits, each input the path of an image; the classes are the sorted folders of `train`."""
    root, evaluation = _root(name, path)
    classes = _classes(name, root / "train")
    if unknown := set(_classes(name, root / evaluation)) - set(classes):
        raise ValueError(
            f"{root / evaluation} has the class {min(unknown)}, which {root / 'train'} has not: give both the same."
        )
    train, test = (_split(root / split, classes) for split in ("train", evaluation))
    for split, found in (("train", train), (evaluation, test)):
        if not len(found):
            raise ValueError(f"{root / split} holds no image: put them into one folder a class.")
    # A public data set has its number of classes, and thus its head, even where folders were left out.
    absent = range(len(classes), FACTS[name].num_labels) if name in FACTS else ()
    return Corpus(
        "image",
        (*classes, *(f"absent {label}" for label in absent)),
        train,
        test,
        key=lambda file: file.relative_to(root).as_posix(),
        source_hash=_hash(root, evaluation),
    )


def check(name: str, path: str | None, columns: Mapping[str, str]) -> None:
    """Refuse, in one sentence, a path without the two splits, or one without an image."""
    root, evaluation = _root(name, path)
    for split in ("train", evaluation):
        if not any(next(_images(root / split / label), None) for label in _classes(name, root / split)):
            raise ValueError(f"{root / split} holds no image: put them into one folder a class.")


def revision(name: str, path: str | None) -> str:
    """The release of a public data set; a user's own is named by the hash of its files' names and sizes."""
    if name in FOLDERS:
        return FOLDERS[name].revision
    return _hash(*_root(name, path))[:12]


def _root(name: str, path: str | None) -> tuple[Path, str]:
    """The folder, and which of `EVALUATIONS` it has."""
    source = f"; it is {FACTS[name].download}" if name in FACTS else ""
    layout = f"{name} is read from dataset.path=..., a folder with train/<class>/* and test|val|validation/<class>/*"
    if path is None:
        raise FileNotFoundError(f"{layout}, which was not given{source}.")
    root = Path(path).expanduser()
    found = [split for split in EVALUATIONS if (root / split).is_dir()]
    if not (root / "train").is_dir() or not found:
        missing = " and no ".join(
            ["train"] * (not (root / "train").is_dir()) + ["test, val or validation"] * (not found)
        )
        raise FileNotFoundError(f"dataset.path={path} has no {missing}: {layout}{source}.")
    return root, found[0]


def _classes(name: str, folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    if len(classes) < 2 and folder.name == "train":
        raise ValueError(f"{folder} has {len(classes)} folders of a class: {name} needs two or more.")
    if name in FACTS and len(classes) > FACTS[name].num_labels:
        raise ValueError(
            f"{folder} has {len(classes)} classes, but {name} has {FACTS[name].num_labels}: give its folder in "
            "dataset.path."
        )
    return classes


def _split(folder: Path, classes: tuple[str, ...]) -> Split:
    of_class = [sorted(_images(folder / label)) if (folder / label).is_dir() else [] for label in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in of_class])
    return Split([file for files in of_class for file in files], labels)


def _images(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            yield folder / entry.name


@cache
def _hash(root: Path, evaluation: str) -> str:
    images = (
        image
        for split in ("train", evaluation)
        for label in os.scandir(root / split)
        if label.is_dir()
        for image in _images(Path(label.path))
    )
    return listing_hash(root, images)
