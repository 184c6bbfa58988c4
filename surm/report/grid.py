"""Methods (rows) on several tasks (columns): one wide table, one long file."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pandas as pd
import yaml

from surm.records.record import Record
from surm.report import figures, forest
from surm.report.base import Section, Source, why
from surm.report.claims import judge
from surm.report.comparison import COLUMNS, row_of
from surm.report.drawing import Picture
from surm.report.gather import NOT_RUN, Comparison, Method, Task, gather_columns
from surm.report.plan import GridPlan
from surm.report.schedule import searched_elsewhere, values_tried
from surm.report.table import Cell, Column, Formats, Table, markdown, table_of
from surm.report.verdict import Claim, Verdict

TASK_COLUMNS: Formats = {name: (name, "") for name in ("model", "dataset", "fraction")}
IMAGE_SIZE: Formats = {"image_size": ("image_size", "")}


class Grid(Section):
    """Methods on several tasks."""

    plan: GridPlan

    def __init__(self, plan: GridPlan, source: Source) -> None:
        super().__init__(plan, source)
        self.tasks = gather_columns(plan, source.records)
        self.rows = list(dict.fromkeys(row for task in self.tasks for row in task.rows))

    def _groups(self) -> list[tuple[str, str, Sequence[Record]]]:
        return [(task.title, method.name, method.records) for task in self.tasks for method in task.methods]

    def _judge(self, claim: Claim) -> Verdict:
        return judge(claim, self.tasks, self.source.doubt)

    def give_headroom(self, room: Mapping[Task, float | None]) -> None:
        """Tell each task how many points of room it leaves above LoRA r=1, where that was measured."""
        self.tasks = [replace(task, headroom=room.get(task.task)) for task in self.tasks]

    @property
    def in_appendix(self) -> bool:
        """Also a table in which a whole task has not run, unless its forest plot says so."""
        return not self.plan.contrasts and not all(task.finished for task in self.tasks)

    @property
    def has_table(self) -> bool:
        return self.finished

    def table(self) -> Table:
        """Methods by tasks, with the average over tasks where every task has a finished run."""
        averaged = len(self.tasks) > 1
        body = []
        for row in self.rows:
            methods = [method for task in self.tasks if (method := task.method(row))]
            most = max((method.trainable_parameters for method in methods), default=None)
            cells = [Cell(row), Cell(_counts(methods), most, link=self.anchor() if methods else "")]
            cells += [self._cell(task, row) for task in self.tasks]
            if averaged:
                mean = average(methods) if len(methods) == len(self.tasks) else None
                cells.append(Cell() if mean is None else Cell(f"{mean:.1f}", mean, link=self.anchor()))
            body.append(cells)
        header = ["trainable parameters, without head", *(task.title for task in self.tasks)]
        columns = [Column("method"), *(Column(text, number=True) for text in [*header, *["average"] * averaged])]
        caption = f"{self.plan.title}: mean over seeds (%) ± standard deviation (number of seeds)"
        return Table(caption, columns, body)

    def _cell(self, task: Comparison, row: str) -> Cell:
        """Mean, standard deviation and number of seeds; else a note that says why there are none."""
        method, link = task.method(row), self.anchor(row, task.title)
        if method is None:
            known = any(method.name == row for method in task.methods)
            return Cell(note=_reason(task, row), link=link if known else "")
        spread = "" if method.sd is None else f" ± {method.sd:.1f}"
        return Cell(f"{method.mean:.1f}{spread} ({len(method.finished)})", method.mean, link=link)

    def file(self) -> Table:
        """One line for each task and method: the task, with its image size where tasks differ in nothing else, and the
        columns of a comparison.
        """
        lines = [self._line(task, row) for task in self.tasks for row in task.rows]
        sizes_differ = len({task.task[:3] for task in self.tasks}) < len(self.tasks)
        columns = dict(TASK_COLUMNS) | (dict(IMAGE_SIZE) if sizes_differ else {}) | dict(COLUMNS)
        return table_of(pd.DataFrame(lines, columns=list(columns)), columns)

    def _line(self, column: Comparison, row: str) -> dict[str, Any]:
        task = dict(zip((*TASK_COLUMNS, *IMAGE_SIZE), column.task, strict=True))
        notes = [f"{NOT_RUN}: {seeds}"] if (seeds := column.not_run(row)) else []
        method = next((method for method in column.methods if method.name == row), None)
        if method is None:
            signature = next(signature for signature, name in column.names.items() if name == row)
            rate = self.plan.asked[signature]["optim"]["lr"]
            return task | {"method": row, "n": 0, "learning_rate": rate, "note": notes[0]}
        line = row_of(method, column.reference)
        return task | line | {"note": "; ".join(filter(None, [line["note"], *notes]))}

    def pictures(self) -> list[Picture]:
        """The forest plot of what it is about, the scores, and the figures of every table of methods."""
        tasks, trees = [task for task in self.tasks if task.finished], forest.pictures(self.tasks, self.plan)
        if not tasks:
            return trees
        return [*trees, figures.scores(tasks, self.rows, self.plan.title), *figures.pictures_of(tasks, file=False)]

    def scores(self) -> dict[str, str]:
        """One line for each method: its average, where every task has a finished run."""
        found = {}
        for row in self.rows:
            cells = [column.method(row) for column in self.tasks]
            done = [method for method in cells if method]
            if len(done) == len(self.tasks):
                found[row] = f"{average(done):.1f} %, average of {len(done)} tasks"
            elif done:
                found[row] = f"finished on {len(done)} of {len(self.tasks)} tasks"
        return found

    def planned(self) -> str:
        return f"Methods: {'; '.join(self.rows)}. Tasks: {'; '.join(task.title for task in self.tasks)}."

    def notes(self) -> list[str]:
        if self.finished:
            return self._how_to_read()
        return [
            f"No record yet: {self.total:,} runs are planned, {len(self.rows)} methods on {len(self.tasks)} tasks. "
            f"To run them: `make reproduce ONLY={self.plan.name}`.\n"
        ]

    def absent(self) -> list[str]:
        return [*self._failures(), *(self._missing() if self.finished else [])]

    def _how_to_read(self) -> list[str]:
        examples: dict[str, dict[str, None]] = defaultdict(dict)  # metric -> its data sets, each once
        baselines: dict[str, None] = {}
        for column in self.tasks:
            if column.finished:
                happened = column.facts
                examples[happened["primary_metric"]][f"{column.dataset} ({happened['evaluation_examples']:,})"] = None
                levels = [f"{name} {value:.1f} %" for name, value in column.baselines.items()]
                baselines |= {f"{column.dataset} {', '.join(levels)}": None} if levels else {}
        metrics = "; ".join(f"{metric} on {', '.join(datasets)}" for metric, datasets in examples.items())
        fractions = {column.fraction for column in self.tasks}
        share = (
            f", trained on {100 * min(fractions):g} % of the data" if len(fractions) == 1 and min(fractions) < 1 else ""
        )
        lines = [
            f"Mean ± standard deviation over seeds (number of seeds), in percent, after the last epoch{share}. "
            f"Metrics, with the number of evaluation examples: {metrics}.\n"
        ]
        lines += [f"Without training: {'; '.join(baselines)}.\n"] if baselines else []
        lines += values_tried(self.tasks, self.source.records.values())
        lines += searched_elsewhere(self.tasks, self.source.records.values())
        return lines + forest.paragraphs(self.tasks, self.plan)

    # --- what is not in it --------------------------------------------------------------------------------------------

    def _missing(self) -> list[str]:
        """One line for each method with planned runs that have no record, the tasks listed in it."""
        lines = []
        for row in self.rows:
            of_seeds: dict[str, list[str]] = defaultdict(list)  # "3 of 3 seeds" -> labels of columns
            for column in self.tasks:
                if seeds := column.not_run(row):
                    of_seeds[seeds].append(column.title)
            if of_seeds:
                parts = [f"{self._titles(labels)}, {seeds}" for seeds, labels in of_seeds.items()]
                lines.append(f"* {NOT_RUN}: {row} on {'; on '.join(parts)}")
        return lines

    def _failures(self) -> list[str]:
        """One line for each method and reason of runs that did not finish."""
        reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
        for column in self.tasks:
            for method in column.methods:
                for run in method.unfinished:
                    reasons[method.name, why(run)].append(f"{column.title} seed {run.seed}")
        return [f"* {method}: {reason} ({', '.join(runs)})" for (method, reason), runs in reasons.items()]

    def _titles(self, labels: Sequence[str]) -> str:
        if len(labels) == len(self.tasks) > 1:
            return f"all {len(labels)} tasks"
        return " and ".join(labels) if len(labels) < 3 else f"{', '.join(labels[:-1])} and {labels[-1]}"

    # --- rows of other publications -----------------------------------------------------------------------------------

    def elsewhere(self) -> list[str]:
        if not self.plan.published:
            return []
        stored = yaml.safe_load((self.source.paper / f"{self.plan.published}.yaml").read_text())
        datasets = [
            name for name in dict.fromkeys(column.dataset for column in self.tasks) if name in stored["datasets"]
        ]
        places = [stored["datasets"].index(name) for name in datasets]
        body = [
            [name, _millions(row.get("parameters")), *(_score(row["scores"][place]) for place in places), row["source"]]
            for name, row in stored["rows"].items()
        ]
        header = ["published elsewhere", "parameters (M)", *datasets, "source"]
        right = [False, *[True] * (len(header) - 2), False]
        return [markdown(header, body, right=right), f"{stored['note']}\n"]


def average(methods: Iterable[Method]) -> float:
    """Mean of the tasks' mean scores, in percent."""
    return fmean(method.mean for method in methods)


def _reason(column: Comparison, row: str) -> str:
    """Why a method has no score on a task."""
    if row not in column.rows:
        return "not planned"
    attempted = next((method for method in column.methods if method.name == row), None)
    statuses = dict.fromkeys(run.status for run in attempted.unfinished) if attempted else [NOT_RUN]
    return ", ".join(statuses)


def _counts(methods: Sequence[Method]) -> str:
    """Trainable parameters, or their range where the tasks differ."""
    found = sorted({method.trainable_parameters for method in methods})
    return f"{found[0]:,} to {found[-1]:,}" if len(found) > 1 else "".join(f"{count:,}" for count in found)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _millions(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
