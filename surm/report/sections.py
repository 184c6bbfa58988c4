"""The sections of the page, one for each plan: methods on one task, methods on several tasks, a study."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from surm.records.record import Record
from surm.report import figures, plots, tables
from surm.report.base import Group, Section
from surm.report.experiments import Experiment, GridPlan, Plan, as_column, gather
from surm.report.grid import Grid
from surm.report.grid_verdicts import judge_columns
from surm.report.plots import Plot
from surm.report.studies import STUDY_REPORTS, StudyPlan
from surm.report.verdicts import RULES, Claim, Verdict, judge, judge_effect
from surm.shared.paths import PAPER


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

    def groups(self) -> list[Group]:
        return [Group("", method.name, method.records) for method in self.experiment.methods]

    def table(self) -> list[str]:
        return [tables.frame_to_markdown(self.frame(), tables.COLUMNS)]

    def notes(self) -> list[str]:
        return tables.notes(self.experiment)

    def absent(self) -> list[str]:
        return tables.absent(self.experiment)

    def frame(self) -> pd.DataFrame:
        return tables.table(self.experiment)

    def pictures(self) -> Mapping[str, Callable[[Path], None]]:
        return {
            "accuracy_over_parameters": partial(figures.accuracy_over_parameters, [self.experiment]),
            "learning_curves": partial(figures.learning_curves, self.experiment),
        }

    def plots(self) -> list[Plot]:
        if not self.finished:
            return []
        panels = [("", self.experiment)]
        return [plots.accuracy_over_parameters(panels), plots.learning_curves(panels), plots.cost(panels)]


class Study(Section):
    """A study without a backbone."""

    def __init__(self, plan: StudyPlan, records: Mapping[str, Record], *, label: str) -> None:
        self.plan, self.label = plan, plan.label or label
        self.report = STUDY_REPORTS[plan.study]
        found = [records[signature] for signature in plan.signatures if signature in records]
        self.parts = [record for record in found if record.finished]
        self.others = [record for record in found if not record.finished]

    def groups(self) -> list[Group]:
        found = [*self.parts, *self.others]
        return [Group("", self.plan.title, found)] if found else []

    @cached_property
    def effects(self) -> Mapping[str, Sequence[float]]:
        """What claims are about, one value for each draw."""
        return self.report.effects(self.parts) if self.parts else {}

    def judge(self, claim: Claim) -> Verdict:
        return judge_effect(claim, self.effects, self.label)

    def table(self) -> list[str]:
        return [tables.frame_to_markdown(self.frame(), self.report.COLUMNS)]

    def notes(self) -> list[str]:
        return [f"{note}\n" for note in self.report.notes(self.parts)] if self.parts else []

    def absent(self) -> list[str]:
        known = {record.signature for record in self.records}
        lines = [f"* `{record.signature}`: {tables.why(record)}" for record in self.others]
        return lines + [f"* `{name}`: planned, no record" for name in self.plan.signatures if name not in known]

    def frame(self) -> pd.DataFrame:
        return self.report.table(self.parts) if self.parts else pd.DataFrame(columns=list(self.report.COLUMNS))

    def pictures(self) -> Mapping[str, Callable[[Path], None]]:
        return {kind: partial(draw, self.parts) for kind, draw in self.report.FIGURES.items() if self.parts}

    def plots(self) -> list[Plot]:
        return self.report.plots(self.parts) if self.parts else []


def make_section(
    plan: Plan,
    records: Mapping[str, Record],
    *,
    known: Mapping[str, Record],
    label: str,
    paper: Path = PAPER,
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
