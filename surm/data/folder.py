"""Image classification from folders, one a class: `imagenet1k`, `inat2021`, and a user's own `image_folder`.

Under the path lie `train/<class>/*` and one of `test/<class>/*`, `val/<class>/*` and `validation/<class>/*`, the first
of which is the reported split. Of ImageNet-1k and iNaturalist 2021 that is `val`: the test splits' labels are not
public. Names that begin with a dot are left out.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from surm.data.base import Corpus, Split
from surm.data.hashing import contents_hash
from surm.data.hub import DataFacts
from surm.shared.errors import DataError, DataNotFoundError

EVALUATIONS = ("test", "val", "validation")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")
# Pictures that are not read: left out in silence they would be missing where a user counts on them.
UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif", ".svg", ".psd", ".tga", ".dng", ".cr2", ".nef", ".npy")


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
        raise DataError(
            f"{root / evaluation} has the class {min(unknown)}, which {root / 'train'} has not: give both the same."
        )
    train, test = (_split(root / split, classes) for split in ("train", evaluation))
    if not len(test):
        raise DataError(f"{root / evaluation} holds no image: put them into one folder a class.")
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
    """Refuse, in one sentence, a path without the two splits, or a class without an image."""
    root, evaluation = _root(name, path)
    classes = _classes(name, root / "train")
    for split in ("train", evaluation):
        if not len(_split(root / split, classes)):
            raise DataError(f"{root / split} holds no image: put them into one folder a class.")


def revision(name: str, path: str | None, columns: Mapping[str, str]) -> str:
    """The release of a public data set; a user's own is named by the hash of its files."""
    if name in FOLDERS:
        return FOLDERS[name].revision
    return _hash(*_root(name, path))[:12]


def _root(name: str, path: str | None) -> tuple[Path, str]:
    """The folder, and which of `EVALUATIONS` it has."""
    source = f"; it is {FACTS[name].download}" if name in FACTS else ""
    layout = f"{name} is read from dataset.path=..., a folder with train/<class>/* and test|val|validation/<class>/*"
    if path is None:
        raise DataNotFoundError(f"{layout}, which was not given{source}.")
    root = Path(path).expanduser()
    found = [split for split in EVALUATIONS if (root / split).is_dir()]
    if not (root / "train").is_dir() or not found:
        missing = " and no ".join(
            ["train"] * (not (root / "train").is_dir()) + ["test, val or validation"] * (not found)
        )
        raise DataNotFoundError(f"dataset.path={path} has no {missing}: {layout}{source}.")
    return root, found[0]


def _classes(name: str, folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(_folders(folder)))
    if len(classes) < 2 and folder.name == "train":
        raise DataError(f"{folder} has {len(classes)} folders of a class: {name} needs two or more.")
    if name in FACTS and len(classes) > FACTS[name].num_labels:
        raise DataError(
            f"{folder} has {len(classes)} classes, but {name} has {FACTS[name].num_labels}: give its folder in "
            "dataset.path."
        )
    return classes


def _folders(folder: Path) -> Iterator[str]:
    """Names of the classes; tools keep folders of their own under hidden names, such as .ipynb_checkpoints."""
    return (entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _split(folder: Path, classes: tuple[str, ...]) -> Split:
    """The images of each class; of the reported split a class may lack its folder, or leave it empty."""
    of_class = [_images(folder / label) if (folder / label).is_dir() else [] for label in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in of_class])
    return Split([file for files in of_class for file in files], labels)


def _images(folder: Path) -> list[Path]:
    """The images of one class, sorted.

    Raises `DataError` where some would be left out: of other kinds, in folders further below, behind broken links.
    """
    entries = sorted(
        (entry for entry in os.scandir(folder) if not entry.name.startswith(".") and not entry.is_dir()),
        key=lambda entry: entry.name,
    )
    images = [entry for entry in entries if entry.name.lower().endswith(SUFFIXES)]
    allowed = ", ".join(SUFFIXES)
    if unread := next((entry for entry in entries if entry.name.lower().endswith(UNREAD)), None):
        raise DataError(f"{unread.path} is of a kind that is not read: convert it to one of {allowed}.")
    if lost := next((entry for entry in images if not entry.is_file()), None):
        raise DataError(f"{lost.path} is no file, or a link to one that is not there: bring it back or take it out.")
    if not images and (folder.parent.name == "train" or any(os.scandir(folder))):
        raise DataError(
            f"{folder} holds no image that ends in {allowed}: put some straight into it, or take the class out of "
            "both splits."
        )
    return [folder / entry.name for entry in images]


@cache
def _hash(root: Path, evaluation: str) -> str:
    splits = [root / split for split in ("train", evaluation)]
    return contents_hash(
        root, [file for split in splits for label in _folders(split) for file in _images(split / label)]
    )
