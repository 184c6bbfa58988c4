"""An experiment as a table: typed columns in pandas, then Markdown for people and CSV for programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from surm.records.record import Record
from surm.report.experiments import REFERENCE, Experiment, Method

MEBIBYTE = 2**20
COLUMNS: dict[str, tuple[str, str]] = {  # column -> (Markdown heading, number format)
    "method": ("method", ""),
    "trainable_parameters": ("trainable parameters, without head", ",.0f"),
    "head_parameters": ("head parameters", ",.0f"),
    "mean": ("mean (%)", ".2f"),
    "sd": ("sd", ".2f"),
    "n": ("n", ".0f"),
    "difference": (f"difference to {REFERENCE} (points)", "+.2f"),
    "low": ("from", "+.2f"),
    "high": ("to", "+.2f"),
    "best_epoch_mean": ("best epoch on the reported split (not selected honestly, %)", ".2f"),
    "seconds_per_step": ("seconds per step", ".3f"),
    "peak_memory_mib": ("peak memory (MiB)", ",.0f"),
    "learning_rate": ("learning rate", "g"),
    "note": ("note", ""),
}


def table(experiment: Experiment) -> pd.DataFrame:
    """One row for each method: the columns of `COLUMNS`; a number that cannot be had is missing, `note` says why."""
    reference = experiment.method(REFERENCE)
    return pd.DataFrame([row_of(method, reference) for method in experiment.methods], columns=list(COLUMNS))


def row_of(method: Method, reference: Method | None) -> dict[str, Any]:
    """The row of `table` for one method; what is not known of it is left out."""
    row: dict[str, Any] = {"method": method.name, "learning_rate": method.records[0].asked["optim"]["lr"]}
    notes = [f"seed {run.seed} {run.status}" for run in method.unfinished]
    if not method.finished:
        return row | {"n": 0, "note": "; ".join(notes)}

    happened = [run.happened for run in method.finished]
    scores = [run.score for run in method.finished]
    row |= {
        "trainable_parameters": method.trainable_parameters,
        "head_parameters": happened[0]["head_parameters"],
        "mean": fmean(scores),
        "n": len(scores),
        "best_epoch_mean": fmean(run.best_epoch_score for run in method.finished),
    }
    # A run of a single step has neither: the first step of a process is not measured.
    if seconds := [run["seconds_per_step"] for run in happened if run["seconds_per_step"]]:
        row["seconds_per_step"] = fmean(seconds)
    if peaks := [run["peak_memory_bytes"] for run in happened if run["peak_memory_bytes"]]:
        row["peak_memory_mib"] = max(peaks) / MEBIBYTE
    if len(scores) > 1:
        row["sd"] = stdev(scores)
    if reference is None:
        notes.append(f"no finished run of {REFERENCE} to compare with")
    elif method is not reference:
        difference = method.minus(reference)
        if difference is None:
            notes.append(f"no seed in common with {REFERENCE}")
        else:
            row |= {"difference": difference.value, "low": difference.low, "high": difference.high}
            notes += [difference.reason] if difference.reason else []
    return row | {"note": "; ".join(notes)}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[bool] | None = None) -> str:
    """A Markdown table; `right` says which columns are aligned to the right."""
    rule = ["---:" if aligned else "---" for aligned in right or [False] * len(header)]
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def frame_to_markdown(frame: pd.DataFrame, columns: Mapping[str, tuple[str, str]]) -> str:
    """A Markdown table of a frame; `columns` gives each heading and number format, a missing value is an empty cell."""
    rows = [
        ["" if pd.isna(row[column]) else format(row[column], form) for column, (_, form) in columns.items()]
        for row in frame.to_dict("records")
    ]
    return markdown(
        [heading for heading, _ in columns.values()], rows, right=[bool(number) for _, number in columns.values()]
    )


def notes(experiment: Experiment) -> list[str]:
    """How to read the table, and what is reached without training."""
    if not experiment.finished:
        return []
    happened = experiment.finished[0].happened
    baselines = [f"{name} {100 * value:.2f} %" for name, value in happened.get("baselines", {}).items()]
    return [
        f"{happened['primary_metric']} on {happened['evaluation_examples']:,} evaluation examples after the last "
        f"epoch. Differences are paired by seed; from and to bound the 95 % interval over seeds and examples.\n",
        *([f"Without training: {', '.join(baselines)}.\n"] if baselines else []),
    ]


def absent(experiment: Experiment) -> list[str]:
    """One line for each run that is not in the table, with the reason."""
    return [
        f"* `{run.signature}` {method.name}, seed {run.seed}: {why(run)}"
        for method in experiment.methods
        for run in method.unfinished
    ] + [f"* `{signature}`: planned, no record" for signature in experiment.missing]


def why(run: Record) -> str:
    """Why a run is not in the numbers: its status, and the first line of its error."""
    error = run.happened.get("error")
    return f"{run.status}, {error.splitlines()[0]}" if error else run.status


def write(folder: Path, name: str, text: str, frame: pd.DataFrame) -> None:
    """Write `<name>.md` and `<name>.csv` (six significant digits) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    frame.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
