"""A user's folder of documents: which files there are, their lines, and which documents are held out."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surm.data.base import Split, complement, digest, holdout
from surm.data.hashing import files_hash
from surm.shared.errors import DataError, DataNotFoundError

EVALUATIONS = ("test", "val", "dev", "validation")
SHARE = 10  # one document of so many is held out, where no file is named as the reported split


def files_of(name: str, path: str | None, endings: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Files of training and of the reported split, by how their names begin; without such names all, and none."""
    allowed = ", ".join(endings)
    if path is None:
        raise DataNotFoundError(f"{name} is read from dataset.path=..., a folder of {allowed}, which was not given.")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataNotFoundError(f"dataset.path={path} is no folder: give one of {allowed}.")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in endings and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        raise DataNotFoundError(f"dataset.path={path} holds no file that ends in {allowed}: give some.")
    train = [file for file in files if file.name.startswith("train")]
    test = [file for file in files if file.name.startswith(EVALUATIONS)]
    if bool(train) != bool(test):
        lacking, there = ("test*, val*, dev* or validation*", train) if train else ("train*", test)
        raise DataNotFoundError(f"dataset.path={path} has {there[0].name} but no {lacking}: name files of both so.")
    return (train, test) if train else (files, [])


def folder_hash(name: str, path: str | None, endings: Sequence[str]) -> str:
    """sha256 over the files of both splits."""
    train, test = files_of(name, path, endings)
    return files_hash([*train, *test])


def read_text(file: Path) -> str:
    """The file's text; refuses what is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text: it is not in UTF-8 ({error.reason}).") from None


def json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place as sentences name it; empty lines are left out."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{place}, is no JSON: write one object a line.") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}, holds {type(row).__name__}: write one object a line, as in {{...}}.")
        yield place, row


def read_splits(
    name: str, path: str | None, endings: Sequence[str], documents: Callable[[Path], Iterable[Any]], what: str
) -> tuple[Split, Split]:
    """Both splits of a folder: the `documents` of each file, of which `what` is one."""
    files = files_of(name, path, endings)
    train, test = ([one for file in part for one in documents(file)] for part in files)
    for part, found in zip(files, (train, test), strict=True):
        if part and not found:
            raise DataError(f"{part[0]} holds no {what}: give some.")
    return _splits(path, train, test)


def _splits(path: str | None, train: Sequence[Any], test: Sequence[Any]) -> tuple[Split, Split]:
    """Both splits; where there is no `test`, a tenth of the documents by sha256, equal ones on one side."""
    if not test:
        labels = np.zeros(len(train), dtype=np.int64)
        held_out = holdout([digest(one) for one in train], labels, max(1, len(train) // SHARE), "test")
        rest = complement(held_out, len(train))
        if not len(rest):
            raise DataError(
                f"dataset.path={path} holds one document, of which none can be held out: give train* and test* files, "
                "or several documents."
            )
        train, test = [train[i] for i in rest], [train[i] for i in held_out]
    first, second = (Split(list(part), np.zeros(len(part), dtype=np.int64)) for part in (train, test))
    return first, second
