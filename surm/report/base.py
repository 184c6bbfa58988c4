"""What every section of the page gives: a table with its pictures, and what it says about the paper's claims."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from surm.records.record import Record
from surm.report import figures, tables
from surm.report.experiments import Plan
from surm.report.plots import Plot
from surm.report.verdicts import Claim, Verdict, describe


@dataclass(frozen=True)
class Group:
    """Records behind one row or cell of a table: the seeds of a method on a task, the parts of a study."""

    task: str
    method: str
    records: Sequence[Record]


class Section(ABC):
    """One plan with the records found for it."""

    plan: Plan
    label: str

    @abstractmethod
    def groups(self) -> list[Group]:
        """The records found, finished or not, by what they are called in the table."""

    @property
    def records(self) -> list[Record]:
        return [record for group in self.groups() for record in group.records]

    @property
    def finished(self) -> bool:
        """There is a finished record."""
        return any(record.finished for record in self.records)

    @property
    def unfinished(self) -> int:
        """How many planned records are missing or not finished."""
        done = {record.signature for record in self.records if record.finished}
        return len(set(self.plan.signatures) - done)

    @abstractmethod
    def judge(self, claim: Claim) -> Verdict:
        """What the records say about a claim."""

    def scores(self) -> dict[str, str]:
        """Results that the page's opening table lists beside the claims: row name -> cell."""
        return {}

    def text(self) -> str:
        """The table in Markdown with what belongs below it."""
        label = [f"**{self.label}**\n"] if self.label.endswith("not evidence") else []
        absent = ["Not in the numbers above:\n", "\n".join(self.absent()) + "\n"] if self.absent() else []
        return "\n".join([*self.table(), *label, *self.notes(), *absent, *self.elsewhere()])

    @abstractmethod
    def table(self) -> list[str]:
        """The table in Markdown, with its footnotes."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Paragraphs in Markdown on how to read the table."""

    @abstractmethod
    def absent(self) -> list[str]:
        """What is planned and not in the numbers, one line of a Markdown list each."""

    def elsewhere(self) -> list[str]:
        """Tables in Markdown of numbers that other publications print, and notes on them."""
        return []

    @abstractmethod
    def frame(self) -> pd.DataFrame:
        """The table."""

    @abstractmethod
    def pictures(self) -> Mapping[str, Callable[[Path], None]]:
        """Kind of figure -> function that draws it."""

    @abstractmethod
    def plots(self) -> list[Plot]:
        """Interactive figures."""

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
