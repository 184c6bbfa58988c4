"""The rules that decide claims: a claim with its tasks, or with what a study measured, to a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

from surm.report.gather import NOT_RUN, Comparison, Method, contrast
from surm.report.inference import Difference
from surm.report.statistics import Estimate, mean_interval
from surm.report.verdict import (
    LEVEL,
    MARGIN,
    Claim,
    Effects,
    Result,
    Verdict,
    format_difference,
    in_a_word,
    named_methods,
    number_of,
    too_wide,
)

POWER_FOR = 2.0  # points, the gain whose chance to be found is printed beside a verdict on one task

Side = Literal["claimed", "opposite", "open"]


# --- what rules about tasks share -------------------------------------------------------------------------------------


def side_of(estimate: Estimate | None, side: str, threshold: float) -> Side:
    """On which side of the threshold an interval lies as a whole."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "open"
    above, below = estimate.low > threshold, estimate.high < threshold
    claimed, opposite = (above, below) if side == "above" else (below, above)
    return "claimed" if claimed else "opposite" if opposite else "open"


def finished_on(columns: Sequence[Comparison], names: Sequence[str]) -> list[tuple[Comparison, list[Method]]]:
    """The columns in which every named method has a finished run, with these methods."""
    found = [(column, [column.method(name) for name in names]) for column in columns]
    return [(column, [m for m in methods if m]) for column, methods in found if all(methods)]


def _absence(columns: Sequence[Comparison], names: Sequence[str]) -> str:
    """Which of the named methods have no finished run, and on which tasks."""
    lacking = {
        name: [column.title for column in columns if column.method(name) is None] for name in dict.fromkeys(names)
    }
    if len(columns) == 1:
        return f"no finished run of {', '.join(name for name, titles in lacking.items() if titles)}"
    return "no finished run of " + "; ".join(
        f"{name} on {', '.join(titles) if len(titles) < len(columns) else 'any task'}"
        for name, titles in lacking.items()
        if titles
    )


def not_run(columns: Sequence[Comparison], names: Sequence[str]) -> Verdict:
    return Verdict("undecided", "", _absence(columns, names), NOT_RUN)


def tally(sides: Sequence[Side], *, at_least: int, of: int) -> Verdict:
    """A claim about a number of tasks, decided by those on which it surely and those on which it possibly holds.

    `sides` are those of the tasks that have runs, `of` counts all: a task without runs is possible, and not sure.
    """
    sure, possible = sides.count("claimed"), of - sides.count("opposite")
    found = f"surely on {sure}, possibly on {possible} of {number_of(of, 'task')}" if sides else ""
    if sure >= at_least:
        return Verdict("agrees", found)
    if possible < at_least:
        return Verdict("disagrees", found)
    unfinished = of - len(sides)
    reason = f"{unfinished} of {number_of(of, 'task')} not finished" if unfinished else f"claimed for {at_least}"
    return Verdict("undecided", found, reason)


def mean_over(chosen: Sequence[tuple[Comparison, list[Method]]], signs: Sequence[int]) -> tuple[Estimate | None, str]:
    """The mean over columns of a signed sum of methods, and the same in words."""
    estimate = contrast([methods for _, methods in chosen], signs)
    if estimate is None:
        return None, ""
    found = f"{format_difference(estimate)} points, {number_of(estimate.seeds, 'seed')}"
    if len(chosen) > 1:
        return estimate, f"{found}, mean of {number_of(len(chosen), 'task')}"
    return estimate, found + _power(estimate.error) if estimate.error else found


def _power(error: Difference) -> str:
    """How likely one task is to show what is there."""
    gain, equal = (f"{100 * chance:.0f} %" for chance in (error.power(POWER_FOR), error.power_equivalent(MARGIN)))
    return f" (power: {gain} for a gain of {POWER_FOR:g}, {equal} for equivalence)"


def without_interval(estimate: Estimate | None, found: str) -> Verdict:
    return Verdict("undecided", found, estimate.reason if estimate else "no common seed")


# --- rules: a claim and its tasks, or what a study measured, to a verdict ---------------------------------------------


