"""The primary claims in a sentence each: what is published here beside what this run found."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from surm.report.base import Section
from surm.report.table import markdown
from surm.report.verdict import Claim

FILE = Path("tables") / "primary_claims.csv"
ABSENT = "not among these experiments"
HEADER = ("claim", "verdict", "found", "reason")


@dataclass(frozen=True)
class Answer:
    """What one set of records says: the verdict in words, the numbers and what to know about it."""

    verdict: str
    found: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}; {self.found}" if self.found else self.verdict

    @property
    def state(self) -> str:
        """agrees, disagrees, undecided, or no record."""
        first = self.verdict.split(":")[0]
        if first in ("agrees", "disagrees"):
            return first
        return "no record" if first in ("not run", ABSENT) else "undecided"


@dataclass(frozen=True)
class PrimaryRow:
    """A primary claim, and the answer of each set of records by its name."""

    claim: Claim
    answers: Mapping[str, Answer]


def answers_of(sections: Sequence[Section], claims: Mapping[str, Claim]) -> dict[str, Answer]:
    """What the sections of one set of records say about the primary claims that they test."""
    found = {}
    for section in sections:
        for name in section.plan.claims:
            if claims[name].registered == "primary":
                verdict = section.judge(claims[name])
                found[name] = Answer(verdict.words, verdict.found, verdict.reason)
    return found


def rows(
    there: Sequence[Section], here: Sequence[Section], claims: Mapping[str, Claim], results: Path
) -> list[PrimaryRow]:
    """The primary claims by published records and by this run's.

    A page of other experiments takes what is published from the file that `make publish` wrote below `results`. Where
    this run says the same of every claim, it is not said twice.
    """
    published = read(results / FILE) | answers_of(there, claims)
    own, absent = answers_of(here, claims), Answer(ABSENT)
    primary = {name: claim for name, claim in claims.items() if claim.registered == "primary"}
    sources = {"published here": published}
    if any(own.get(name, absent) != published.get(name, absent) for name in primary):
        sources["this run"] = own
    return [
        PrimaryRow(claim, {source: answers.get(name, absent) for source, answers in sources.items()})
        for name, claim in primary.items()
    ]


def table(found: Sequence[PrimaryRow]) -> str:
    """The rows in Markdown."""
    names = list(found[0].answers) if found else []
    body = [[row.claim.sentence, *(str(answer) for answer in row.answers.values())] for row in found]
    return markdown(["primary claim", *names], body) if found else ""


def write(path: Path, answers: Mapping[str, Answer]) -> None:
    """Write the answers as a CSV file."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows([name, answer.verdict, answer.found, answer.reason] for name, answer in answers.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")


def read(path: Path) -> dict[str, Answer]:
    """The answers of a file; none where there is none."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as stored:
        return {
            line["claim"]: Answer(line["verdict"], line["found"], line["reason"]) for line in csv.DictReader(stored)
        }
