"""A user's own `table`: CSV or parquet files with a label beside one text, a pair of texts, or an image.

Under the path lie `train*` and one of `test*`, `val*`, `dev*` and `validation*`, with the ending .csv or .parquet; the
first of these that exists is the reported split. Labels are words or whole numbers (classes, in sorted order), or
numbers with a decimal point (a regression). An image is a file's bytes (parquet) or its path below the folder.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surm.data.base import Corpus, Split, files_hash, majority_baseline
from surm.data.hub import DataFacts, ImageBytes, check_columns

if TYPE_CHECKING:
    from datasets import Dataset

EVALUATIONS = ("test", "val", "dev", "validation")
ROLES = ("text", "text_pair", "image", "label")
EXAMPLE = "dataset.columns={text: sentence, label: sentiment}"

EMPTY_CELLS = {"keep_default_na": False, "na_values": [""]}  # else the word NA, or null, would be none

FACTS: dict[str, DataFacts] = {}


def modality(columns: Mapping[str, str]) -> str:
    """`image` where an image column is named, else `text`."""
    return "image" if "image" in columns else "text"


def read(name: str, path: str | None, columns: Mapping[str, str]) -> Corpus:
    """Both splits; every named column must be filled in every row."""
    columns, files = _columns(columns), _files(path)
    check(name, path, columns)
    from datasets import load_dataset

    train, test = (
        load_dataset(
            _format(of_split),
            data_files=[str(file) for file in of_split],
            split="train",
            **(EMPTY_CELLS if _format(of_split) == "csv" else {}),
        )
        for of_split in files.values()
    )
    for split, rows in zip(files, (train, test), strict=True):
        _refuse_gaps(rows, columns, files[split][0])
    label_names, (train_labels, test_labels) = _labels(train, test, columns["label"])
    if label_names:
        metrics: tuple[str, ...] = ("accuracy", "f1") if len(label_names) == 2 else ("accuracy",)
    else:
        metrics = ("spearman", "pearson")
    folder = files["train"][0].parent
    return Corpus(
        modality(columns),
        label_names,
        Split(_inputs(train, columns, folder), train_labels),
        Split(_inputs(test, columns, folder), test_labels),
        metrics=metrics,
        baselines=majority_baseline if label_names else lambda train, evaluation: {},
        source_hash=_hash(path),
    )


def check(name: str, path: str | None, columns: Mapping[str, str]) -> None:
    """Refuse, in one sentence, missing files, missing columns or a file without a row."""
    columns, files = _columns(columns), _files(path)
    for of_split in files.values():
        if _format(of_split) == "parquet":
            _check_names(of_split[0], _parquet_names(of_split[0]), columns)
            check_columns(name, {"": of_split}, ())
        for file in of_split if _format(of_split) == "csv" else []:
            import pandas

            try:
                head = pandas.read_csv(file, nrows=1)
            except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
                raise ValueError(f"{file} is no table with a header line: {error}.") from None
            _check_names(file, list(head.columns), columns)
            if head.empty:
                raise ValueError(f"{file} holds no row: give at least one.")


def revision(name: str, path: str | None) -> str:
    """A user's own data are named by their content: the start of the hash over the files."""
    return _hash(path)[:12]


def _columns(columns: Mapping[str, str]) -> dict[str, str]:
    columns = {"label": "label", **columns}
    if "image" not in columns:
        columns.setdefault("text", "text")
    unknown = [role for role in columns if role not in ROLES]
    if unknown:
        raise ValueError(
            f"dataset.columns names {', '.join(unknown)}: choose from {', '.join(ROLES)}, as in {EXAMPLE}."
        )
    if ("text" in columns) == ("image" in columns) or ("text_pair" in columns and "text" not in columns):
        raise ValueError(
            f"dataset.columns names {', '.join(columns)}: give text (with text_pair for a pair) or image, and label, "
            f"as in {EXAMPLE}."
        )
    return columns


def _files(path: str | None) -> dict[str, list[Path]]:
    if path is None:
        raise FileNotFoundError(
            "table is read from dataset.path=..., a folder with train.csv and test.csv (or .parquet), which was not "
            "given."
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset.path={path} is no folder: give the one with train.csv and test.csv.")
    found = {split: _matching(folder, split) for split in ("train", *EVALUATIONS)}
    evaluation = next((split for split in EVALUATIONS if found[split]), None)
    if not found["train"] or evaluation is None:
        raise FileNotFoundError(
            f"dataset.path={path} has no {'train*' if not found['train'] else 'test*, val*, dev* or validation*'} "
            "that ends in .csv or .parquet: name the files so."
        )
    return {"train": found["train"], evaluation: found[evaluation]}


def _matching(folder: Path, split: str) -> list[Path]:
    """Files of one format whose name starts with the split; parquet where there are both."""
    for ending in (".parquet", ".csv"):
        if files := sorted(file for file in folder.glob(f"{split}*{ending}") if file.is_file()):
            return files
    return []


def _format(files: list[Path]) -> str:
    return files[0].suffix[1:]


def _parquet_names(file: Path) -> list[str]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_schema

    try:
        return list(read_schema(file).names)
    except ArrowInvalid:
        raise ValueError(f"{file} is no parquet file, or a part of one: write it again.") from None


def _check_names(file: Path, found: list[str], columns: Mapping[str, str]) -> None:
    missing = [f"{role}={column}" for role, column in columns.items() if column not in found]
    if missing:
        raise ValueError(
            f"{file} has the columns {', '.join(found)}, not {', '.join(missing)}: name them, as in {EXAMPLE}."
        )


def _refuse_gaps(rows: "Dataset", columns: Mapping[str, str], file: Path) -> None:
    for column in columns.values():
        gaps = rows.data.column(column).null_count
        if gaps:
            raise ValueError(f"{file}: {gaps} of {len(rows)} cells of {column} are empty; fill them or drop the rows.")


def _labels(train: "Dataset", test: "Dataset", column: str) -> tuple[tuple[str, ...], list[Any]]:
    """Names of the classes, none for a regression, and the labels of both splits."""
    values = [rows.with_format(None)[column][:] for rows in (train, test)]
    if any(isinstance(value, float) for split in values for value in split):
        return (), [np.asarray(split, dtype=np.float64) for split in values]
    stated = getattr(train.features[column], "names", None)
    classes = list(range(len(stated))) if stated else sorted(set(values[0]))
    if len(classes) < 2:
        raise ValueError(f"The training rows have one label, {classes[0]}: a classification needs two or more.")
    if unknown := set(values[1]) - set(classes):
        raise ValueError(
            f"The label {min(unknown, key=str)} is in the reported rows but not in the training rows: add some."
        )
    index = {label: number for number, label in enumerate(classes)}
    labels = [np.array([index[value] for value in split], dtype=np.int64) for split in values]
    return tuple(stated or map(str, classes)), labels


def _inputs(rows: "Dataset", columns: Mapping[str, str], folder: Path) -> Any:
    if "image" in columns:
        if getattr(rows.features[columns["image"]], "dtype", None) in ("string", "large_string"):
            return [folder / file for file in rows[columns["image"]]]
        return ImageBytes(rows, columns["image"])
    texts = [[str(text) for text in rows[columns[role]]] for role in ("text", "text_pair") if role in columns]
    return texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))


def _hash(path: str | None) -> str:
    return _hash_of(tuple(file for of_split in _files(path).values() for file in of_split))


@cache
def _hash_of(files: tuple[Path, ...]) -> str:
    return files_hash(files)
