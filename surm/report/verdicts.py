"""The paper's claims, the rules that decide them, and what an experiment says about each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from surm.report.experiments import Experiment, Method
from surm.report.statistics import Estimate, mean_interval

Result = Literal["agrees", "disagrees", "undecided"]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper in our words, its place, and the rule that decides it.

    `scope` is "every" (one opposite result disagrees) or "some" (the paper speaks of some tasks or of the best one:
    an opposite result on one task leaves it undecided). `models`, where given, are the only ones it speaks about.
    """

    id: str
    sentence: str
    place: str
    kind: str
    rule: dict[str, Any]
    needs: str
    scope: Literal["every", "some"] = "every"
    models: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """What the records say about a claim: the result, the numbers found and, where it is undecided, why."""

    result: Result
    found: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.result} ({self.reason})" if self.reason else self.result


def read_claims(folder: Path) -> dict[str, Claim]:
    """Claims of `claims.yaml` by id.

    Raises:
        ValueError: a claim of a kind that no rule decides.
    """
    entries = yaml.safe_load((folder / "claims.yaml").read_text())
    claims = {name: Claim(id=name, **entry) for name, entry in entries.items()}
    for claim in claims.values():
        if claim.kind not in KINDS:
            raise ValueError(f"claim {claim.id} is of kind {claim.kind}: allowed are {', '.join(KINDS)}.")
    return claims


def judge(claim: Claim, experiment: Experiment) -> Verdict:
    """Apply a claim's rule to an experiment; undecided unless the numbers leave one side only."""
    named = named_methods(claim)
    methods = {name: method for name in named if (method := experiment.method(name))}
    if absent := [name for name in named if name not in methods]:
        return Verdict("undecided", "", f"no finished run of {', '.join(absent)}")
    verdict = RULES[claim.kind](claim.rule, methods)
    if not experiment.is_evidence:
        return Verdict("undecided", verdict.found, experiment.label)
    if claim.models and experiment.model not in claim.models:
        return Verdict("undecided", verdict.found, f"said of {' and '.join(claim.models)}, run on {experiment.model}")
    if claim.scope == "some" and verdict.result == "disagrees":
        return Verdict("undecided", verdict.found, "not seen here, and claimed for some tasks only")
    return verdict


def judge_effect(claim: Claim, effects: Mapping[str, Sequence[float]], label: str = "") -> Verdict:
    """Apply a claim of kind "effect" to a study: one value for each draw, against a threshold.

    It agrees (disagrees) when the 95 % interval of the mean over draws lies on the claimed (the other) side. A claim
    about every draw (`every: true`) agrees only if each one lies on the claimed side.
    """
    rule = claim.rule
    values = effects.get(rule["effect"], [])
    if not values:
        return Verdict("undecided", "", "no finished record")
    sign, threshold = 1 if rule["side"] == "above" else -1, rule["threshold"]
    mean, low, high = mean_interval(values)
    found = f"{mean:.3g}, one draw" if low is None else f"{mean:.3g} [{low:.3g}, {high:.3g}], {len(values)} draws"
    claimed = sum(sign * (value - threshold) > 0 for value in values)
    if rule.get("every"):
        found += f", {claimed} of them on the claimed side"
    if label.endswith("not evidence"):
        return Verdict("undecided", found, label)
    if low is None or high is None:
        return Verdict("undecided", found, "one draw, no interval")
    nearest, farthest = sorted(sign * (end - threshold) for end in (low, high))
    if farthest < 0:
        return Verdict("disagrees", found)
    if nearest <= 0:
        return Verdict("undecided", found, f"the interval contains {threshold:g}")
    if rule.get("every") and claimed < len(values):
        return Verdict("undecided", found, "not in every draw")
    return Verdict("agrees", found)


def named_methods(claim: Claim) -> list[str]:
    """The methods that a claim's rule names."""
    rule = claim.rule
    return [*rule.get("methods", []), *(rule[key] for key in ("method", "minus") if key in rule)]


# --- one rule for each kind of claim ----------------------------------------------------------------------------------


def _difference(rule: dict[str, Any], methods: dict[str, Method]) -> Verdict:
    """`method` less `minus`, paired by seed, lies above (or below) `threshold` points: by the 95 % interval."""
    estimate = methods[rule["method"]].minus(methods[rule["minus"]])
    if estimate is None:
        return Verdict("undecided", "", "no common seed")
    found = f"{format_difference(estimate)} points, {estimate.seeds} seeds"
    if estimate.low is None or estimate.high is None:
        return Verdict("undecided", found, estimate.reason)
    above, below = estimate.low > rule["threshold"], estimate.high < rule["threshold"]
    claimed, opposite = (above, below) if rule["side"] == "above" else (below, above)
    if claimed or opposite:
        return Verdict("agrees" if claimed else "disagrees", found)
    return Verdict("undecided", found, f"the interval contains {rule['threshold']:g}")


