"""Methods on one task: one row for each method, beside the reference."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from surm.records.record import Record
from surm.report import figures, training_figures
from surm.report.base import Section, Source, why
from surm.report.claims import judge
from surm.report.drawing import Picture
from surm.report.gather import REFERENCE, Method, gather
from surm.report.plan import Plan
from surm.report.rules import Claim, Verdict
from surm.report.table import Formats, Table, table_of

COLUMNS: Formats = {
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


class OneTask(Section):
    """Methods on one task."""

    def __init__(self, plan: Plan, source: Source) -> None:
        super().__init__(plan, source)
        self.task = gather(plan, source.records, known=source.known)

    def _groups(self) -> list[tuple[str, str, Sequence[Record]]]:
        return [("", method.name, method.records) for method in self.task.methods]

    def _judge(self, claim: Claim) -> Verdict:
        return judge(claim, [self.task], self.source.doubt)

    def table(self) -> Table:
        """A row for each method; a number that cannot be had is missing, the note says why."""
        means = {method.name: method for method in self.task.finished}
        return table_of(
            self.frame(),
            COLUMNS,
            f"{self.plan.title}: {self.task.metric} after the last epoch, mean over seeds [95 % interval]",
            notes={"mean": lambda row: interval(means[row["method"]])},
            link=lambda row: self.anchor(row["method"]),
        )

    def frame(self) -> pd.DataFrame:
        """The columns of `COLUMNS`, one row for each method."""
        reference = self.task.method(REFERENCE)
        return pd.DataFrame([row_of(method, reference) for method in self.task.methods], columns=list(COLUMNS))

    def notes(self) -> list[str]:
        if not self.finished:
            return []
        baselines = ", ".join(f"{name} {value:.2f} %" for name, value in self.task.baselines.items())
        return [
            f"{self.task.metric} on {self.task.facts['evaluation_examples']:,} evaluation examples after the last "
            f"epoch. Differences are paired by seed; from and to bound the 95 % interval over seeds and examples.\n",
            *([f"Without training: {baselines}.\n"] if baselines else []),
        ]

    def absent(self) -> list[str]:
        return [
            f"* `{run.signature}` {method.name}, seed {run.seed}: {why(run)}"
            for method in self.task.methods
            for run in method.unfinished
        ] + [f"* `{signature}`: planned, no record" for signature in self.task.missing]

    def pictures(self) -> list[Picture]:
        return figures.pictures_of([self.task], file=True)

    def scores(self) -> dict[str, str]:
        return {method.name: _score(method) for method in self.task.methods}


def row_of(method: Method, reference: Method | None) -> dict[str, Any]:
    """The columns of `COLUMNS` for one method; what is not known of it is left out."""
    row: dict[str, Any] = {"method": method.name, "learning_rate": method.records[0].asked["optim"]["lr"]}
    notes = [f"seed {run.seed} {run.status}" for run in method.unfinished]
    if not method.finished:
        return row | {"n": 0, "note": "; ".join(notes)}

    scores = [run.score for run in method.finished]
    row |= {
        "trainable_parameters": method.trainable_parameters,
        "head_parameters": method.finished[0].happened["head_parameters"],
        "mean": fmean(scores),
        "n": len(scores),
        "best_epoch_mean": fmean(run.best_epoch_score for run in method.finished),
        "seconds_per_step": training_figures.seconds_per_step(method),
        "peak_memory_mib": training_figures.peak_memory(method),
        "sd": stdev(scores) if len(scores) > 1 else None,
    }
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


def interval(method: Method) -> str:
    """The 95 % interval of a mean score; empty where there is none."""
    mean = method.mean
    return f"[{mean.low:.2f}, {mean.high:.2f}]" if mean.low is not None else ""


def _score(method: Method) -> str:
    if not method.finished:
        return "no finished run"
    mean = method.mean
    return f"{mean.value:.2f} % {interval(method) or f'({mean.reason})'}, {mean.seeds} seeds"
