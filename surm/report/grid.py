"""Methods (rows) on several tasks (columns): one wide table, one long file, one picture."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import yaml

from surm.records.record import Record
from surm.report import grid_figures, grid_plots, tables
from surm.report.base import Group, Section
from surm.report.experiments import REFERENCE, Column, GridPlan, Method, gather_columns
from surm.report.grid_verdicts import judge_columns
from surm.report.plots import Plot
from surm.report.verdicts import Claim, Verdict

NOT_RUN = "not run"


class Grid(Section):
    """Methods on several tasks."""

    plan: GridPlan

    def __init__(
        self, plan: GridPlan, records: Mapping[str, Record], *, known: Mapping[str, Record], label: str, paper: Path
    ) -> None:
        self.plan, self.label, self.paper = plan, plan.label or label, paper
        self.columns: list[Column] = gather_columns(plan, records, known=known, label=label)
        self.rows = list(dict.fromkeys(row for column in self.columns for row in column.rows))
        self._verdicts: dict[str, Verdict] = {}

    def judge(self, claim: Claim) -> Verdict:
        if claim.id not in self._verdicts:
            self._verdicts[claim.id] = judge_columns(claim, self.columns, self.label)
        return self._verdicts[claim.id]

    def scores(self) -> dict[str, str]:
        """One line for each method: its average, where every task has a finished run."""
        found = {}
        for row in self.rows:
            cells = [column.experiment.method(row) for column in self.columns]
            done = [method for method in cells if method]
            if len(done) == len(self.columns):
                found[row] = f"{average(done):.2f} %, average of {len(done)} tasks"
            elif done:
                found[row] = f"finished on {len(done)} of {len(self.columns)} tasks"
        return found

    def frame(self) -> pd.DataFrame:
        """One line for each column and method: the task, then the columns of `tables.COLUMNS`."""
        lines = [self._line(column, row) for column in self.columns for row in column.rows]
        return pd.DataFrame(lines, columns=["model", "dataset", "fraction", *tables.COLUMNS])

    def pictures(self) -> Mapping[str, Callable[[Path], None]]:
        if not self.finished:
            return {}
        draw = partial(grid_figures.draw, self.columns, self.rows, self.plan.title, self.label)
        return {"scores": draw}

    def plots(self) -> list[Plot]:
        return grid_plots.plots(self.columns, self.rows) if self.finished else []

    def groups(self) -> list[Group]:
        return [
            Group(column.label, method.name, method.records)
            for column in self.columns
            for method in column.experiment.methods
        ]

    def notes(self) -> list[str]:
        if self.finished:
            return self._how_to_read()
        return [
            f"No record yet: {len(set(self.plan.signatures)):,} runs are planned, {len(self.rows)} methods on "
            f"{len(self.columns)} tasks. To run them: `make reproduce ONLY={self.plan.name}`.\n"
        ]

    def absent(self) -> list[str]:
        return [*self._failures(), *(self._missing() if self.finished else [])]

    # --- the wide table -----------------------------------------------------------------------------------------------

    def table(self) -> list[str]:
        if not self.finished:
            return []
        notes: dict[str, int] = {}  # reason of an empty cell -> number of its footnote
        averaged = len(self.columns) > 1
        body = []
        for row in self.rows:
            done = [method for column in self.columns if (method := column.experiment.method(row))]
            cells = [_cell(column, row, notes) for column in self.columns]
            overall = [f"{average(done):.2f}" if len(done) == len(self.columns) else ""] if averaged else []
            body.append([row, counts(done), *cells, *overall])
        header = ["method", "trainable parameters, without head", *(column.label for column in self.columns)]
        header += ["average"] if averaged else []
        table = tables.markdown(header, body, right=[False] + [True] * (len(header) - 1))
        footnotes = "; ".join(f"[{number}] {reason}" for reason, number in notes.items())
        return [table, f"{footnotes}.\n"] if footnotes else [table]

    def _how_to_read(self) -> list[str]:
        examples: dict[str, dict[str, None]] = defaultdict(dict)  # metric -> its data sets, each once
        baselines: dict[str, None] = {}
        for column in self.columns:
            if column.experiment.finished:
                happened = column.experiment.finished[0].happened
                examples[happened["primary_metric"]][f"{column.dataset} ({happened['evaluation_examples']:,})"] = None
                found = [f"{name} {100 * value:.2f} %" for name, value in happened.get("baselines", {}).items()]
                baselines |= {f"{column.dataset} {', '.join(found)}": None} if found else {}
        metrics = "; ".join(f"{metric} on {', '.join(datasets)}" for metric, datasets in examples.items())
        fractions = {column.fraction for column in self.columns}
        share = (
            f", trained on {100 * min(fractions):g} % of the data" if len(fractions) == 1 and min(fractions) < 1 else ""
        )
        lines = [
            f"Mean ± standard deviation over seeds (number of seeds), in percent, after the last epoch{share}. "
            f"Metrics, with the number of evaluation examples: {metrics}.\n"
        ]
        return lines + ([f"Without training: {'; '.join(baselines)}.\n"] if baselines else [])

    # --- what is not in it --------------------------------------------------------------------------------------------

    def _missing(self) -> list[str]:
        """One line for each method with planned runs that have no record, the tasks listed in it."""
        lines = []
        for row in self.rows:
            of_seeds: dict[str, list[str]] = defaultdict(list)  # "3 of 3 seeds" -> labels of columns
            for column in self.columns:
                missing, planned = _planned(column, row)
                if missing:
                    of_seeds[f"{missing} of {planned} seeds"].append(column.label)
            if of_seeds:
                parts = [f"{self._tasks(labels)}, {seeds}" for seeds, labels in of_seeds.items()]
                lines.append(f"* {NOT_RUN}: {row} on {'; on '.join(parts)}")
        return lines

    def _failures(self) -> list[str]:
        """One line for each method and reason of runs that did not finish."""
        reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
        for column in self.columns:
            for method in column.experiment.methods:
                for run in method.unfinished:
                    reasons[method.name, tables.why(run)].append(f"{column.label} seed {run.seed}")
        return [f"* {method}: {reason} ({', '.join(runs)})" for (method, reason), runs in reasons.items()]

    def _tasks(self, labels: Sequence[str]) -> str:
        if len(labels) == len(self.columns) > 1:
            return f"all {len(labels)} tasks"
        return " and ".join(labels) if len(labels) < 3 else f"{', '.join(labels[:-1])} and {labels[-1]}"

    # --- rows of other publications -----------------------------------------------------------------------------------

    def elsewhere(self) -> list[str]:
        if not self.plan.published:
            return []
        stored = yaml.safe_load((self.paper / f"{self.plan.published}.yaml").read_text())
        datasets = [
            name for name in dict.fromkeys(column.dataset for column in self.columns) if name in stored["datasets"]
        ]
        places = [stored["datasets"].index(name) for name in datasets]
        body = [
            [name, _millions(row.get("parameters")), *(_score(row["scores"][place]) for place in places), row["source"]]
            for name, row in stored["rows"].items()
        ]
        header = ["published elsewhere", "parameters (M)", *datasets, "source"]
        right = [False, *[True] * (len(header) - 2), False]
        return [tables.markdown(header, body, right=right), f"{stored['note']}\n"]

    # --- the long file ------------------------------------------------------------------------------------------------

    def _line(self, column: Column, row: str) -> dict[str, Any]:
        task = {"model": column.model, "dataset": column.dataset, "fraction": column.fraction}
        missing, planned = _planned(column, row)
        notes = [f"{NOT_RUN}: {missing} of {planned} seeds"] if missing else []
        method = next((method for method in column.experiment.methods if method.name == row), None)
        if method is None:
            signature = next(signature for signature, name in column.experiment.names.items() if name == row)
            rate = self.plan.asked[signature]["optim"]["lr"]
            return task | {"method": row, "n": 0, "learning_rate": rate, "note": notes[0]}
        found = tables.row_of(method, column.experiment.method(REFERENCE))
        return task | found | {"note": "; ".join(filter(None, [found["note"], *notes]))}


def average(methods: Iterable[Method]) -> float:
    """Mean of the tasks' mean scores, in percent."""
    return fmean(fmean(run.score for run in method.finished) for method in methods)