def _count(rule: dict[str, Any], methods: dict[str, Method]) -> Verdict:
    """`method` trains exactly `equals` parameters without the head."""
    count = methods[rule["method"]].trainable_parameters
    return Verdict("agrees" if count == rule["equals"] else "disagrees", f"{count:,}")


def _equal_counts(rule: dict[str, Any], methods: dict[str, Method]) -> Verdict:
    """All `methods` train the same number of parameters without the head."""
    counts = {name: method.trainable_parameters for name, method in methods.items()}
    if len(set(counts.values())) == 1:
        return Verdict("agrees", f"{next(iter(counts.values())):,} each")
    return Verdict("disagrees", ", ".join(f"{name} {count:,}" for name, count in counts.items()))


def _share(rule: dict[str, Any], methods: dict[str, Method]) -> Verdict:
    """The trained share of the model's parameters lies between `low` and `high` percent."""
    method = methods[rule["method"]]
    share = 100 * method.trainable_parameters / method.finished[0].happened["total_parameters"]
    inside = rule["low"] <= share <= rule["high"]
    return Verdict("agrees" if inside else "disagrees", f"{share:.3g} % ({method.trainable_parameters:,})")


EFFECT = "effect"
"""The kind of claim that a study decides, by `judge_effect`."""

RULES: dict[str, Callable[[dict[str, Any], dict[str, Method]], Verdict]] = {
    "difference": _difference,
    "count": _count,
    "equal_counts": _equal_counts,
    "share": _share,
}


COLUMN_KINDS = ("best_on", "top_two_on", "every_column", "larger_gain", "equivalent", "matches", "ratio")
"""The kinds of claim about several tasks, whose rules stand in `surm.report.grid_verdicts`."""

KINDS = (*RULES, EFFECT, *COLUMN_KINDS)


def describe(claim: Claim) -> str:
    """The rule in words."""
    rule = claim.rule
    words = _describe_columns(claim) if claim.kind in COLUMN_KINDS else _describe(claim)
    words += f", on {', '.join(rule['datasets'])}" if "datasets" in rule else ""
    words += f", on less than {100 * rule['fraction_below']:g} % of the data" if "fraction_below" in rule else ""
    return words


def _describe_columns(claim: Claim) -> str:
    rule = claim.rule
    match claim.kind:
        case "best_on" | "top_two_on":
            place = "best" if claim.kind == "best_on" else "among the best two"
            families = ", ".join(rule["families"]) + (f" in {rule['form']} form" if "form" in rule else "")
            return f"one of {families} is {place} on at least {rule['at_least']} of {rule['of']} tasks"
        case "every_column":
            tasks = f"at least {rule['at_least']} tasks" if "at_least" in rule else "every task"
            return f"{_describe_difference(rule)} on {tasks}"
        case "larger_gain":
            than = rule["than"]
            return f"({rule['method']} minus {rule['minus']}) minus ({than['method']} minus {than['minus']}) > 0 points"
        case "equivalent":
            tasks = "the mean of the tasks" if rule.get("mean") else "every task"
            return f"{rule['method']} minus {rule['minus']} within ±{rule['margin']:g} points on {tasks}"
        case "matches":
            share = f"{100 * rule['fraction']:g} % of {rule['dataset']}"
            return f"{rule['method']} on {share} minus {rule['reference']} on all of it > {-rule['margin']:g} points"
        case _:
            return f"{rule['to']} trains {rule['low']:g} to {rule['high']:g} times the parameters of {rule['method']}"


def _describe_difference(rule: Mapping[str, Any]) -> str:
    sign = ">" if rule["side"] == "above" else "<"
    return f"{rule['method']} minus {rule['minus']} {sign} {rule['threshold']:g} points"


def _describe(claim: Claim) -> str:
    rule = claim.rule
    match claim.kind:
        case "difference":
            return _describe_difference(rule)
        case "count":
            return f"{rule['method']} trains {rule['equals']:,} parameters"
        case "effect":
            every = ", in every draw" if rule.get("every") else ""
            return f"{rule['effect']} {'>' if rule['side'] == 'above' else '<'} {rule['threshold']:g}{every}"
        case "equal_counts":
            return f"{', '.join(rule['methods'])} train equally many parameters"
        case _:
            return f"{rule['method']} trains {rule['low']:g} to {rule['high']:g} % of the model"


def format_difference(estimate: Estimate) -> str:
    """A difference in points with its interval, as `+1.6 [+0.4, +2.8]`."""
    if estimate.low is None:
        return f"{estimate.value:+.2f}"
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
