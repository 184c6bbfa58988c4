"""A user's own `table`: CSV or parquet files with a label beside one text, a pair of texts, or an image.

Under the path lie `train*` and one of `test*`, `val*`, `dev*` and `validation*`, with the ending .csv or .parquet; the
first of these that exists is the reported split. An image is a file's bytes (parquet) or its path below the folder.

What the labels are follows from the rows of both splits together. Words, true and false, and whole numbers are classes,
in sorted order. Numbers are a regression where one of them has a fraction, or where all are written with a decimal
point. So 0, 1, 2 beside 0.0, 1.0 are three classes, and 4 beside 4.5 a regression.
"""

import csv
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from surm.data.base import Corpus, Split, majority_baseline
from surm.data.hashing import contents_hash, files_hash
from surm.data.hub import DataFacts, ImageBytes, parquet_schema, read_column, read_parquet
from surm.shared.errors import DataError, DataNotFoundError

EVALUATIONS = ("test", "val", "dev", "validation")
ROLES = ("text", "text_pair", "image", "label")
EXAMPLE = "dataset.columns={text: sentence, label: sentiment}"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII)

FACTS: dict[str, DataFacts] = {}


@dataclass(frozen=True)
class Column:
    """One column of a split: its cells, the file and row of each, and, in parquet, the kind of its type."""

    name: str
    cells: list[Any]
    rows: list[tuple[Path, int]]
    kind: str = ""  # text | number | truth | another Arrow type; of a CSV file empty, as it has no types
    class_names: tuple[str, ...] = ()  # that a parquet file states for the numbers of its classes

    def row(self, index: int) -> str:
        """A row as sentences name it."""
        file, number = self.rows[index]
        return f"{file}, {'line' if file.suffix == '.csv' else 'row'} {number}"


def modality(columns: Mapping[str, str]) -> str:
    """`image` where an image column is named, else `text`."""
    return "image" if "image" in columns else "text"


def read(name: str, path: str | None, columns: Mapping[str, str]) -> Corpus:
    """Both splits; every named column must be filled in every row."""
    columns, files = _columns(columns), _files(path)
    check(name, path, columns)
    label_names, labels = _labels([_column(of_split, columns["label"]) for of_split in files.values()])
    if label_names:
        metrics: tuple[str, ...] = ("accuracy", "f1") if len(label_names) == 2 else ("accuracy",)
    else:
        metrics = ("spearman", "pearson")
    train, test = (_inputs(of_split, columns) for of_split in files.values())
    return Corpus(
        modality(columns),
        label_names,
        Split(train, labels[0]),
        Split(test, labels[1]),
        metrics=metrics,
        baselines=majority_baseline if label_names else lambda train, evaluation: {},
        source_hash=_hash(path, columns.get("image")),
    )


def check(name: str, path: str | None, columns: Mapping[str, str]) -> None:
    """Refuse, in one sentence, missing files, missing columns or a file without a row."""
    columns, files = _columns(columns), _files(path)
    for file in chain(*files.values()):
        names = _header(file) if file.suffix == ".csv" else parquet_schema(file)[0].names
        wanted = {role: column for role, column in columns.items() if names.count(column) != 1}
        if missing := [f"{role}={column}" for role, column in wanted.items() if column not in names]:
            raise DataError(
                f"{file} has the columns {', '.join(names)}, not {', '.join(missing)}: name them, as in {EXAMPLE}."
            )
        if wanted:
            raise DataError(f"{file} has several columns called {min(wanted.values())}: give each a name of its own.")
    for of_split in files.values():
        if not any(_has_row(file) for file in of_split):
            raise DataError(f"{of_split[0]} holds no row: give at least one.")


def revision(name: str, path: str | None, columns: Mapping[str, str]) -> str:
    """A user's own data are named by their content: the start of the hash over the files."""
    return _hash(path, _columns(columns).get("image") if columns else None)[:12]


def _columns(columns: Mapping[str, str]) -> dict[str, str]:
    columns = {"label": "label", **columns}
    if "image" not in columns:
        columns.setdefault("text", "text")
    unknown = [role for role in columns if role not in ROLES]
    if unknown:
        raise DataError(f"dataset.columns names {', '.join(unknown)}: choose from {', '.join(ROLES)}, as in {EXAMPLE}.")
    if ("text" in columns) == ("image" in columns) or ("text_pair" in columns and "text" not in columns):
        raise DataError(
            f"dataset.columns names {', '.join(columns)}: give text (with text_pair for a pair) or image, and label, "
            f"as in {EXAMPLE}."
        )
    return columns


