"""Studies as tables, effects and figures, one module a study; what each gives stands in `StudyReport`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd

from surm.records.record import Record
from surm.report.experiments import Plan
from surm.report.plots import Plot
from surm.report.studies import ldr_fit, pinwheel, pinwheel_search, psd_fit


@dataclass(frozen=True)
class StudyPlan(Plan):
    """The parts of a study."""

    study: str = ""


class StudyReport(Protocol):
    """What a module of this package gives; every function takes finished records of one study."""

    COLUMNS: dict[str, tuple[str, str]]  # column -> (Markdown heading, number format)
    FIGURES: dict[str, Callable[[Sequence[Record], Path], None]]  # kind -> drawing function

    def table(self, records: Sequence[Record]) -> pd.DataFrame:
        """One row for each thing measured, summarised over draws."""

    def effects(self, records: Sequence[Record]) -> dict[str, list[float]]:
        """The quantities that claims are about, one value for each draw."""

    def plots(self, records: Sequence[Record]) -> list[Plot]:
        """Interactive figures."""

    def notes(self, records: Sequence[Record]) -> list[str]:
        """Lines below the table: budgets, how to read it, what it proves and what not."""


STUDY_REPORTS: Mapping[str, StudyReport] = {
    "ldr_fit": ldr_fit,
    "psd_fit": psd_fit,
    "pinwheel": pinwheel,
    "pinwheel_search": pinwheel_search,
}
