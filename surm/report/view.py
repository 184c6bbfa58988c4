"""What the page shows, from sections and claims: verdicts, figures, what is missing, and the records."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from surm.records.record import Record
from surm.report.base import Group, Section, Source, why
from surm.report.claims import describe
from surm.report.drawing import Picture
from surm.report.rules import Claim, Verdict
from surm.report.svg import to_svg
from surm.report.table import Cell, Column, Table

State = Literal["agrees", "disagrees", "undecided", "no record"]
STATES: tuple[State, ...] = ("agrees", "disagrees", "undecided", "no record")


@dataclass(frozen=True)
class Outcome:
    """What one set of records says about a claim, and where these records stand on the page."""

    verdict: Verdict
    link: str

    @property
    def state(self) -> State:
        return self.verdict.result if self.verdict.found else "no record"


@dataclass(frozen=True)
class ClaimRow:
    """A sentence of the paper, the section that the page shows for it, and an outcome for each set of records."""

    claim: Claim
    section: Section
    outcomes: Sequence[Outcome]

    @property
    def rule(self) -> str:
        return describe(self.claim)

    @property
    def state(self) -> State:
        """The firmest state of the outcomes; where one agrees and the other disagrees, that of the last."""
        states = [outcome.state for outcome in self.outcomes]
        decided = [state for state in states if state in ("agrees", "disagrees")]
        return decided[-1] if decided else min(states, key=STATES.index)


class View:
    """The whole page: for each plan its section of every set of records, the last with finished runs being shown.

    Args:
        given: sets of records, each with its sections in one order.
        claims: the paper's claims by id.
        damaged: a sentence for each file that could not be read.
        command: that fills a gap.
    """

    def __init__(
        self,
        given: Sequence[tuple[Source, Sequence[Section]]],
        claims: Mapping[str, Claim],
        damaged: Iterable[str],
        command: str,
    ) -> None:
        self.given, self.command, self.label = given, command, given[-1][0].label
        # A column without a single finished run says nothing; with no run at all, one column says that.
        self.columns = [pair for pair in given if _finished_records(pair[1])] or list(given[-1:])
        self.sources = [source for source, _ in self.columns]
        rows = list(zip(*(sections for _, sections in self.columns), strict=True))
        self.sections = [next((one for one in reversed(row) if one.finished), row[-1]) for row in rows]
        self.compared = {shown.id: row for shown, row in zip(self.sections, rows, strict=True) if len(row) > 1}
        self.claims = [
            ClaimRow(claims[name], shown, [_outcome(section, claims[name]) for section in row])
            for shown, row in zip(self.sections, rows, strict=True)
            for name in shown.plan.claims
        ]
        records = [record for _, sections in self.columns for section in sections for record in section.records]
        self.damaged = [*damaged, *dict.fromkeys(record.damage for record in records if record.damage)]
        self.finished_records = {source.id: _finished_records(sections) for source, sections in given}

    def folders(self, source: Source) -> str:
        """Where a set of records was read from."""
        return ", ".join(map(shown, source.folders))

    @property
    def counts(self) -> Counter[State]:
        return Counter(row.state for row in self.claims)

    def by_section(self, states: Sequence[State]) -> list[tuple[Section, list[ClaimRow]]]:
        """Claims in one of the states, under the section that tests them, in the order of the sections."""
        groups = [(section, [row for row in self.of(section) if row.state in states]) for section in self.sections]
        return [(section, rows) for section, rows in groups if rows]

    def of(self, section: Section) -> list[ClaimRow]:
        """The claims that a section tests."""
        return [row for row in self.claims if row.section is section]

    def outcome(self, row: ClaimRow) -> Outcome:
        """What the shown section says about its claim."""
        return _outcome(row.section, row.claim)

    def side_by_side(self, section: Section) -> Table | None:
        """Scores of one section from every set of records; None where one set alone has any."""
        scores = [(one, one.scores()) for one in self.compared.get(section.id, [])]
        if sum(bool(of_method) for _, of_method in scores) < 2:
            return None
        names = dict.fromkeys(name for _, of_method in reversed(scores) for name in of_method)
        rows = [
            [
                Cell(name),
                *(Cell(of_method.get(name, "no finished run"), link=one.anchor(name)) for one, of_method in scores),
            ]
            for name in names
        ]
        columns = [Column("method"), *(Column(source.name) for source in self.sources)]
        return Table("Scores of every set of records", columns, rows)

    def figures(self, section: Section) -> list[tuple[str, Picture, Markup]]:
        """The figures of a section: id on the page, caption and SVG."""
        figures = []
        for picture in section.pictures() if section.finished else ():
            name = f"plot-{section.plan.name}-{picture.kind}"
            title, words = f"{picture.title}: {section.plan.title}", picture.words()
            figures.append((name, picture, Markup(to_svg(picture.figure(section.source.doubt), name, title, words))))
        return figures

    def appendix(self, section: Section) -> list["GroupView"]:
        """The records of a section, group by group."""
        return [GroupView(group) for group in section.groups]


def _finished_records(sections: Sequence[Section]) -> int:
    """How many different finished records the sections rest on."""
    return len({record.signature for section in sections for record in section.records if record.finished})


def _outcome(section: Section, claim: Claim) -> Outcome:
    return Outcome(section.judge(claim), section.anchor() if section.finished else "")


# --- records ----------------------------------------------------------------------------------------------------------


COLUMNS = [Column(name) for name in ("record", "part", "status")]
COLUMNS += [Column("score", number=True), Column("seconds", number=True)]
COLUMNS += [Column(name) for name in ("commit", "machine", "time", "file")]


class GroupView:
    """The records of one group as a table; what they were asked in common, and what tells them apart."""

    def __init__(self, group: Group) -> None:
        self.id = group.id
        self.title = f"{group.method} on {group.task}" if group.task else group.method
        questions = [_flat(record.asked) for record in group.records]
        common = {key: value for key, value in questions[0].items() if all(q.get(key) == value for q in questions)}
        self.asked = json.dumps(_nested(common), indent=1)
        differences = [{key: value for key, value in one.items() if key not in common} for one in questions]
        rows = [_cells(record, differs) for record, differs in zip(group.records, differences, strict=True)]
        self.table = Table(f"Records of {self.title}", COLUMNS, rows)


def _cells(record: Record, differs: Mapping[tuple[str, ...], Any]) -> list[Cell]:
    """A record as a row; a part of a study is named by what it was asked apart from the others of its group."""
    parts = (f"{path[-1]} {json.dumps(value).strip(chr(34))}" for path, value in differs.items())
    part = ", ".join(parts) if record.is_study else f"seed {record.seed}"
    scored = record.finished and not record.is_study
    seconds, where = record.happened.get("seconds"), record.where
    machine = where.get("machine") or {}
    words = [machine.get("cpu"), machine.get("device"), f"{machine['cores']} cores" if "cores" in machine else None]
    return [
        Cell(record.signature),
        Cell(part),
        Cell(why(record)),
        Cell(f"{record.metric} {record.score:.2f} %", record.score) if scored else Cell(),
        Cell() if seconds is None else Cell(f"{seconds:,.1f}", seconds),
        Cell(str(where.get("commit") or "not known")[:12] + (", changed" if where.get("dirty") else "")),
        Cell(", ".join(str(word) for word in words if word)),
        Cell(str(where.get("time") or "")),
        Cell(shown(record.path)),
    ]


def shown(path: Path) -> str:
    """A path below the working directory where it lies there, so that a page is the same on every machine."""
    whole, here = path.absolute(), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(path)


def _flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Leaves of nested mappings by their path."""
    if isinstance(value, Mapping) and value:
        return {leaf: found for key, inner in value.items() for leaf, found in _flat(inner, (*path, key)).items()}
    return {path: value}


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        inner = nested
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return nested
