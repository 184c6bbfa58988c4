"""`synapse`: organs in slices of abdominal CT, in the layout of TransUNet's preparation (Chen et al. 2021).

Below the path lie `train_npz/<case>_slice<number>.npz`, one slice each, and `test_vol_h5/<case>.npy.h5`, one volume
each; both hold `image`, grey levels in 0..1, and `label`, 0 for the background and 1 to 8 for the organs.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surm.data.base import Corpus, Split, holdout
from surm.data.hashing import contents_hash
from surm.data.hub import DataFacts
from surm.data.segmentation import Masks, Slice, by_position
from surm.shared.errors import DataError, DataNotFoundError, UserError, first_line
from surm.shared.paths import cache_folder

# By number, from 1. The script of SAMed numbers the organs otherwise; then the names are wrong, and no mean is.
ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
LAYOUT = (
    "synapse is read from dataset.path=..., a folder with train_npz/*.npz and test_vol_h5/*.h5 as TransUNet's "
    "preparation of the Synapse multi-organ CT makes them"
)
CHECK = 2  # raise it when the check of the files changes

FACTS = {
    "synapse": DataFacts(
        9,
        2212,
        1567,
        None,
        "30 CT volumes of synapse.org (syn3193805; an account is needed), prepared as in Beckschen/TransUNet",
        "dice",
    )
}


def read(name: str, path: str | None, columns: Mapping[str, str]) -> Corpus:
    """Slices of the training volumes, and of the test volumes; the last fifth of the former chooses settings."""
    root, train, test = _files(path)
    content = contents_hash(root, [*train, *test])
    _check_once(content, train, test)
    cases = [_case(file) for file in train]
    number = {case: index for index, case in enumerate([*dict.fromkeys(cases), *map(_case, test)])}
    volumes = Volumes(test)
    labels = np.array([number[case] for case in cases], dtype=np.int64)
    objective = Masks(ORGANS)
    return Corpus(
        "image",
        ("background", *ORGANS),
        Split(Slices(train), labels),
        Split(volumes, np.array([number[_case(file)] for file, _ in volumes.places], dtype=np.int64)),
        selection=holdout(cases, np.zeros_like(labels), len(train) // 5, "synapse:selection"),
        metrics=objective.metrics,
        baselines=partial(by_position, organs=len(ORGANS)),
        key=_key,
        source_hash=content,
        objective=objective,
    )


def check(name: str, path: str | None, columns: Mapping[str, str]) -> None:
    """Refuse, in one sentence, a path without the files; what they hold is looked at when they are read."""
    _files(path)


def revision(name: str, path: str | None, columns: Mapping[str, str]) -> str:
    """Of the preparation, and how masks are read; the record of a run holds the hash of the files."""
    return "transunet-2"


class Slices(Sequence[Slice]):
    """Training slices, read when they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        file = self.files[index]
        with _whole(file), np.load(file, allow_pickle=False) as arrays:
            return _slice(file, arrays["image"], arrays["label"])


