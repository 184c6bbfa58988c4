"""Studies as tables, effects and figures, one module a study; what each gives stands in `StudyReport`."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import pandas as pd

from surm.records.record import Record
from surm.report.drawing import Picture
from surm.report.studies import family_fit, ldr_fit, pinwheel, pinwheel_search, psd_fit
from surm.report.table import Formats


class StudyReport(Protocol):
    """What a module of this package gives; every function takes finished records of one study."""

    COLUMNS: Formats

    def table(self, records: Sequence[Record]) -> pd.DataFrame:
        """One row for each thing measured, summarised over draws."""

    def effects(self, records: Sequence[Record]) -> dict[str, list[float]]:
        """The quantities that claims are about, one value for each draw."""

    def pictures(self, records: Sequence[Record]) -> list[Picture]:
        """The figures."""

    def notes(self, records: Sequence[Record]) -> list[str]:
        """Lines below the table: budgets, how to read it, what it proves and what not."""


STUDY_REPORTS: Mapping[str, StudyReport] = {
    "ldr_fit": ldr_fit,
    "psd_fit": psd_fit,
    "family_fit": family_fit,
    "pinwheel": pinwheel,
    "pinwheel_search": pinwheel_search,
}
