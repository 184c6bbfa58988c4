"""VTAB-1k: 1,000 training images a task (Zhai et al. 2019), the eleven natural and specialised tasks of Table 2.

Read in the layout that NOAH, FacT and their successors share: beside the images lie `train800.txt`, `val200.txt` and
`test.txt` with lines "relative/path label". Training uses all 1,000 images, as usual; settings are chosen by training
on the 800 and evaluating on the 200.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surm.data.base import Corpus, Split
from surm.data.hashing import contents_hash, files_hash
from surm.data.hub import DataFacts
from surm.shared.errors import DataError, DataNotFoundError

LISTS = ("train800.txt", "val200.txt", "test.txt")


@dataclass(frozen=True)
class VtabTask:
    """One task: its folder in the usual archive, classes and test images."""

    folder: str
    num_labels: int
    test_examples: int


TASKS = {
    "cifar100": VtabTask("cifar", 100, 10_000),
    "caltech101": VtabTask("caltech101", 102, 6084),
    "dtd": VtabTask("dtd", 47, 1880),
    "flowers": VtabTask("oxford_flowers102", 102, 6149),
    "pets": VtabTask("oxford_iiit_pet", 37, 3669),
    "svhn": VtabTask("svhn", 10, 26_032),
    "sun397": VtabTask("sun397", 397, 21_750),
    "camelyon": VtabTask("patch_camelyon", 2, 32_768),
    "eurosat": VtabTask("eurosat", 10, 5400),
    "resisc45": VtabTask("resisc45", 45, 6300),
    "retinopathy": VtabTask("diabetic_retinopathy", 5, 42_670),
}

FACTS = {
    f"vtab/{name}": DataFacts(
        task.num_labels,
        1000,
        task.test_examples,
        None,
        f"the folder {task.folder} of the archive vtab-1k.zip that NOAH and FacT link to, a few GB for all tasks",
    )
    for name, task in TASKS.items()
}


def read(name: str, path: str | None, columns: Mapping[str, str]) -> Corpus:
    """The 1,000 training images (the last 200 for selection) and the test images, each the path of its file."""
    folder, task = _folder(name, path), _task(name)
    lists = [_lines(name, folder / file) for file in LISTS]
    train, val, test = (
        Split([folder / file for file, _ in lines], np.array([label for _, label in lines], dtype=np.int64))
        for lines in lists
    )
    for split in (train, val, test):
        if not 0 <= split.labels.min() <= split.labels.max() < task.num_labels:
            raise DataError(
                f"{folder} has labels from {split.labels.min()} to {split.labels.max()}, but {name} has "
                f"{task.num_labels} classes: give the folder of {name} in dataset.path."
            )
    everything = Split([*train.inputs, *val.inputs], np.concatenate([train.labels, val.labels]))
    images = {*train.inputs, *val.inputs, *test.inputs}
    return Corpus(
        "image",
        tuple(str(label) for label in range(task.num_labels)),
        everything,
        test,
        selection=np.arange(len(train), len(everything), dtype=np.int64),
        key=lambda file: file.relative_to(folder).as_posix(),
        source_hash=files_hash(folder / file for file in LISTS)[:32] + contents_hash(folder, images)[:32],
    )


def check(name: str, path: str | None, columns: Mapping[str, str]) -> None:
    """Refuse, in one sentence, a folder without the lists, or a list whose first image is not there."""
    folder = _folder(name, path)
    for file in LISTS:
        first = folder / _lines(name, folder / file)[0][0]
        if not first.is_file():
            raise DataNotFoundError(f"{folder / file} names {first}, which is not there: unpack the images beside it.")


def revision(name: str, path: str | None, columns: Mapping[str, str]) -> str:
    """The benchmark's own name: its lists have no versions."""
    return "vtab-1k"


def _task(name: str) -> VtabTask:
    return TASKS[name.removeprefix("vtab/")]


def _folder(name: str, path: str | None) -> Path:
    usual = f"unpack vtab-1k.zip, as NOAH and FacT link to it, and give dataset.path=.../vtab-1k/{_task(name).folder}"
    if path is None:
        raise DataNotFoundError(f"{name} is not downloaded by this project: {usual}.")
    folder = Path(path).expanduser()
    if (folder / _task(name).folder / LISTS[0]).is_file():  # the archive's own folder was given
        folder /= _task(name).folder
    missing = [file for file in LISTS if not (folder / file).is_file()]
    if missing:
        raise DataNotFoundError(f"dataset.path={path} has no {', '.join(missing)}, which {name} needs: {usual}.")
    return folder


def _lines(name: str, file: Path) -> list[tuple[str, int]]:
    lines = []
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{file} is no text in UTF-8: unpack the archive again.") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        image, _, label = line.strip().rpartition(" ")
        if not image or not re.fullmatch("[0-9]{1,9}", label):
            raise DataError(f'{file}, line {number}, is "{line[:100]}": a line of {name} is "relative/path label".')
        lines.append((image, int(label)))
    if not lines:
        raise DataError(f"{file} names no image: unpack the archive again.")
    return lines
