"""A claim of a paper, the verdict on it, and what an interval says in a word."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from surm.report.inference import Difference
from surm.report.statistics import Estimate

LEVEL = 0.05  # of every test whose p-value is not adjusted
MARGIN = 1.0  # points within which two methods are called equivalent

Result = Literal["agrees", "disagrees", "undecided"]
Effects = Mapping[str, Sequence[float]]
"""What a study measured: quantity -> one value for each draw."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper in our words, where it stands there, and the rule that decides it.

    `scope` is "every" (one opposite result disagrees) or "some" (the paper speaks of some tasks or of the best one:
    an opposite result on one task leaves it undecided). `models`, where given, are the only ones it speaks about.

    reading_of: the sentence of which this is one reading; sentences are counted, not readings.
    registered: "primary" or "secondary" where seeds, tasks and level were fixed before the runs.
    table: the table that tests it; other claims are named by the tables.
    by_construction: why the rule can come out in one way only; such a claim is shown and not counted.
    chosen_after: what had been looked at when the rule was written; "" where nothing had.
    paper: the folder of the paper that says it.
    """

    id: str
    sentence: str
    place: str
    kind: str
    rule: dict[str, Any]
    needs: str
    scope: Literal["every", "some"] = "every"
    models: Sequence[str] = ()
    reading_of: str = ""
    registered: Literal["primary", "secondary", ""] = ""
    table: str = ""
    by_construction: str = ""
    chosen_after: str = ""
    paper: str = ""

    @property
    def counted_as(self) -> str:
        """The sentence that it is counted under."""
        return self.reading_of or self.id


@dataclass(frozen=True)
class Verdict:
    """What the records say about a claim.

    result: agrees, disagrees or undecided.
    found: the numbers.
    reason: why it is undecided, or what to know about the result.
    finding: what was found, in a word: larger, smaller, equivalent within 1, too wide to say, not testable, not run.
    p: the least level at which the rule decides; None where nothing was tested.
    otherwise: the verdict at a lower level than p.
    """

    result: Result
    found: str
    reason: str = ""
    finding: str = ""
    p: float | None = None
    otherwise: "Verdict | None" = None

    @property
    def words(self) -> str:
        """The finding, after the result where there is one: "agrees: larger", "too wide to say (±2.4)"."""
        if self.result == "undecided":
            return self.finding or self.result
        return f"{self.result}: {self.finding}" if self.finding else self.result

    def __str__(self) -> str:
        return f"{self.words} ({self.reason})" if self.reason else self.words

    def at(self, level: float, p: float | None = None) -> "Verdict":
        """The verdict at a level, by its own p-value or by an adjusted one, which is then printed."""
        if self.p is None or self.otherwise is None:
            return self
        used = self.p if p is None else p
        verdict = self if used <= level else self.otherwise
        if p is None:
            return verdict
        printed = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        return replace(verdict, found=f"{verdict.found}, adjusted {printed}", p=p)


def named_methods(claim: Claim) -> list[str]:
    """The methods that a claim's rule names."""
    rule = claim.rule
    own = [*rule.get("methods", []), *(rule[key] for key in ("method", "minus") if key in rule)]
    than = rule.get("than", {})
    return [*own, *rule.get("others", []), *(than[key] for key in ("method", "minus") if key in than)]


def number_of(number: int, thing: str) -> str:
    """As "1 seed" or "8 seeds"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def format_difference(estimate: Estimate) -> str:
    """A difference in points with its interval, as `+1.6 [+0.4, +2.8]`."""
    if estimate.low is None:
        return f"{estimate.value:+z.1f}"
    return f"{estimate.value:+z.1f} [{estimate.low:+z.1f}, {estimate.high:+z.1f}]"


def in_a_word(error: Difference, *, margin: float = MARGIN) -> str:
    """What an interval says of a difference in points: equivalent (90 %), larger or smaller (95 %), or too wide."""
    if error.p_equivalent(margin) <= LEVEL:
        return f"equivalent within {margin:g}"
    if error.p_differs() <= LEVEL:
        return "larger" if error.value > 0 else "smaller"
    return too_wide(error)


def too_wide(error: Difference) -> str:
    return f"too wide to say (±{error.half_width():.1f})"
