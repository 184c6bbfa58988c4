"""What a report is about: one plan for each table, which says what was asked and which claims it can test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """One table: the signatures of its records, and the ids of the paper's claims that it can test.

    `seeds` are those that were fixed before the runs: no other seed counts, and a failed run does. Without them every
    finished seed of the same request counts. `contrasts` are the pairs (method, minus) whose differences it is about.
    `asked` holds the `asked` block of planned runs by signature, so that one without a record has its row, its column
    and the reason.
    """

    name: str
    title: str
    signatures: Sequence[str]
    claims: Sequence[str] = ()
    seeds: Sequence[int] = field(default=(), kw_only=True)
    contrasts: Sequence[tuple[str, str]] = field(default=(), kw_only=True)
    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, kw_only=True)


class ComparisonPlan(Plan):
    """Methods compared on one model and one data set."""


@dataclass(frozen=True)
class GridPlan(Plan):
    """Methods (rows) compared on several tasks (columns).

    `published` names a file among the paper's numbers with rows that other publications print.
    """

    published: str = ""


@dataclass(frozen=True)
class StudyPlan(Plan):
    """The parts of a study."""

    study: str = ""
