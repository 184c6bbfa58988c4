"""Methods on one task: one row for each method, beside the reference."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from surm.records.record import Record
from surm.report import figures, forest, training_figures
from surm.report.base import Section, Source, why
from surm.report.claims import judge
from surm.report.drawing import Picture
from surm.report.gather import NOT_RUN, REFERENCE, Method, gather
from surm.report.plan import Plan
from surm.report.schedule import searched_elsewhere, values_tried
from surm.report.table import Formats, Table, table_of
from surm.report.verdict import Claim, Verdict, number_of

COLUMNS: Formats = {
    "method": ("method", ""),
    "trainable_parameters": ("trainable parameters, without head", ",.0f"),
    "peak_parameters": ("at the peak of training, where more", ",.0f"),
    "head_parameters": ("head parameters", ",.0f"),
    "mean": ("mean (%)", ".1f"),
    "sd": ("sd", ".1f"),
    "n": ("n", ".0f"),
    "difference": (f"difference to {REFERENCE} (points)", "+z.1f"),
    "low": ("from", "+z.1f"),
    "high": ("to", "+z.1f"),
    "best_epoch_mean": ("best epoch on the reported split (not selected honestly, %)", ".1f"),
    "seconds_per_step": ("seconds per step, fastest seed", ".3f"),
    "relative_seconds": (f"time of a step relative to {REFERENCE}", ".2f"),
    "peak_memory_mib": ("peak memory (MiB)", ",.0f"),
    "relative_memory": (f"memory relative to {REFERENCE}", ".2f"),
    "learning_rate": ("learning rate", "g"),
    "note": ("note", ""),
}


class OneTask(Section):
    """Methods on one task."""

    def __init__(self, plan: Plan, source: Source) -> None:
        super().__init__(plan, source)
        self.task = gather(plan, source.records)

    def _groups(self) -> list[tuple[str, str, Sequence[Record]]]:
        return [("", method.name, method.records) for method in self.task.methods]

    def _judge(self, claim: Claim) -> Verdict:
        return judge(claim, [self.task], self.source.doubt)

    def file(self) -> Table:
        return self._table(COLUMNS)

    def table(self) -> Table:
        """A row for each method; a number that cannot be had is missing, the note says why.

        Parameters at the peak have a column only where a method trains more of them than it keeps.
        """
        prunes = self.frame()["peak_parameters"].notna().any()
        return self._table({name: form for name, form in COLUMNS.items() if prunes or name != "peak_parameters"})

    def _table(self, columns: Formats) -> Table:
        return table_of(
            self.frame(),
            columns,
            f"{self.plan.title}: {self.task.metric} after the last epoch, mean over seeds",
            link=lambda row: self.anchor(row["method"]),
        )

    def frame(self) -> pd.DataFrame:
        """The columns of `COLUMNS`, one row for each method."""
        return pd.DataFrame(
            [row_of(method, self.task.reference) for method in self.task.methods], columns=list(COLUMNS)
        )

    def notes(self) -> list[str]:
        if not self.finished:
            return []
        baselines = ", ".join(f"{name} {value:.1f} %" for name, value in self.task.baselines.items())
        return [
            f"{self.task.metric} on {self.task.facts['evaluation_examples']:,} evaluation examples after the last "
            f"epoch. Differences are paired by seed; from and to bound the 95 % interval over seeds and examples.\n",
            *([f"Without training: {baselines}.\n"] if baselines else []),
            *values_tried([self.task], self.source.records.values()),
            *searched_elsewhere([self.task], self.source.records.values()),
            *forest.paragraphs([self.task], self.plan),
        ]

    def absent(self) -> list[str]:
        task = self.task
        lines = [
            f"* `{run.signature}` {method.name}, seed {run.seed}: {why(run)}"
            for method in task.methods
            for run in method.unfinished
        ]
        lines += [f"* {NOT_RUN}: {name}, {seeds}" for name in task.rows if (seeds := task.not_run(name))]
        return lines + [f"* `{name}`: planned, no record" for name in task.missing if name not in task.names]

    def pictures(self) -> list[Picture]:
        trees = forest.pictures([self.task], self.plan)
        return trees if trees and not self.finished else [*trees, *figures.pictures_of([self.task], file=True)]

    def scores(self) -> dict[str, str]:
        return {method.name: _score(method) for method in self.task.methods}


def row_of(method: Method, reference: Method | None) -> dict[str, Any]:
    """The columns of `COLUMNS` for one method; what is not known of it is left out."""
    row: dict[str, Any] = {"method": method.name, "learning_rate": method.records[0].asked["optim"]["lr"]}
    notes = [f"seed {run.seed} {run.status}" for run in method.unfinished]
    if not method.finished:
        return row | {"n": 0, "note": "; ".join(notes)}

    row |= {
        "trainable_parameters": method.trainable_parameters,
        "peak_parameters": method.finished[0].happened.get("peak_trainable_parameters"),
        "head_parameters": method.finished[0].happened["head_parameters"],
        "mean": method.mean,
        "n": len(method.finished),
        "best_epoch_mean": fmean(run.best_epoch_score for run in method.finished),
        "seconds_per_step": training_figures.seconds_per_step(method),
        "peak_memory_mib": training_figures.peak_memory(method),
        "sd": method.sd,
    }
    if reference is None:
        notes.append(f"no finished run of {REFERENCE} to compare with")
        return row | {"note": "; ".join(notes)}
    row |= {
        "relative_seconds": _ratio(training_figures.seconds_per_step, method, reference),
        "relative_memory": _ratio(training_figures.peak_memory, method, reference),
    }
    if method is not reference:
        difference = method.minus(reference)
        if difference is None:
            notes.append(f"no seed in common with {REFERENCE}")
        else:
            row |= {"difference": difference.value, "low": difference.low, "high": difference.high}
            notes += [difference.reason] if difference.reason else []
    return row | {"note": "; ".join(notes)}


def _ratio(measure: Callable[[Method], float | None], method: Method, reference: Method) -> float | None:
    own, other = measure(method), measure(reference)
    return own / other if own and other else None


def _score(method: Method) -> str:
    return f"{method}, {number_of(len(method.finished), 'seed')}" if method.finished else "no finished run"
