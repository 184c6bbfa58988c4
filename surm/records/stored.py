"""Record files as typed rows, and the name of the method that a record's request stands for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surm.methods.names import label


@dataclass(frozen=True)
class Evaluation:
    """What a run answered: metric name, labels (N,) and predictions (N,)."""

    metric: str
    labels: NDArray[np.generic]
    predictions: NDArray[np.generic]


@dataclass(frozen=True)
class Record:
    """One run: what it was asked, what happened and where; predictions are read when first used.

    `path` is the record's file; its predictions lie beside it (`predictions.json`, or
    `<signature>.predictions.json` among published records).
    """

    path: Path
    signature: str
    status: str
    asked: dict[str, Any]
    happened: dict[str, Any]
    where: dict[str, Any]

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

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """Labels and predictions of the evaluation examples; None when the run kept none that can be read."""
        return self._predictions[0]

    @property
    def damage(self) -> str:
        """A sentence about predictions that cannot be read; empty where there is nothing to say."""
        return self._predictions[1]

    @cached_property
    def _predictions(self) -> tuple[Evaluation | None, str]:
        file = self.predictions_path
        if not self.finished or self.is_study or not file.is_file():
            return None, ""
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            labels, predictions = (np.asarray(stored[key], dtype=float) for key in ("labels", "predictions"))
            if labels.shape != predictions.shape or labels.ndim != 1:
                raise ValueError("labels and predictions differ in number")
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, f"{file} is damaged ({_in_words(error)}): the run's score counts, but gives no interval."
        return Evaluation(self.metric, labels, predictions), ""


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


def read_records(*folders: Path) -> Records:
    """All records below `folders` by signature: `<signature>/record.json` of runs or `<signature>.json` as published.

    A damaged file is left out and named in `damaged`; of two records of one signature the later folder's counts.
    """
    records: dict[str, Record] = {}
    damaged: dict[Path, str] = {}
    for folder in folders:
        for file in sorted(folder.glob("*/record.json")) + sorted(folder.glob("*.json")):
            if file.name.endswith(".predictions.json"):
                continue
            try:
                record = _read(file)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                damaged[file] = _in_words(error)
            else:
                records[record.signature] = record
    return Records(records, damaged)


_COUNTS = ("trainable_parameters", "head_parameters", "evaluation_examples")


def _read(path: Path) -> Record:
    """Read a record and touch what the tables rest on, so that a damaged one is met here and nowhere else."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(stored, dict):
        raise TypeError("no JSON object")
    record = Record(path, *(stored[key] for key in ("signature", "status", "asked", "happened", "where")))
    if not all(isinstance(block, dict) for block in (record.asked, record.happened, record.where)):
        raise TypeError("a block is no JSON object")
    if record.is_study:
        _ = record.asked["study"]["name"]
        if record.finished and not ("rows" in record.happened or "settings" in record.happened):
            raise KeyError("rows")
        return record
    _ = label(record.asked), record.seed, record.asked["model"]["name"], record.asked["dataset"]["name"]
    _ = float(record.asked["optim"]["lr"])
    if record.finished:
        counts = (int(record.happened[name]) for name in _COUNTS)
        if not isinstance(record.happened["history"], list):
            raise TypeError("'history' is no list")
        if not all(map(isfinite, (record.score, record.best_epoch_score, *counts))):
            raise ValueError("a score is no number")
    return record


def _in_words(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    match error:
        case json.JSONDecodeError():
            return f"no JSON from line {error.lineno}"
        case UnicodeDecodeError():
            return "no text"
        case KeyError():
            return f"{error} is missing"
        case OSError():
            return error.strerror or "cannot be read"
        case _:
            return str(error)


def unrun(signature: str, asked: Mapping[str, Any]) -> Record:
    """A planned run that has no record: what it would be asked, and nothing else."""
    return Record(Path(), signature, "not run", dict(asked), {}, {})


# --- names of methods -------------------------------------------------------------------------------------------------
