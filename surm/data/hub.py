"""Parquet files of the Hugging Face hub, from a local folder or downloaded: one path, so both have one content hash."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surm.data.base import Labels
from surm.data.hashing import files_hash
from surm.shared.errors import DataError, DataNotFoundError

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import ChunkedArray, Schema


@dataclass(frozen=True)
class DataFacts:
    """What is known of a data set of the paper's scale without reading it.

    `tokens` is the length, including special tokens, at which a text is cut; None for images. `download` says in words
    what must be fetched.
    """

    num_labels: int
    train_examples: int
    evaluation_examples: int
    tokens: int | None
    download: str
    metric: str = "accuracy"  # of the tables


@dataclass(frozen=True)
class HubSource:
    """A folder of a data set repository that holds `<split>-*.parquet`, at one commit."""

    repository: str
    revision: str
    folder: str

    @property
    def command(self) -> str:
        """What a user types to fetch it."""
        target = f"data/{self.repository.split('/')[1]}"
        return (
            f"`hf download {self.repository} --repo-type dataset --revision {self.revision} "
            f'--include "{self.folder}/*" --local-dir {target}`, then dataset.path={target}/{self.folder}'
        )


Files = dict[str, list[Path]]  # of each split, in order of name


def local_copy(name: str) -> str | None:
    """The folder of a data set below `$SURM_LOCAL_DATA`, which stands in for the hub where it is there."""
    root = os.environ.get("SURM_LOCAL_DATA")
    folder = Path(root).expanduser() / name if root else None
    return str(folder) if folder and folder.is_dir() else None


def parquet_files(name: str, source: HubSource, splits: Sequence[str], path: str | None) -> Files:
    """The files of each split: below `path`, else of the local copy, else downloaded into the hub's own cache.

    Raises `DataNotFoundError`, one sentence with the command that helps, without network, folder or files.
    """
    path = path or local_copy(name)
    if path is None:
        folder = _snapshot(name, source, splits, download=True)
    else:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise DataNotFoundError(
                f"dataset.path={path} is no folder: give the folder with the parquet files of {name}, made by "
                f"{source.command}."
            )
        if (folder / source.folder).is_dir():  # the repository's own folder was given
            folder /= source.folder
    files = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in splits}
    missing = [split for split, found in files.items() if not found]
    if missing:
        raise DataNotFoundError(
            f"{folder} has no {' and no '.join(f'{split}-*.parquet' for split in missing)}, which {name} needs; "
            f"{source.command} brings them."
        )
    return files


def check_source(name: str, source: HubSource, splits: Sequence[str], path: str | None, columns: Sequence[str]) -> None:
    """Refuse, in one sentence, what could not be read; files that are still to be downloaded pass, unseen.

    A plan of runs is checked too, and may be made where there is no network.
    """
    path = path or local_copy(name)
    if path is None:
        try:
            path = str(_snapshot(name, source, splits, download=False))
        except FileNotFoundError:
            return
    check_columns(name, parquet_files(name, source, splits, path), columns)


def check_columns(name: str, files: Mapping[str, Iterable[Path]], columns: Iterable[str]) -> None:
    """Refuse, in one sentence, parquet files without these columns or without a row; reads their footers alone."""
    for split, of_split in files.items():
        rows = 0
        for path in of_split:
            schema, of_file = parquet_schema(path)
            rows += of_file
            missing = [column for column in columns if column not in schema.names]
            if missing:
                raise DataError(
                    f"{path} has the columns {', '.join(schema.names)}, but {name} needs {', '.join(missing)}: "
                    "give the folder of the right data set in dataset.path."
                )
        if rows == 0:
            raise DataError(f"The {split} files of {name} hold no row: download them again.")


def parquet_schema(file: Path) -> "tuple[Schema, int]":
    """The columns with their types, and the number of rows, from the footer alone."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as opened:
            return opened.schema_arrow, opened.metadata.num_rows
    except (ArrowException, OSError):
        raise DataError(f"{file} is no parquet file, or a part of one: write or download it again.") from None