def _files(path: str | None) -> dict[str, list[Path]]:
    if path is None:
        raise DataNotFoundError(
            "table is read from dataset.path=..., a folder with train.csv and test.csv (or .parquet), which was not "
            "given."
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataNotFoundError(f"dataset.path={path} is no folder: give the one with train.csv and test.csv.")
    found = {split: _matching(folder, split) for split in ("train", *EVALUATIONS)}
    evaluation = next((split for split in EVALUATIONS if found[split]), None)
    if not found["train"] or evaluation is None:
        raise DataNotFoundError(
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


# --- cells -----------------------------------------------------------------------------------------------------------


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, its header first, each with the number of its last line; empty lines are left out."""
    csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)  # a text may be longer than 128 KiB
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no table with a header line: it is not in UTF-8 ({error.reason}).") from None
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}, is no line of a table ({error}): write it again.") from None


def _header(file: Path) -> list[str]:
    for _, row in _csv_rows(file):
        return row
    raise DataError(f"{file} is no table with a header line: it is empty.")


def _has_row(file: Path) -> bool:
    if file.suffix == ".parquet":
        return bool(parquet_schema(file)[1])
    return sum(1 for _ in zip(_csv_rows(file), range(2), strict=False)) == 2


def _column(files: Sequence[Path], name: str) -> Column:
    """A column of all files of a split, without an empty cell.

    Raises `DataError` for an empty cell, and for files that disagree about the column's type.
    """
    parts = [_of_csv(file, name) if file.suffix == ".csv" else _of_parquet(file, name) for file in files]
    for file, part in zip(files, parts, strict=True):
        if (part.kind, part.class_names) != (parts[0].kind, parts[0].class_names):
            raise DataError(f"{file} has another type of {name} than {files[0]}: write both alike.")
        if gaps := [index for index, cell in enumerate(part.cells) if cell is None]:
            raise DataError(
                f"{file}: {len(gaps)} of {len(part.cells)} cells of {name} are empty, the first in "
                f"{part.row(gaps[0]).rpartition(', ')[2]}; fill them or drop the rows."
            )
    cells, rows = ([item for part in parts for item in getattr(part, field)] for field in ("cells", "rows"))
    return Column(name, cells, rows, parts[0].kind, parts[0].class_names)


def _of_csv(file: Path, name: str) -> Column:
    lines = _csv_rows(file)
    _, header = next(lines)
    position, cells, rows = header.index(name), [], []
    for number, row in lines:
        if len(row) > len(header):
            raise DataError(
                f"{file}, line {number}, has {len(row)} cells, but the header {len(header)}: put a text with commas "
                "into quotes."
            )
        cells.append(row[position] or None if position < len(row) else None)
        rows.append((file, number))
    return Column(name, cells, rows)


def _of_parquet(file: Path, name: str) -> Column:
    import pyarrow.types as types

    column = read_column(file, name)
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if types.is_string(kind) or types.is_large_string(kind):
        word = "text"
    elif types.is_boolean(kind):
        word = "truth"
    elif types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        word = "number"
    elif types.is_date(kind) or types.is_timestamp(kind):
        word = "date"
    else:
        word = str(kind)
    rows = [(file, number) for number in range(1, len(column) + 1)]
    return Column(name, column.to_pylist(), rows, word, _stated_names(file, name))


def _stated_names(file: Path, name: str) -> tuple[str, ...]:
    """The names of classes that `datasets` writes beside a column of their numbers."""
    try:
        features = json.loads((parquet_schema(file)[0].metadata or {})[b"huggingface"])["info"]["features"]
        names = features[name]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


# --- labels and inputs -----------------------------------------------------------------------------------------------


def _labels(columns: list[Column]) -> tuple[tuple[str, ...], list[Any]]:
    """Names of the classes, none for a regression, and the labels of each split; the rows of all decide which it is."""
    first, second = columns
    if first.kind and second.kind and first.kind != second.kind:
        raise DataError(
            f"The column {first.name} is {first.kind} in {first.rows[0][0]}, but {second.kind} in {second.rows[0][0]}: "
            "write both alike."
        )
    for column in columns:
        if column.kind not in ("", "text", "truth", "number"):
            raise DataError(
                f"The column {column.name} of {column.rows[0][0]} holds {column.kind}, which is no label: give words "
                "or numbers."
            )
    if first.class_names or second.class_names:
        return _numbered(columns)
    written = [[str(cell) for cell in column.cells] for column in columns]
    numbers = [cell.strip() for split in written for cell in split]
    if not all(map(NUMBER.fullmatch, numbers)) or not any(map(str.isdigit, "".join(numbers))):
        return _classes(columns, written)
    values = [[_number(column, index) for index in range(len(column.cells))] for column in columns]
    whole = all(value == int(value) for split in values for value in split)
    if whole and any(re.fullmatch("[+-]?[0-9]+", number) for number in numbers):
        return _classes(columns, [[int(value) for value in split] for split in values])
    return (), [np.array(split, dtype=np.float64) for split in values]


def _number(column: Column, index: int) -> Any:
    """A label as the number that it is: an int where it is whole, however large, else a float."""
    text = str(column.cells[index]).strip()
    if re.fullmatch("[+-]?[0-9]{1,18}", text):
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise DataError(f"{column.row(index)}: the label {text[:40]} is no finite number; correct it or drop the row.")
    return value


def _classes(columns: list[Column], values: list[list[Any]]) -> tuple[tuple[str, ...], list[Any]]:
    classes = sorted(set(values[0]))
    if len(classes) < 2:
        raise DataError(
            f"{columns[0].rows[0][0]}: the training rows have one label, {str(classes[0])[:40]}; a classification "
            "needs two or more."
        )
    number = {label: index for index, label in enumerate(classes)}
    for index, label in enumerate(values[1]):
        if label not in number:
            raise DataError(
                f"{columns[1].row(index)}: the label {str(label)[:40]} is in the reported rows but not in the training "
                "rows; add some."
            )
    return tuple(map(str, classes)), [np.array([number[label] for label in split], dtype=np.int64) for split in values]


def _numbered(columns: list[Column]) -> tuple[tuple[str, ...], list[Any]]:
    """Labels that are the numbers of classes whose names the files state."""
    first, second = columns
    names = first.class_names
    if second.class_names != names:
        raise DataError(
            f"{first.rows[0][0]} and {second.rows[0][0]} state other names for the classes of {first.name}: write both "
            "alike."
        )
    for column in columns:
        for index, cell in enumerate(column.cells):
            if not isinstance(cell, int) or not 0 <= cell < len(names):
                raise DataError(
                    f"{column.row(index)}: the label {cell} is the number of none of the {len(names)} classes that the "
                    "file states; correct it or drop the row."
                )
    return names, [np.array(column.cells, dtype=np.int64) for column in columns]


def _inputs(files: Sequence[Path], columns: Mapping[str, str]) -> Sequence[Any]:
    if "image" in columns:
        return _pictures(files, columns["image"])
    texts = [_texts(_column(files, columns[role])) for role in ("text", "text_pair") if role in columns]
    return texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))


def _texts(column: Column) -> list[str]:
    if column.kind not in ("", "text", "truth", "number", "date"):
        raise DataError(
            f"The column {column.name} of {column.rows[0][0]} holds {column.kind}, not text: join each cell into one "
            "text, or name another column."
        )
    return [str(cell) for cell in column.cells]


def _pictures(files: Sequence[Path], name: str) -> Sequence[Any]:
    """The files that a column of text names, or the bytes that it holds, read when they are asked for."""
    folder = files[0].parent
    paths = _picture_files(files, name)
    if paths is not None:
        return paths
    return ImageBytes(read_parquet({"rows": files})["rows"], name, folder)


def _picture_files(files: Sequence[Path], name: str) -> list[Path] | None:
    """The paths of a column of text; None for one that holds bytes."""
    if files[0].suffix == ".parquet" and str(parquet_schema(files[0])[0].field(name).type) not in (
        "string",
        "large_string",
    ):
        return None
    column = _column(files, name)
    paths = [files[0].parent / cell for cell in column.cells]
    if lost := [index for index, path in enumerate(paths) if not path.is_file()]:
        raise DataNotFoundError(
            f"{column.row(lost[0])}, names {paths[lost[0]]}, which is not there: give paths below {files[0].parent}."
        )
    return paths


def _hash(path: str | None, image: str | None) -> str:
    """Of the tables and, where they name files, of these."""
    files = _files(path)
    return _hash_of(tuple(tuple(of_split) for of_split in files.values()), image)


@cache
def _hash_of(files: tuple[tuple[Path, ...], ...], image: str | None) -> str:
    tables = list(chain(*files))
    paths = [_picture_files(of_split, image) for of_split in files] if image else []
    named = {path for of_split in paths for path in of_split or ()}
    return files_hash(tables)[: 32 if named else 64] + (contents_hash(tables[0].parent, named)[:32] if named else "")
