"""What every section of the page gives: a table with its pictures, and what it says about the paper's claims."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from surm.report import figures, tables
from surm.report.experiments import Plan
from surm.report.verdicts import Claim, Verdict, describe


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