def difference(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """The mean over tasks of `method` less `minus`; of scope "some" and several tasks: the difference on one of them.

    Above (or below) `threshold` points by the 95 % interval, paired by seed.
    """
    rule, names = claim.rule, named_methods(claim)
    finished = finished_on(columns, names)
    sides = {
        column.title: side_of(method.minus(other), rule["side"], rule["threshold"])
        for column, (method, other) in finished
    }
    if claim.scope == "some" and finished and len(columns) > 1:
        return tally(list(sides.values()), at_least=1, of=len(columns))
    if len(finished) < len(columns):
        return not_run(columns, names)
    if level := _no_room(rule, [other for _, (_, other) in finished]):
        _, found = mean_over(finished, [1, -1])
        return Verdict("undecided", found, level, "not testable")
    verdict = _mean_difference(rule, finished, [1, -1])
    opposite = [label for label, side in sides.items() if side == "opposite"]
    if verdict.result == "agrees" and opposite:
        return Verdict("undecided", verdict.found, f"the opposite on {', '.join(opposite)}")
    return verdict


def _no_room(rule: Mapping[str, Any], others: Sequence[Method]) -> str:
    """Why a gain is impossible: the other method lies too near 100 %; empty where there is room."""
    level = fmean(method.mean for method in others)
    return f"{rule['minus']} at {level:.1f} %" if rule["side"] == "above" and level + rule["threshold"] > 100 else ""


def larger_gain(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """What `method` gains over `minus` is more than what `than.method` gains over `than.minus`, on the mean."""
    rule = claim.rule
    names = [rule["method"], rule["minus"], rule["than"]["method"], rule["than"]["minus"]]
    finished = finished_on(columns, names)
    if len(finished) < len(columns):
        return not_run(columns, names)
    return _mean_difference({"side": "above", "threshold": 0}, finished, [1, -1, -1, 1])


def _mean_difference(
    rule: Mapping[str, Any], finished: Sequence[tuple[Comparison, list[Method]]], signs: Sequence[int]
) -> Verdict:
    """The side on which the mean over tasks lies, two-sided.

    With `equivalence: disagrees` methods that are equivalent and not surely different refute a claimed gain.
    """
    estimate, found = mean_over(finished, signs)
    if estimate is None or estimate.error is None:
        return without_interval(estimate, found)
    error, threshold, word = estimate.error, rule["threshold"], in_a_word(estimate.error)
    claimed = (error.value > threshold) == (rule["side"] == "above")
    equivalent = word.startswith("equivalent")
    sure, unsure, reason = word, word, f"the interval contains {threshold:g}"
    if threshold == 0 and not equivalent:
        sure, unsure, reason = "larger" if error.value > 0 else "smaller", too_wide(error), ""
    decided = Verdict("agrees" if claimed else "disagrees", found, "", sure, error.p_differs(threshold))
    refuted = equivalent and rule.get("equivalence") == "disagrees"
    return replace(
        decided, otherwise=Verdict("disagrees" if refuted else "undecided", found, reason, unsure, decided.p)
    )


def every_task(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """`method` less `minus` lies on the claimed side of `threshold` on every task, or on `at_least` of them."""
    rule, names = claim.rule, named_methods(claim)
    finished = finished_on(columns, names)
    if not finished:
        return not_run(columns, names)
    differences = [method.minus(other) for _, (method, other) in finished]
    sides = [side_of(difference, rule["side"], rule["threshold"]) for difference in differences]
    at_least = rule.get("at_least", len(columns))
    verdict = tally(sides, at_least=at_least, of=len(columns))
    errors = [difference.error for difference in differences if difference and difference.error]
    if len(errors) < len(columns) or at_least < len(columns):
        return verdict
    sign, threshold = 1 if rule["side"] == "above" else -1, rule["threshold"]
    claimed = [sign * (error.value - threshold) > 0 for error in errors]
    return on_all(verdict.found, [error.p_differs(threshold) for error in errors], claimed)


def on_all(found: str, p_values: Sequence[float], claimed: Sequence[bool]) -> Verdict:
    """A claim about all of several differences, from each one's p-value and whether it lies on the claimed side.

    It holds if every one is surely on that side, which needs no correction for their number; it fails if one is surely
    on the other, of which there are several chances (Bonferroni).
    """
    holds = max(p_values) if all(claimed) else 1.0
    opposite = [p for p, one in zip(p_values, claimed, strict=True) if not one]
    fails = min(1.0, len(p_values) * min(opposite)) if opposite else 1.0
    result: Result = "agrees" if holds <= fails else "disagrees"
    reason = f"claimed for {len(p_values)}"
    return Verdict(
        result, found, p=min(holds, fails), otherwise=Verdict("undecided", found, reason, p=min(holds, fails))
    )


def equivalent(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """`method` less `minus` lies within `margin` points on every task, or on the mean of them (`mean: true`).

    By two one-sided tests: the 90 % interval lies within.
    """
    rule, names = claim.rule, named_methods(claim)
    finished, margin = finished_on(columns, names), rule["margin"]
    if not finished or (rule.get("mean") and len(finished) < len(columns)):
        return not_run(columns, names)
    if not rule.get("mean"):
        differences = [method.minus(other) for _, (method, other) in finished]
        verdict = tally([_within(one, margin) for one in differences], at_least=len(columns), of=len(columns))
        errors = [one.error for one in differences if one and one.error]
        if len(errors) < len(columns):
            return verdict
        inside = [abs(error.value) < margin for error in errors]
        p_values = [
            error.p_equivalent(margin) if within else _p_outside(error, margin)
            for error, within in zip(errors, inside, strict=True)
        ]
        return on_all(verdict.found, p_values, inside)
    estimate, found = mean_over(finished, [1, -1])
    if estimate is None or estimate.error is None:
        return without_interval(estimate, found)
    error = estimate.error
    if abs(error.value) < margin:
        decided = Verdict("agrees", found, "", f"equivalent within {margin:g}", error.p_equivalent(margin))
    else:
        word = "larger" if error.value > 0 else "smaller"
        decided = Verdict("disagrees", found, "", word, _p_outside(error, margin))
    word = in_a_word(error, margin=margin)
    open_word = too_wide(error) if word.startswith("equivalent") else word
    return replace(decided, otherwise=Verdict("undecided", found, "", open_word, decided.p))


def _p_outside(error: Difference, margin: float) -> float:
    """Two-sided p-value of "within the margins"."""
    return min(1.0, 2 * min(error.p_above(margin), error.p_below(-margin)))


def _within(estimate: Estimate | None, margin: float) -> Side:
    """Whether the 90 % interval lies wholly within ±margin (claimed) or the 95 % one wholly outside (opposite)."""
    if estimate is None or estimate.error is None:
        return "open"
    if estimate.error.p_equivalent(margin) <= LEVEL:
        return "claimed"
    return "opposite" if _p_outside(estimate.error, margin) <= LEVEL else "open"


def mean_gain(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """The mean over tasks of `method` less `minus`, whatever single tasks say; two-sided."""
    names = named_methods(claim)
    finished = finished_on(columns, names)
    return _mean_difference(claim.rule, finished, [1, -1]) if len(finished) == len(columns) else not_run(columns, names)


def matches(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """`method` on a `fraction` of `dataset` is at most `margin` points below `reference` on all of it."""
    rule, found = claim.rule, []
    for column in columns:
        if column.dataset == rule["dataset"] and abs(column.fraction - rule["fraction"]) < 1e-9:
            whole = (c for c in columns if (c.model, c.dataset, c.fraction) == (column.model, column.dataset, 1.0))
            full = next((c.method(rule["reference"]) for c in whole), None)
            method = column.method(rule["method"])
            if method and full:
                found.append((column, [method, full]))
    if not found:
        share = f"{100 * rule['fraction']:g} % of {rule['dataset']}"
        reason = f"no finished run of {rule['method']} on {share}, or of {rule['reference']} on all of it"
        return Verdict("undecided", "", reason, NOT_RUN)
    return _mean_difference({"side": "above", "threshold": -rule["margin"]}, found, [1, -1])


def effect(claim: Claim, effects: Effects) -> Verdict:
    """The 95 % interval of the mean over a study's draws lies on the claimed side of `threshold`.

    A claim about every draw (`every: true`) agrees only if each one lies on the claimed side.
    """
    rule = claim.rule
    values = effects.get(rule["effect"], [])
    if not values:
        return Verdict("undecided", "", "no finished record", NOT_RUN)
    sign, threshold = 1 if rule["side"] == "above" else -1, rule["threshold"]
    mean, low, high = mean_interval(values)
    found = f"{mean:.3g}, one draw" if low is None else f"{mean:.3g} [{low:.3g}, {high:.3g}], {len(values)} draws"
    claimed = sum(sign * (value - threshold) > 0 for value in values)
    if rule.get("every"):
        found += f", {claimed} of them on the claimed side"
    if low is None or high is None:
        return Verdict("undecided", found, "one draw, no interval")
    nearest, farthest = sorted(sign * (end - threshold) for end in (low, high))
    sides = ("larger", "smaller") if sign > 0 else ("smaller", "larger")
    if farthest < 0:
        return Verdict("disagrees", found, "", sides[1])
    if nearest <= 0:
        wide = f"too wide to say (±{(high - low) / 2:.2g})"
        return Verdict("undecided", found, f"the interval contains {threshold:g}", wide)
    if rule.get("every") and claimed < len(values):
        return Verdict("undecided", found, "not in every draw", sides[0])
    return Verdict("agrees", found, "", sides[0])
