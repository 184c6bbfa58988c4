"""A section of the page: a table with its pictures, and what it says about the paper's claims."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from surm.report import figures, tables
from surm.report.experiments import Experiment, Plan, gather
from surm.report.records import Record
from surm.report.studies import STUDY_REPORTS, StudyPlan
from surm.report.verdicts import Claim, Verdict, describe, judge, judge_effect


class Section(ABC):
    """One plan with the records found for it."""

    plan: Plan
    label: str

    @abstractmethod
    def judge(self, claim: Claim) -> Verdict:
        """What the records say about a claim."""

    def scores(self) -> dict[str, str]:
        """Results that the page's opening table lists beside the claims: row name -> cell."""
        return {}

    @abstractmethod
    def text(self) -> str:
        """The table in Markdown with what belongs below it."""

    @abstractmethod
    def frame(self) -> pd.DataFrame:
        """The table."""

    @abstractmethod
    def pictures(self) -> Mapping[str, Callable[[Path], None]]:
        """Kind of figure -> function that draws it."""

    def write_table(self, output: Path, claims: Mapping[str, Claim]) -> None:
        """Write `tables/<name>.md`, which ends with the verdicts, and `tables/<name>.csv` below `output`."""
        judged = [(claims[name], self.judge(claims[name])) for name in self.plan.claims]
        verdicts = [f"* {verdict}: {describe(claim)}; found {verdict.found or 'nothing'}" for claim, verdict in judged]
        below = ["Verdicts:\n", "\n".join(verdicts) + "\n"] if verdicts else []
        text = "\n".join([f"# {self.plan.title}\n", self.text(), *below])
        tables.write(output / "tables", self.plan.name, text, self.frame())

    def draw(self, output: Path) -> None:
        """Draw `figures/<name>_<kind>.png` below `output`."""
        for kind, draw in self.pictures().items():
            draw(figures.figure_path(output, self.plan.name, kind))

    def markdown(self) -> str:
        """The section's text on the page."""
        name = self.plan.name
        pictures = [f"![{kind.replace('_', ' ')}](figures/{name}_{kind}.png)\n" for kind in self.pictures()]
        return "\n".join([f"## {self.plan.title}\n", self.text(), *pictures])


class Comparison(Section):
    """Methods on one task."""

    def __init__(self, plan: Plan, records: Mapping[str, Record], *, known: Mapping[str, Record], label: str) -> None:
        self.plan = plan
        self.experiment: Experiment = gather(plan, records, known=known, label=label)
        self.label = self.experiment.label

    def judge(self, claim: Claim) -> Verdict:
        return judge(claim, self.experiment)

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


def make_section(plan: Plan, records: Mapping[str, Record], *, known: Mapping[str, Record], label: str) -> Section:
    """The section of a plan, from the records at hand.

    Args:
        plan: what was planned.
        records: the records to report, by signature.
        known: records that tell what a planned signature stands for, where `records` lacks it.
        label: the label of the whole page, used where the plan has none.
    """
    if isinstance(plan, StudyPlan):
        return Study(plan, records, label=label)
    return Comparison(plan, records, known=known, label=label)


def _score(experiment: Experiment, name: str) -> str:
    method = experiment.method(name)
    if method is None:
        return "no finished run"
    mean = method.mean
    interval = f"[{mean.low:.2f}, {mean.high:.2f}]" if mean.low is not None else f"({mean.reason})"
    return f"{mean.value:.2f} % {interval}, {mean.seeds} seeds"