class Volumes(Sequence[Slice]):
    """The slices of volumes one after another, read when they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.places = [(file, index) for file in files for index in range(_read_volume(file, _depth))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        file, place = self.places[index]
        return _read_volume(file, partial(_slice_of, file, place))


# --- files ------------------------------------------------------------------------------------------------------------


def _files(path: str | None) -> tuple[Path, list[Path], list[Path]]:
    """The folder, its training slices and its test volumes."""
    if path is None:
        raise DataNotFoundError(f"{LAYOUT}, which was not given; it is {FACTS['synapse'].download}.")
    root = Path(path).expanduser()
    train, test = sorted((root / "train_npz").glob("*.npz")), sorted((root / "test_vol_h5").glob("*.h5"))
    for found, kind in ((train, "train_npz/*.npz"), (test, "test_vol_h5/*.h5")):
        if not found:
            raise DataNotFoundError(f"dataset.path={path} has no {kind}: {LAYOUT}.")
    cases = {_case(file) for file in train}
    if len(cases) < 2:
        raise DataError(f"{root / 'train_npz'} holds slices of one case: give two or more, since settings need one.")
    if both := sorted(cases & set(map(_case, test))):
        raise DataError(f"{root} holds {both[0]} among the training slices and the test volumes: leave it in one.")
    return root, train, test


def _case(file: Path) -> str:
    """Of case0005_slice012.npz and of case0005.npy.h5: case0005."""
    case = re.sub(r"_slice\d+$", "", file.name.split(".")[0])
    if file.suffix == ".npz" and case == file.stem:
        raise DataError(f"{file} is not named as <case>_slice<number>.npz, so that its volume is not known: rename it.")
    return case


def _check_once(content: str, train: list[Path], test: list[Path]) -> None:
    """Read each file once; below the cache folder it is kept that they are whole.

    Raises:
        DataError: one of them is not a slice or a volume, of the size of the others; a case has no organ.
    """
    marker = cache_folder() / "synapse" / f"{content}-{CHECK}"
    if marker.exists():
        return
    slices = Slices(train)
    size = slices[0].mask.shape
    first: dict[str, Path] = {}  # file of a case
    with_organs: set[str] = set()
    of_volumes = ((volume, raw) for volume in test for raw in Volumes([volume]))
    for file, raw in chain(zip(train, slices, strict=True), of_volumes):
        if raw.mask.shape != size:
            raise DataError(f"{file} holds slices of {raw.mask.shape}, others of {size}: give all one size.")
        case = _case(file)
        first.setdefault(case, file)
        if raw.mask.any():
            with_organs.add(case)
    for case, file in first.items():
        if case not in with_organs:
            raise DataError(f"{file}: {case} holds no organ, so that nothing in it can be scored: take it out.")
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError:  # read-only: checked again the next time
        pass


@contextmanager
def _whole(file: Path) -> Any:
    """Whatever a file that is no such file raises, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of NumPy, zipfile and h5py, which have no common class
        raise DataError(
            f"{file} does not hold the arrays image and label of TransUNet's preparation ({first_line(error)}): fetch "
            "or prepare it again."
        ) from None


def _read_volume(file: Path, what: Callable[[Any], Any]) -> Any:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{file} is read with the package h5py: `pip install h5py`.") from None
    with _whole(file), h5py.File(file, "r") as volume:
        return what(volume)


def _depth(volume: Any) -> int:
    if volume["image"].ndim != 3 or volume["image"].shape != volume["label"].shape:
        raise ValueError(f"shapes {volume['image'].shape} and {volume['label'].shape} of no volume")
    depth: int = volume["image"].shape[0]
    return depth


def _slice_of(file: Path, place: int, volume: Any) -> Slice:
    return _slice(file, volume["image"][place], volume["label"][place])


def _slice(file: Path, image: NDArray[Any], label: NDArray[Any]) -> Slice:
    """In whole grey levels: 400 Hounsfield units in 0..1 become 255 steps."""
    if image.ndim != 2 or image.shape != label.shape:
        raise DataError(f"{file}: image {image.shape} and label {label.shape} are not two pictures of one size.")
    if not (image.min() >= 0 and image.max() <= 1):  # not a number fails both
        raise DataError(
            f"{file}: image holds values from {image.min():g} to {image.max():g}: clip Hounsfield units to -125..275 "
            "and scale them to 0..1."
        )
    if (strangers := np.setdiff1d(label, np.arange(len(ORGANS) + 1))).size:
        raise DataError(f"{file}: label holds {strangers[0]:g}: number the {len(ORGANS)} organs from 1, background 0.")
    return Slice(np.rint(image * 255).astype(np.uint8), label.astype(np.uint8))


def _key(raw: Slice) -> str:
    return hashlib.sha256(raw.image.tobytes() + raw.mask.tobytes()).hexdigest()