def read_column(file: Path, name: str) -> "ChunkedArray":
    """One column of one file."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        return read_table(file, columns=[name], partitioning=None).column(name)
    except (ArrowException, OSError, KeyError) as error:
        raise DataError(f"{file} is damaged ({one_line(error)}): write or download it again.") from None


def read_parquet(files: Mapping[str, Sequence[Path]]) -> "dict[str, Dataset]":
    """The rows of each split, mapped into memory."""
    from datasets import load_dataset

    found = {}
    for split, of_split in files.items():
        try:
            found[split] = load_dataset("parquet", data_files={split: [str(file) for file in of_split]}, split=split)
        except Exception as error:  # of a damaged page, of types that differ; no common class
            raise DataError(
                f"{of_split[0].parent}: the {split} files cannot be read together ({one_line(error)}): write or "
                "download them again, with the same columns and types in each."
            ) from None
    return found


def one_line(error: BaseException) -> str:
    """What a library says is wrong, short enough for a sentence."""
    return " ".join(str(error.__cause__ or error).split())[:200].rstrip(".:") or type(error).__name__


def source_hash(files: Mapping[str, Iterable[Path]]) -> str:
    """sha256 over the bytes of every file, split by split in order of name."""
    return files_hash(path for of_split in files.values() for path in of_split)


def check_cells(name: str, split: str, rows: "Dataset", column: str, *kinds: str) -> None:
    """Refuse, in one sentence, a column that is not of one of Arrow's types, or that has an empty cell.

    kinds: the starts of the types' names, such as "string" or "int".
    """
    found = rows.data.column(column)
    if not str(found.type).startswith(kinds):
        raise DataError(
            f"The column {column} of the {split} files of {name} holds {found.type}, not {' or '.join(kinds)}: give "
            "the folder of the right data set in dataset.path."
        )
    if found.null_count:
        row = found.is_null().to_pylist().index(True) + 1
        raise DataError(
            f"The column {column} of the {split} files of {name} is empty in {found.null_count} of {len(found)} rows, "
            f"the first of which is row {row}: fill them or drop the rows."
        )


def integer_labels(name: str, split: str, rows: "Dataset", column: str, num_labels: int) -> Labels:
    """A column of class indices; `DataError`, one sentence, for one that is not below `num_labels`."""
    check_cells(name, split, rows, column, "int", "uint")
    labels = np.asarray(rows.with_format("numpy")[column][:], dtype=np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_labels:
        raise DataError(
            f"The {split} files: {name} has labels from {labels.min()} to {labels.max()}, but {num_labels} classes: "
            "give the folder of the right data set in dataset.path."
        )
    return labels


def class_names(rows: "Dataset", column: str, num_labels: int) -> tuple[str, ...]:
    """The names that the files state for the classes; their numbers where they state none."""
    names = getattr(rows.features[column], "names", None) or [str(label) for label in range(num_labels)]
    return tuple(names)


class ImageBytes(Sequence[Any]):
    """The encoded image files of one column, as bytes, each read when it is asked for.

    folder: where the file lies that a row names in place of bytes, as `datasets` allows; None: there is none.
    """

    def __init__(self, rows: "Dataset", column: str, folder: Path | None = None) -> None:
        from datasets import Image

        undecoded = isinstance(rows.features[column], Image)
        self.rows = rows.cast_column(column, Image(decode=False)) if undecoded else rows
        self.column, self.folder = column, folder
        kind = str(self.rows.data.column(column).type)
        if not (kind.startswith(("binary", "large_binary")) or (kind.startswith("struct") and "bytes:" in kind)):
            raise DataError(f"The column {column} holds {kind}, not the bytes of image files: name another column.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        value = self.rows[int(index)][self.column]
        if isinstance(value, bytes):
            return value
        content, name = (value or {}).get("bytes"), (value or {}).get("path")
        if content is None and name and self.folder and (self.folder / name).is_file():
            return self.folder / name
        if content is None:
            raise DataError(
                f"Row {int(index) + 1} of {self.column} holds no image{f', nor is {name} there' if name else ''}: fill "
                "it or drop the row."
            )
        return content


def _snapshot(name: str, source: HubSource, splits: Sequence[str], *, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        root = snapshot_download(
            source.repository,
            repo_type="dataset",
            revision=source.revision,
            allow_patterns=[f"{source.folder}/{split}-*.parquet" for split in splits],
            local_files_only=not download,
        )
    except Exception as error:  # what the hub's client raises without network has no common class
        reason = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else type(error).__name__
        raise DataNotFoundError(
            f"{name} is not on this machine and could not be downloaded from {source.repository} ({reason}): where "
            f"there is a network, {source.command}."
        ) from None
    return Path(root) / source.folder
