"""What every section of the report gives: a table with its pictures, and what it says about the paper's claims."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from surm.records.record import Record
from surm.report.claims import describe
from surm.report.drawing import Picture
from surm.report.plan import Plan
from surm.report.table import Table, plain, plain_line
from surm.report.verdict import Claim, Verdict


@dataclass(frozen=True)
class Source:
    """Where the records of a report come from.

    id, name: of the set of records on the page.
    records: the records to report, by signature.
    label: printed with the numbers.
    evidence: False forbids verdicts.
    paper: folder of the paper's claims and numbers.
    folders: that the records were read from.
    """

    id: str
    name: str
    records: Mapping[str, Record]
    paper: Path
    label: str = ""
    evidence: bool = True
    folders: Sequence[Path] = ()

    @property
    def doubt(self) -> str:
        """Why its records are no evidence; empty where they are."""
        return "" if self.evidence else self.label


@dataclass(frozen=True)
class Group:
    """Records behind one row or cell of a table: the seeds of a method on a task, the parts of a study."""

    id: str  # anchor on the page
    task: str
    method: str
    records: Sequence[Record]


class Section(ABC):
    """One plan with the records that were found for it."""

    def __init__(self, plan: Plan, source: Source) -> None:
        self.plan, self.source = plan, source
        self.id, self.records_id = f"section-{plan.name}", f"records-{source.id}-{plan.name}"
        self._verdicts: dict[str, Verdict] = {}

    # --- what a kind of section gives ---------------------------------------------------------------------------------

    @abstractmethod
    def _groups(self) -> Sequence[tuple[str, str, Sequence[Record]]]:
        """The records found, finished or not: task and method as the table has them, with their records."""

    @abstractmethod
    def _judge(self, claim: Claim) -> Verdict:
        """What the records say about a claim."""

    @abstractmethod
    def table(self) -> Table:
        """The table, with links to the groups of records."""

    def file(self) -> Table:
        """The table as its CSV file has it."""
        return self.table()

    @abstractmethod
    def notes(self) -> list[str]:
        """Paragraphs in Markdown on how to read the table."""

    @abstractmethod
    def absent(self) -> list[str]:
        """What is planned and not in the numbers, one line of a Markdown list each."""

    @abstractmethod
    def pictures(self) -> list[Picture]:
        """The figures."""

    def scores(self) -> dict[str, str]:
        """Results that the page's opening table lists beside the claims: row name -> cell."""
        return {}

    def elsewhere(self) -> list[str]:
        """Tables in Markdown of numbers that other publications print, and notes on them."""
        return []

    @property
    def in_appendix(self) -> bool:
        """There is little to see yet: it stands at the end of the page."""
        return not self.finished and not self.plan.contrasts

    def planned(self) -> str:
        """What was planned, for a section in which nothing is finished."""
        return ""

    # --- what follows from it -----------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> list[Group]:
        return [Group(f"{self.records_id}-{number}", *group) for number, group in enumerate(self._groups())]

    @cached_property
    def _anchors(self) -> dict[tuple[str, str], str]:
        return {(group.task, group.method): group.id for group in self.groups}

    def anchor(self, method: str = "", task: str = "") -> str:
        """The anchor of a method's records on a task; of the section's, where there is none."""
        return self._anchors.get((task, method), self.records_id if self.groups else self.id)

    @property
    def records(self) -> list[Record]:
        return [record for group in self.groups for record in group.records]

    @property
    def finished(self) -> bool:
        """There is a finished record."""
        return any(record.finished for record in self.records)

    @property
    def total(self) -> int:
        """How many records are planned."""
        return len(set(self.plan.signatures))

    @property
    def unfinished(self) -> int:
        """How many planned records are missing or not finished."""
        return len(set(self.plan.signatures) - {record.signature for record in self.records if record.finished})

    def judge(self, claim: Claim) -> Verdict:
        """What the records say about a claim; an interval takes its time, so it is judged once."""
        if claim.id not in self._verdicts:
            self._verdicts[claim.id] = self._judge(claim)
        return self._verdicts[claim.id]

    def settle(self, claim: str, verdict: Verdict) -> None:
        """Take a verdict that was adjusted for the number of claims."""
        self._verdicts[claim] = verdict

    # --- Markdown and files -------------------------------------------------------------------------------------------

    def text(self) -> str:
        """The table in Markdown with what belongs below it."""
        table = [self.table().markdown()] if self.has_table else []
        label = [f"**{plain_line(self.source.doubt)}**\n"] if self.source.doubt else []
        absent = (
            ["Not in the numbers above:\n", "\n".join(map(plain_line, self.absent())) + "\n"] if self.absent() else []
        )
        return "\n".join([*table, *label, *map(plain, self.notes()), *absent, *self.elsewhere()])

    @property
    def has_table(self) -> bool:
        """The Markdown report prints the table, be it empty."""
        return True

    def markdown(self) -> str:
        """The section in the Markdown report."""
        images = [
            f"![{picture.kind.replace('_', ' ')}](figures/{self.plan.name}_{picture.kind}.png)\n"
            for picture in self.pictures()
            if picture.file
        ]
        return "\n".join([f"## {plain_line(self.plan.title)}\n", self.text(), *images])

    def write(self, output: Path, claims: Mapping[str, Claim]) -> None:
        """Write `tables/<name>.md`, which ends with the verdicts, and `tables/<name>.csv` below `output`."""
        judged = [(claims[name], self.judge(claims[name])) for name in self.plan.claims]
        verdicts = [
            plain_line(f"* {verdict}: {describe(claim)}; found {verdict.found or 'nothing'}")
            for claim, verdict in judged
        ]
        below = ["Verdicts:\n", "\n".join(verdicts) + "\n"] if verdicts else []
        folder = output / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join([f"# {plain_line(self.plan.title)}\n", self.text(), *below])
        (folder / f"{self.plan.name}.md").write_text(text, encoding="utf-8")
        (folder / f"{self.plan.name}.csv").write_text(self.file().csv(), encoding="utf-8", newline="")

    def draw(self, output: Path) -> None:
        """Draw `figures/<name>_<kind>.png` below `output`."""
        for picture in self.pictures():
            if picture.file:
                picture.write(figure_path(output, self.plan.name, picture.kind), self.source.doubt)


def figure_path(output: Path, name: str, kind: str) -> Path:
    """Where a figure lies: `<output>/figures/<name>_<kind>.png`."""
    return output / "figures" / f"{name}_{kind}.png"


def why(record: Record) -> str:
    """Why a record is not in the numbers: its status, and the first line of its error."""
    error = record.happened.get("error")
    return f"{record.status}, {error.splitlines()[0]}" if error else record.status
