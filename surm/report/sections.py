"""The sections of a report, one for each plan: methods on one task, methods on several tasks, a study."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import sqrt
from typing import Any

import pandas as pd
from scipy.stats import t as student_t

from surm.records.record import Record
from surm.report.base import Section, Source, why
from surm.report.claims import judge_effect
from surm.report.comparison import OneTask
from surm.report.drawing import Picture
from surm.report.gather import NOT_RUN
from surm.report.grid import Grid
from surm.report.plan import GridPlan, Plan, StudyPlan
from surm.report.statistics import LEVEL
from surm.report.studies import STUDY_REPORTS
from surm.report.table import Table, table_of
from surm.report.verdict import Claim, Effects, Verdict


def make_section(plan: Plan, source: Source) -> Section:
    """The section of a plan, from the records at hand."""
    if isinstance(plan, StudyPlan):
        return Study(plan, source)
    if isinstance(plan, GridPlan):
        return Grid(plan, source)
    return OneTask(plan, source)


class Study(Section):
    """A study without a backbone."""

    plan: StudyPlan

    def __init__(self, plan: StudyPlan, source: Source) -> None:
        super().__init__(plan, source)
        self.report = STUDY_REPORTS[plan.study]
        records = [source.records[signature] for signature in plan.signatures if signature in source.records]
        self.parts = [record for record in records if record.finished]
        self.others = [record for record in records if not record.finished]

    def _groups(self) -> list[tuple[str, str, Sequence[Record]]]:
        records = [*self.parts, *self.others]
        return [("", self.plan.title, records)] if records else []

    @cached_property
    def effects(self) -> Effects:
        """What claims are about, one value for each draw."""
        return self.report.effects(self.parts) if self.parts else {}

    def _judge(self, claim: Claim) -> Verdict:
        verdict = judge_effect(claim, self.effects, self.source.doubt)
        if verdict.found and self.unfinished:
            return Verdict("undecided", verdict.found, f"{self.unfinished} of {self.total} parts to come", NOT_RUN)
        return verdict

    def table(self) -> Table:
        """The study's own columns; means over draws with their 95 % interval."""
        columns = self.report.COLUMNS
        frame = self.report.table(self.parts) if self.parts else pd.DataFrame(columns=list(columns))
        caption = f"{self.plan.title}: means over draws [95 % interval]" if "sd" in columns else self.plan.title
        notes = {
            name: lambda row, name=name: _t_interval(row, name, columns[name][1])
            for name in ("mean", "loss")
            if "sd" in columns
        }
        return table_of(frame, columns, caption, notes=notes, link=lambda _: self.anchor())

    def notes(self) -> list[str]:
        return [f"{note}\n" for note in self.report.notes(self.parts)] if self.parts else []

    def absent(self) -> list[str]:
        lines = [f"* `{record.signature}`: {why(record)}" for record in self.others]
        missing = self.unfinished - len(self.others)
        return lines + ([f"* {NOT_RUN}: {missing} of {self.total} parts"] if missing else [])

    def pictures(self) -> list[Picture]:
        return self.report.pictures(self.parts) if self.parts else []


def _t_interval(row: Mapping[Any, Any], name: str, form: str) -> str:
    """The 95 % t-interval of a mean of n values whose standard deviation stands in the column `sd`."""
    if pd.isna(row["sd"]) or row["n"] < 2:
        return ""
    half = row["sd"] / sqrt(row["n"]) * student_t.ppf((1 + LEVEL) / 2, row["n"] - 1)
    return f"[{row[name] - half:{form}}, {row[name] + half:{form}}]"
