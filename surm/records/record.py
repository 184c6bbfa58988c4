"""Records: what was asked, what happened, where. One class writes and reads them; a damaged file is a sentence."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from surm.records.schema import check
from surm.records.storage import read_json, write_atomically, write_json
from surm.shared.errors import RecordError

BLOCKS = ("signature", "status", "asked", "happened", "where")  # in the file's order


@dataclass(frozen=True)
class Evaluation:
    """What a run answered: metric name, labels (N,), predictions (N,), and the loss of each example (N,).

    The loss is the log-loss in nats, or the squared error of a regression; None where a run kept none.
    """

    metric: str
    labels: NDArray[np.generic]
    predictions: NDArray[np.generic]
    losses: NDArray[np.generic] | None = None


LOSS_UNIT = 1e-4  # of the stored losses, whole numbers: half of the bytes of decimals


def write_predictions(
    path: Path, labels: Sequence[float], predictions: Sequence[float], losses: Sequence[float] | None = None
) -> None:
    """Write what a run answered, a line for each of the three; losses are rounded to four decimals.

    Raises:
        StorageError: the file cannot be written; an older one is as before.
        ValueError: a number is not finite.
    """
    columns = {"labels": list(labels), "predictions": list(predictions)}
    if losses is not None:
        columns["losses_in_1e-4"] = [_whole(loss / LOSS_UNIT) for loss in losses]
    lines = (
        f' "{name}": {json.dumps(values, separators=(",", ":"), allow_nan=False)}' for name, values in columns.items()
    )
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _whole(value: float) -> int:
    if not math.isfinite(value):
        raise ValueError(f"a loss of {value} is no number")
    return round(value)


@dataclass(frozen=True)
class Record:
    """One run, or one part of a study: what it was asked, what happened and where.

    `path` is the record's file. A run's predictions lie beside it, `predictions.json`, or
    `<signature>.predictions.json` among published records, and are read when first used.
    """

    path: Path
    signature: str
    status: str
    asked: dict[str, Any]
    happened: dict[str, Any]
    where: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record of a file, checked against `surm.records.schema`.

        Raises:
            FileNotFoundError: there is no such file.
            RecordError: why it is no record, in a few words.
        """
        stored = read_json(path)
        check(stored)
        return cls(path, **{block: stored[block] for block in BLOCKS})

    def write(self) -> None:
        """Write the record's file, whole or not at all.

        Raises:
            StorageError: it cannot be written; an older file is as before.
            ValueError: a number is not finite.
        """
        write_json(self.path, {block: getattr(self, block) for block in BLOCKS})

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def is_study(self) -> bool:
        """A part of a study without a backbone, not a run of a model."""
        return "study" in self.asked

    @property
    def seed(self) -> int:
        return int(self.asked["seed"])

    @property
    def metric(self) -> str:
        """Name of the metric that the tables report."""
        return str(self.happened["primary_metric"])

    @property
    def score(self) -> float:
        """The primary metric at the end of training, in percent."""
        return 100 * float(self.happened["metrics"][self.metric])

    @property
    def best_epoch_score(self) -> float:
        """The primary metric at the epoch that was best on the reported split, in percent: an optimistic number."""
        return 100 * float(self.happened["best_epoch_metrics"][self.metric])

    @property
    def request(self) -> str:
        """What was asked apart from the seed, as canonical text: equal for the seeds of one method."""
        return json.dumps({key: value for key, value in self.asked.items() if key != "seed"}, sort_keys=True)

    @property
    def predictions_path(self) -> Path:
        beside = "predictions.json" if self.path.name == "record.json" else f"{self.signature}.predictions.json"
        return self.path.with_name(beside)

    @property
    def evaluation(self) -> Evaluation | None:
        """Labels and predictions of the evaluation examples; None when the run kept none that can be read."""
        return self._predictions[0]

    @property
    def damage(self) -> str:
        """A sentence about predictions that cannot be read; empty where there is nothing to say."""
        return self._predictions[1]

    @cached_property
    def _predictions(self) -> tuple[Evaluation | None, str]:
        if not self.finished or self.is_study:
            return None, ""
        try:
            stored = read_json(self.predictions_path)
            labels, predictions = (np.asarray(stored[key], dtype=float) for key in ("labels", "predictions"))
            if labels.shape != predictions.shape or labels.ndim != 1:
                raise RecordError("labels and predictions differ in number")
            losses = stored.get("losses_in_1e-4")
            losses = None if losses is None else LOSS_UNIT * np.asarray(losses, dtype=float)
            if losses is not None and losses.shape != labels.shape:
                raise RecordError("labels and losses differ in number")
        except FileNotFoundError:
            return None, ""
        except (RecordError, KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            file = self.predictions_path
            return None, f"{file} is damaged ({reason}): the run's score counts, but gives no interval."
        return Evaluation(self.metric, labels, predictions, losses), ""


def read_record(path: Path) -> Record | None:
    """The record of a file, or None where there is none.

    Raises:
        RecordError: the file is not a record.
    """
    try:
        return Record.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RecordError as damage:
        raise RecordError(f"{path} is not a whole record ({damage}): move it away and start the run again.") from None


class Records(dict[str, Record]):
    """Records by signature; `damaged` names the files that are not whole records, each with the reason."""

    def __init__(self, records: Mapping[str, Record], damaged: Mapping[Path, str]) -> None:
        super().__init__(records)
        self.damaged = dict(damaged)

    @property
    def complaints(self) -> list[str]:
        """One sentence for each damaged file."""
        return [
            f"{path} is left out, it is not a whole record ({reason}): move it away and start the run again."
            for path, reason in self.damaged.items()
        ]


def read_records(*folders: Path, check: Callable[[Record], object] | None = None) -> Records:
    """All records below `folders` by signature: `<signature>/record.json` of runs or `<signature>.json` as published.

    A damaged file is left out and named in `damaged`; of two records of one signature the later folder's counts.

    Args:
        folders: those that do not exist hold no record.
        check: looks at what the reader of the records rests on beyond them all, and raises RecordError.
    """
    records: dict[str, Record] = {}
    damaged: dict[Path, str] = {}
    for folder in folders:
        for file in sorted(folder.glob("*/record.json")) + sorted(folder.glob("*.json")):
            if file.name.endswith(".predictions.json"):
                continue
            try:
                record = Record.read(file)
                if check is not None:
                    check(record)
            except (RecordError, FileNotFoundError) as error:
                damaged[file] = str(error)
            else:
                records[record.signature] = record
    return Records(records, damaged)


def unrun(signature: str, asked: Mapping[str, Any]) -> Record:
    """A planned run that has no record: what it would be asked, and nothing else."""
    return Record(Path(), signature, "not run", dict(asked), {}, {})
