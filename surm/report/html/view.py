"""What the page shows, from sections and claims: verdicts, tables, figures, what is missing, and the records."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from surm.records.record import Record
from surm.report.base import Group, Section
from surm.report.grid import Grid
from surm.report.html.tables import Anchors, Cell, Table, table_of
from surm.report.plots import Plot
from surm.report.tables import why
from surm.report.verdicts import Claim, Verdict, describe

State = Literal["agrees", "disagrees", "undecided", "no record"]
STATES: tuple[State, ...] = ("agrees", "disagrees", "undecided", "no record")


@dataclass(frozen=True)
class Source:
    """The sections made from one set of records: its id and name on the page, and the folders it was read from."""

    id: str
    name: str
    folders: Sequence[Path]
    sections: Sequence[Section]

    @property
    def finished(self) -> bool:
        return any(section.finished for section in self.sections)

    @property
    def place(self) -> str:
        return ", ".join(map(shown, self.folders))

    @property
    def finished_records(self) -> int:
        """How many different finished records the sections rest on."""
        return len({record.signature for section in self.sections for record in section.records if record.finished})

    @cached_property
    def views(self) -> list["SectionView"]:
        return [SectionView(section, self) for section in self.sections]


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
    """A sentence of the paper, its section on the page, and an outcome for each set of records."""

    claim: Claim
    section: "SectionView"
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


class SectionView:
    """A section with the anchors of its records and the groups that these are listed in."""

    def __init__(self, section: Section, source: Source) -> None:
        self.section, self.source = section, source
        self.name, self.title, self.label = section.plan.name, section.plan.title, section.label
        self.id = f"section-{self.name}"
        start = f"records-{source.id}-{self.name}"
        self.groups = [GroupView(f"{start}-{place}", group) for place, group in enumerate(section.groups())]
        of_group = {(view.group.task, view.group.method): view.id for view in self.groups}
        self.anchors = Anchors(start if self.groups else self.id, of_group)

    @property
    def finished(self) -> bool:
        return self.section.finished

    @cached_property
    def table(self) -> Table | None:
        return table_of(self.section, self.anchors)

    @cached_property
    def plots(self) -> dict[str, Plot]:
        """Figures by their id on the page."""
        return {f"plot-{self.name}-{plot.kind}": plot for plot in self.section.plots()}

    @property
    def notes(self) -> str:
        return "\n".join(self.section.notes() if self.finished else [])

    @property
    def absent(self) -> str:
        return "\n".join(self.section.absent())

    @property
    def elsewhere(self) -> str:
        return "\n".join(self.section.elsewhere())

    @property
    def planned(self) -> str:
        """What was planned, where nothing is finished."""
        if isinstance(self.section, Grid) and not self.finished:
            return f"Methods: {'; '.join(self.section.rows)}. Tasks: {'; '.join(self.tasks)}."
        return ""

    @property
    def tasks(self) -> list[str]:
        """Of a grid, its columns."""
        return [column.label for column in self.section.columns] if isinstance(self.section, Grid) else []

    @property
    def total(self) -> int:
        return len(set(self.section.plan.signatures))

    @cached_property
    def _outcomes(self) -> dict[str, Outcome]:
        return {}

    def outcome(self, claim: Claim) -> Outcome:
        """What the section says about a claim; an interval takes its time, so it is judged once."""
        if claim.id not in self._outcomes:
            link = self.anchors.section if self.finished else ""
            self._outcomes[claim.id] = Outcome(self.section.judge(claim), link)
        return self._outcomes[claim.id]


class GroupView:
    """The records of one group as lines; what they were asked in common, and what tells them apart."""

    def __init__(self, anchor: str, group: Group) -> None:
        self.id, self.group = anchor, group
        self.title = f"{group.method} on {group.task}" if group.task else group.method
        questions = [_flat(record.asked) for record in group.records]
        common = {key: value for key, value in questions[0].items() if all(q.get(key) == value for q in questions)}
        self.asked = json.dumps(_nested(common), indent=1)
        self.lines = [
            RecordLine(record, {key: value for key, value in question.items() if key not in common})
            for record, question in zip(group.records, questions, strict=True)
        ]


@dataclass(frozen=True)
class RecordLine:
    """A record in the appendix; `part` is what it was asked apart from the others of its group."""

    record: Record
    differs: Mapping[tuple[str, ...], Any]

    @property
    def part(self) -> str:
        if not self.record.is_study:
            return f"seed {self.record.seed}"
        return ", ".join(f"{path[-1]} {json.dumps(value).strip(chr(34))}" for path, value in self.differs.items())

    @property
    def score(self) -> str:
        return f"{self.record.metric} {self.record.score:.2f} %" if self._has_score else ""

    @property
    def value(self) -> float | None:
        return self.record.score if self._has_score else None

    @property
    def _has_score(self) -> bool:
        return self.record.finished and not self.record.is_study

    @property
    def status(self) -> str:
        return why(self.record)

    @property
    def seconds(self) -> float | None:
        return self.record.happened.get("seconds")

    @property
    def commit(self) -> str:
        commit = str(self.record.where.get("commit") or "not known")[:12]
        return f"{commit}, changed" if self.record.where.get("dirty") else commit

    @property
    def machine(self) -> str:
        machine = self.record.where.get("machine") or {}
        words = [machine.get("cpu"), machine.get("device"), f"{machine['cores']} cores" if "cores" in machine else None]
        return ", ".join(str(word) for word in words if word)

    @property
    def time(self) -> str:
        return str(self.record.where.get("time") or "")

    @property
    def path(self) -> str:
        return shown(self.record.path)


class View:
    """The whole page: for each plan its section of every set of records, the last with finished runs being shown."""

    def __init__(
        self, sources: Sequence[Source], claims: Mapping[str, Claim], damaged: Iterable[str], command: str
    ) -> None:
        self.given, self.command = sources, command
        # A column without a single finished run says nothing; with no run at all, one column says that.
        self.sources = [source for source in sources if source.finished] or list(sources[-1:])
        rows = list(zip(*(source.views for source in self.sources), strict=True))
        self.sections = [next((view for view in reversed(views) if view.finished), views[-1]) for views in rows]
        self.compared = {shown.name: views for shown, views in zip(self.sections, rows, strict=True) if len(views) > 1}
        self.claims = [
            ClaimRow(claims[name], shown, [view.outcome(claims[name]) for view in views])
            for shown, views in zip(self.sections, rows, strict=True)
            for name in shown.section.plan.claims
        ]
        records = [record for source in self.sources for view in source.views for record in view.section.records]
        flawed = dict.fromkeys(record.damage for record in records if record.damage)
        self.damaged = [*damaged, *flawed]

    @property
    def counts(self) -> Counter[State]:
        return Counter(row.state for row in self.claims)

    def claims_of(self, *states: State) -> list[ClaimRow]:
        return [row for row in self.claims if row.state in states]

    def by_section(self, rows: Sequence[ClaimRow]) -> list[tuple[SectionView, list[ClaimRow]]]:
        """Claims under the section that tests them, in the order of the sections."""
        of_section = {id(section): [row for row in rows if row.section is section] for section in self.sections}
        return [(section, of_section[id(section)]) for section in self.sections if of_section[id(section)]]

    def of_section(self, section: SectionView) -> list[ClaimRow]:
        return [row for row in self.claims if row.section is section]

    def scores(self, section: SectionView) -> list[tuple[str, list[Cell]]]:
        """Scores of one section from every set of records, side by side; nothing where one set alone has any."""
        columns = [
            {name: Cell(text, link=view.anchors.of(name)) for name, text in view.section.scores().items()}
            for view in self.compared.get(section.name, [])
        ]
        if sum(map(bool, columns)) < 2:
            return []
        names = dict.fromkeys(name for column in reversed(columns) for name in column)
        return [(name, [column.get(name, Cell("no finished run")) for column in columns]) for name in names]

    @property
    def figures(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {name: vars_of(plot) for section in self.sections for name, plot in section.plots.items()}


def shown(path: Path) -> str:
    """A path below the working directory where it lies there, so that a page is the same on every machine."""
    whole, here = path.absolute(), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(path)


def vars_of(plot: Plot) -> dict[str, Any]:
    """A plot as JSON has it, without what the page prints itself."""
    return {
        "panels": [vars(panel) for panel in plot.panels],
        "columns": plot.columns,
        "height": plot.height,
        "rows": plot.rows,
    }


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