def _cell(column: Column, row: str, notes: dict[str, int]) -> str:
    """Mean, standard deviation and number of seeds; else the number of the footnote that says why there are none."""
    method = column.experiment.method(row)
    if method is None:
        return f"[{notes.setdefault(reason(column, row), len(notes) + 1)}]"
    scores = [run.score for run in method.finished]
    spread = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{fmean(scores):.2f}{spread} ({len(scores)})"


def reason(column: Column, row: str) -> str:
    """Why a method has no score on a task."""
    if row not in column.rows:
        return "not planned"
    attempted = next((method for method in column.experiment.methods if method.name == row), None)
    statuses = dict.fromkeys(run.status for run in attempted.unfinished) if attempted else [NOT_RUN]
    return ", ".join(statuses)


def _planned(column: Column, row: str) -> tuple[int, int]:
    """How many planned runs of a method have no record, and how many are planned."""
    names = column.experiment.names
    missing = Counter(names[signature] for signature in column.experiment.missing)
    return missing[row], Counter(names.values())[row]


def counts(methods: Sequence[Method]) -> str:
    """Trainable parameters, or their range where the tasks differ."""
    found = sorted({method.trainable_parameters for method in methods})
    return f"{found[0]:,} to {found[-1]:,}" if len(found) > 1 else "".join(f"{count:,}" for count in found)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _millions(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
