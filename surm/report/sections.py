"""The sections of the page, one for each plan: methods on one task, methods on several tasks, a study."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from surm.report import figures, tables
from surm.report.base import Section
from surm.report.experiments import Experiment, GridPlan, Plan, as_column, gather
from surm.report.grid import Grid
from surm.report.grid_verdicts import judge_columns
from surm.report.records import Record
from surm.report.studies import STUDY_REPORTS, StudyPlan
from surm.report.verdicts import RULES, Claim, Verdict, judge, judge_effect


class Comparison(Section):
    """Methods on one task."""

    def __init__(self, plan: Plan, records: Mapping[str, Record], *, known: Mapping[str, Record], label: str) -> None:
        self.plan = plan
        self.experiment: Experiment = gather(plan, records, known=known, label=label)
        self.label = self.experiment.label

    def judge(self, claim: Claim) -> Verdict:
        if claim.kind in RULES:
            return judge(claim, self.experiment)
        columns = [as_column(self.experiment)] if self.experiment.methods else []
        return judge_columns(claim, columns, self.label)

    def scores(self) -> dict[str, str]:
        return {method.name: _score(self.experiment, method.name) for method in self.experiment.methods}

    def text(self) -> str:
        return tables.to_markdown(self.experiment)

    def frame(self) -> pd.DataFrame:
        return tables.table(self.experiment)

    def pictures(self) -> Mapping[str, Callable[[Path], None]]:
        return {
            "accuracy_over_parameters": partial(figures.accuracy_over_parameters, [self.experiment]),
            "learning_curves": partial(figures.learning_curves, self.experiment),
        }


class Study(Section):
    """A study without a backbone."""

    def __init__(self, plan: StudyPlan, records: Mapping[str, Record], *, label: str) -> None:
        self.plan, self.label = plan, plan.label or label
        self.report = STUDY_REPORTS[plan.study]
        found = [records[signature] for signature in plan.signatures if signature in records]
        self.records = [record for record in found if record.finished]
        self.absent = [f"* `{record.signature}`: {record.status}" for record in found if not record.finished]
        self.absent += [f"* `{name}`: planned, no record" for name in plan.signatures if name not in records]

    def judge(self, claim: Claim) -> Verdict:
        return judge_effect(claim, self.report.effects(self.records) if self.records else {}, self.label)

    def text(self) -> str:
        lines = [tables.frame_to_markdown(self.frame(), self.report.COLUMNS)]
        lines += [f"**{self.label}**\n"] if self.label else []
        lines += [f"{note}\n" for note in self.report.notes(self.records)] if self.records else []
        lines += ["Not in the numbers above:\n", "\n".join(self.absent) + "\n"] if self.absent else []
        return "\n".join(lines)

    def frame(self) -> pd.DataFrame:
        return self.report.table(self.records) if self.records else pd.DataFrame(columns=list(self.report.COLUMNS))

    def pictures(self) -> Mapping[str, Callable[[Path], None]]:
        return {kind: partial(draw, self.records) for kind, draw in self.report.FIGURES.items() if self.records}


def make_section(
    plan: Plan,
    records: Mapping[str, Record],
    *,
    known: Mapping[str, Record],
    label: str,
    paper: Path = Path("results/paper"),
) -> Section:
    """The section of a plan, from the records at hand.

    Args:
        plan: what was planned.
        records: the records to report, by signature.
        known: records that tell what a planned signature stands for, where `records` lacks it.
        label: the label of the whole page, used where the plan has none.
        paper: folder of the numbers that other publications print.
    """
    if isinstance(plan, StudyPlan):
        return Study(plan, records, label=label)
    if isinstance(plan, GridPlan):
        return Grid(plan, records, known=known, label=label, paper=paper)
    return Comparison(plan, records, known=known, label=label)


def _score(experiment: Experiment, name: str) -> str:
    method = experiment.method(name)
    if method is None:
        return "no finished run"
    mean = method.mean
    interval = f"[{mean.low:.2f}, {mean.high:.2f}]" if mean.low is not None else f"({mean.reason})"
    return f"{mean.value:.2f} % {interval}, {mean.seeds} seeds"
