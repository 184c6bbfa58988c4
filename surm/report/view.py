"""What the page shows, from sections and claims: verdicts, figures, what is missing, and the records."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from surm.records.record import Record
from surm.report.base import Group, Section, Source, why
from surm.report.claims import describe, remarks_on
from surm.report.drawing import Picture
from surm.report.plan import StudyPlan
from surm.report.primary import PrimaryRow
from surm.report.svg import to_svg
from surm.report.table import Cell, Column, Table
from surm.report.verdict import Claim, Verdict
from surm.shared.paths import PAPER

State = Literal["agrees", "disagrees", "depends on the reading", "undecided", "no record"]
STATES: tuple[State, ...] = ("agrees", "disagrees", "depends on the reading", "undecided", "no record")

FINE_TUNING, OTHERS, TOY = "Fine-tuning", "Other systems", "Toy studies"
KINDS = (FINE_TUNING, OTHERS, TOY)
LISTED: Mapping[str, Sequence[State]] = {"decided": ("agrees", "disagrees"), "open": ("undecided",)}


@dataclass(frozen=True)
class Outcome:
    """What one set of records says about a claim, and where these records stand on the page."""

    verdict: Verdict
    link: str

    @property
    def state(self) -> State:
        return self.verdict.result if self.verdict.found and self.verdict.finding != "not run" else "no record"


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
    def remarks(self) -> list[str]:
        return remarks_on(self.claim)

    @property
    def counted(self) -> bool:
        """Its rule can come out in more than one way."""
        return not self.claim.by_construction

    @property
    def kind(self) -> str:
        """What the claim is about, in the words of the page."""
        if isinstance(self.section.plan, StudyPlan):
            return TOY
        return FINE_TUNING if self.claim.paper in ("", PAPER.name) else OTHERS

    @property
    def state(self) -> State:
        """The firmest state of the outcomes; where one agrees and the other disagrees, that of the last."""
        states = [outcome.state for outcome in self.outcomes]
        decided = [state for state in states if state in ("agrees", "disagrees")]
        return decided[-1] if decided else min(states, key=STATES.index)


def sentences(rows: Iterable[ClaimRow]) -> Counter[State]:
    """How many sentences of the paper are in each state; several readings of a sentence count once.

    A registered reading that has been decided speaks for its sentence; else readings that differ say so.
    """
    readings: dict[str, list[ClaimRow]] = defaultdict(list)
    for row in rows:
        if row.counted:
            readings[row.claim.counted_as].append(row)
    return Counter(_together(own) for own in readings.values())


def _is_of(kind: str, states: Sequence[State], row: ClaimRow) -> bool:
    return row.kind == kind and row.counted and row.state in states


def _together(rows: Sequence[ClaimRow]) -> State:
    registered = [row for row in rows if row.claim.registered == "primary" and row.state != "no record"]
    states = [row.state for row in registered or rows]
    if {"agrees", "disagrees"} <= set(states):
        return "depends on the reading"
    return min(states, key=STATES.index)


def in_order(sections: Sequence[Section]) -> list[Section]:
    """Fine-tuning, then studies without a backbone, then the appendix."""
    return sorted(sections, key=place)


def place(section: Section) -> tuple[bool, bool]:
    """Where a section stands: the appendix last, studies after fine-tuning."""
    return section.in_appendix, isinstance(section.plan, StudyPlan)


@dataclass(frozen=True)
class Part:
    """Sections that belong together on the page."""

    id: str
    title: str
    words: str
    sections: Sequence[Section]


class View:
    """The whole page: for each plan its section of every set of records, the last with finished runs being shown.

    Args:
        given: sets of records, each with its sections in one order.
        claims: the paper's claims by id.
        damaged: a sentence for each file that could not be read.
        command: that fills a gap.
        primary: the primary claims with their answers.
    """

    def __init__(
        self,
        given: Sequence[tuple[Source, Sequence[Section]]],
        claims: Mapping[str, Claim],
        damaged: Iterable[str],
        command: str,
        primary: Sequence[PrimaryRow] = (),
    ) -> None:
        self.primary = primary
        self.given, self.command, self.label = given, command, given[-1][0].label
        # A column without a single finished run says nothing; with no run at all, one column says that.
        # Two sets of the same records say everything twice.
        self.columns = [pair for pair in given if _finished_records(pair[1])] or list(given[-1:])
        if len(self.columns) == 2 and _results(self.columns[0][1]) == _results(self.columns[1][1]):
            self.columns = self.columns[:1]
        self.sources = [source for source, _ in self.columns]
        rows = list(zip(*(sections for _, sections in self.columns), strict=True))
        shown = [next((one for one in reversed(row) if one.finished), row[-1]) for row in rows]
        self.sections = in_order(shown)
        row_of = {section.id: row for section, row in zip(shown, rows, strict=True)}
        self.compared = {name: row for name, row in row_of.items() if len(row) > 1}
        self.claims = [
            ClaimRow(claims[name], section, [_outcome(one, claims[name]) for one in row_of[section.id]])
            for section in self.sections
            for name in section.plan.claims
        ]
        records = [record for _, sections in self.columns for section in sections for record in section.records]
        self.damaged = [*damaged, *dict.fromkeys(record.damage for record in records if record.damage)]
        self.finished_records = {source.id: _finished_records(sections) for source, sections in given}

    def folders(self, source: Source) -> str:
        """Where a set of records was read from."""
        return ", ".join(map(shown, source.folders))

    @property
    def boxes(self) -> list[tuple[str, Counter[State]]]:
        """Sentences of each kind, by their state."""
        counts = {kind: sentences(row for row in self.claims if row.kind == kind) for kind in KINDS}
        return [(title, count) for title, count in counts.items() if count]

    @property
    def parts(self) -> list[Part]:
        """The sections in the page's order."""
        words = {
            (False, False): ("fine-tuning", "Fine-tuning", "Methods compared on pretrained models."),
            (False, True): ("studies", "Toy studies", "Matrices and small networks, without a pretrained model."),
            (True, False): ("appendix", "Appendix", "Tables that are planned and of which little or nothing has run."),
            (True, True): ("appendix-studies", "Appendix", "Studies that have not run."),
        }
        parts = {key: [section for section in self.sections if place(section) == key] for key in words}
        return [Part(*words[key], sections) for key, sections in parts.items() if sections]

    @property
    def groups(self) -> list[tuple[str, str, list[tuple[Section, list[ClaimRow]]]]]:
        """Claims in tables: title, caption, and the claims under the section that tests them."""
        kinds: list[tuple[str, Callable[[ClaimRow], bool]]] = [
            *((f"{kind}: {name}", partial(_is_of, kind, states)) for kind in KINDS for name, states in LISTED.items()),
            ("Not counted: they can come out in one way only", lambda row: not row.counted),
            ("No record", lambda row: row.counted and row.state == "no record"),
        ]
        found = []
        for title, belongs in kinds:
            under = [(section, [row for row in self.of(section) if belongs(row)]) for section in self.sections]
            if chosen := [(section, rows) for section, rows in under if rows]:
                number = sum(len(rows) for _, rows in chosen)
                found.append((f"{title} ({number} rule{'s' if number > 1 else ''})", title, chosen))
        return found

    def sentences_of(self, section: Section) -> Counter[State]:
        """The sentences that a section tests, by their state."""
        return sentences(self.of(section))

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
        for picture in section.pictures() if section.finished or section.plan.contrasts else ():
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


def _results(sections: Sequence[Section]) -> dict[str, Any]:
    """What happened in each finished record."""
    return {one.signature: one.happened for section in sections for one in section.records if one.finished}


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
