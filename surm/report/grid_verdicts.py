"""What a grid says about the paper's claims: one rule for each kind of claim, over tasks instead of on one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, Literal

from surm.report.experiments import Column, Method, contrast
from surm.report.statistics import Estimate
from surm.report.verdicts import RULES, Claim, Verdict, format_difference, named_methods

Side = Literal["claimed", "opposite", "open"]


def judge_columns(claim: Claim, columns: Sequence[Column], label: str) -> Verdict:
    """Apply a claim's rule to the tasks it speaks of; undecided unless the numbers leave one side only.

    Tasks are restricted to the claim's `models`, to the rule's `datasets` and to fractions of the training split below
    `fraction_below`, where these are given. A label that ends in "not evidence" forbids verdicts.
    """
    spoken = [column for column in columns if not claim.models or column.model in claim.models]
    chosen = [column for column in spoken or columns if _is_chosen(claim.rule, column)]
    if not chosen:
        return Verdict("undecided", "", "no task that it speaks of")
    verdict = COLUMN_RULES[claim.kind](claim, chosen)
    if label.endswith("not evidence"):
        return Verdict("undecided", verdict.found, label)
    if not spoken:
        models = " and ".join(dict.fromkeys(column.model for column in columns))
        return Verdict("undecided", verdict.found, f"said of {' and '.join(claim.models)}, run on {models}")
    if claim.scope == "some" and verdict.result == "disagrees":
        return Verdict("undecided", verdict.found, "not seen here, and claimed for some tasks only")
    return verdict


def _is_chosen(rule: Mapping[str, Any], column: Column) -> bool:
    return column.dataset in rule.get("datasets", [column.dataset]) and (
        "fraction_below" not in rule or column.fraction < rule["fraction_below"]
    )


# --- what the rules share ---------------------------------------------------------------------------------------------


def _side(estimate: Estimate | None, side: str, threshold: float) -> Side:
    """On which side of the threshold an interval lies as a whole."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "open"
    above, below = estimate.low > threshold, estimate.high < threshold
    claimed, opposite = (above, below) if side == "above" else (below, above)
    return "claimed" if claimed else "opposite" if opposite else "open"


def _finished(columns: Sequence[Column], names: Sequence[str]) -> list[tuple[Column, list[Method]]]:
    """The columns in which every named method has a finished run, with these methods."""
    found = [(column, [column.experiment.method(name) for name in names]) for column in columns]
    return [(column, [m for m in methods if m]) for column, methods in found if all(methods)]


def _absence(columns: Sequence[Column], names: Sequence[str]) -> str:
    """Which of the named methods have no finished run, and on which tasks."""
    lacking = {
        name: [column.label for column in columns if column.experiment.method(name) is None]
        for name in dict.fromkeys(names)
    }
    return "no finished run of " + "; ".join(
        f"{name} on {', '.join(labels) if len(labels) < len(columns) else 'any task'}"
        for name, labels in lacking.items()
        if labels
    )


def _tally(sides: Sequence[Side], *, at_least: int, of: int) -> Verdict:
    """A claim about a number of tasks, decided by those on which it surely and those on which it possibly holds.

    `sides` are those of the tasks that have runs, `of` counts all: a task without runs is possible, and not sure.
    """
    sure, possible = sides.count("claimed"), of - sides.count("opposite")
    found = f"surely on {sure}, possibly on {possible} of {_tasks(of)}" if sides else ""
    if sure >= at_least:
        return Verdict("agrees", found)
    if possible < at_least:
        return Verdict("disagrees", found)
    unfinished = of - len(sides)
    reason = f"{unfinished} of {_tasks(of)} not finished" if unfinished else f"claimed for {at_least}"
    return Verdict("undecided", found, reason)


def _tasks(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"


def _mean_over(chosen: Sequence[tuple[Column, list[Method]]], signs: Sequence[int]) -> tuple[Estimate | None, str]:
    """The mean over columns of a signed sum of methods, and the same in words."""
    estimate = contrast([methods for _, methods in chosen], signs)
    if estimate is None:
        return None, ""
    found = f"{format_difference(estimate)} points, {estimate.seeds} seeds"
    return estimate, found if len(chosen) == 1 else f"{found}, mean of {_tasks(len(chosen))}"


def _without_interval(estimate: Estimate | None, found: str) -> Verdict:
    return Verdict("undecided", found, estimate.reason if estimate else "no common seed")


# --- one rule for each kind of claim ----------------------------------------------------------------------------------


def _difference(claim: Claim, columns: Sequence[Column]) -> Verdict:
    """The mean over tasks of `method` less `minus`; of scope "some": the difference on one task at least."""
    rule, names = claim.rule, named_methods(claim)
    finished = _finished(columns, names)
    sides = {
        column.label: _side(method.minus(other), rule["side"], rule["threshold"])
        for column, (method, other) in finished
    }
    if claim.scope == "some" and finished:
        return _tally(list(sides.values()), at_least=1, of=len(columns))
    if len(finished) < len(columns):
        return Verdict("undecided", "", _absence(columns, names))
    verdict = _mean_difference(rule, finished, [1, -1])
    opposite = [label for label, side in sides.items() if side == "opposite"]
    if verdict.result == "agrees" and opposite:
        return Verdict("undecided", verdict.found, f"the opposite on {', '.join(opposite)}")
    return verdict


def _larger_gain(claim: Claim, columns: Sequence[Column]) -> Verdict:
    """What `method` gains over `minus` is more than what `than.method` gains over `than.minus`, on the mean."""
    rule = claim.rule
    names = [rule["method"], rule["minus"], rule["than"]["method"], rule["than"]["minus"]]
    finished = _finished(columns, names)
    if len(finished) < len(columns):
        return Verdict("undecided", "", _absence(columns, names))
    return _mean_difference({"side": "above", "threshold": 0}, finished, [1, -1, -1, 1])


def _mean_difference(
    rule: Mapping[str, Any], finished: Sequence[tuple[Column, list[Method]]], signs: Sequence[int]
) -> Verdict:
    estimate, found = _mean_over(finished, signs)
    if estimate is None or estimate.low is None:
        return _without_interval(estimate, found)
    side = _side(estimate, rule["side"], rule["threshold"])
    if side == "open":
        return Verdict("undecided", found, f"the interval contains {rule['threshold']:g}")
    return Verdict("agrees" if side == "claimed" else "disagrees", found)


def _every_column(claim: Claim, columns: Sequence[Column]) -> Verdict:
    """`method` less `minus` lies on the claimed side of `threshold` on every task, or on `at_least` of them."""
    rule, names = claim.rule, named_methods(claim)
    finished = _finished(columns, names)
    if not finished:
        return Verdict("undecided", "", _absence(columns, names))
    sides = [_side(method.minus(other), rule["side"], rule["threshold"]) for _, (method, other) in finished]
    return _tally(sides, at_least=rule.get("at_least", len(columns)), of=len(columns))


def _equivalent(claim: Claim, columns: Sequence[Column]) -> Verdict:
    """`method` less `minus` lies within `margin` points on every task, or on the mean of them (`mean: true`)."""
    rule, names = claim.rule, named_methods(claim)
    finished = _finished(columns, names)
    if not finished or (rule.get("mean") and len(finished) < len(columns)):
        return Verdict("undecided", "", _absence(columns, names))
    if not rule.get("mean"):
        sides = [_within(method.minus(other), rule["margin"]) for _, (method, other) in finished]
        return _tally(sides, at_least=len(columns), of=len(columns))
    estimate, found = _mean_over(finished, [1, -1])
    if estimate is None or estimate.low is None:
        return _without_interval(estimate, found)
    side = _within(estimate, rule["margin"])
    if side == "open":
        return Verdict("undecided", found, f"the interval is neither within nor outside ±{rule['margin']:g}")
    return Verdict("agrees" if side == "claimed" else "disagrees", found)


def _within(estimate: Estimate | None, margin: float) -> Side:
    """Whether an interval lies wholly within ±margin (claimed) or wholly outside (opposite)."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "open"
    if estimate.low > -margin and estimate.high < margin:
        return "claimed"
    return "opposite" if estimate.low > margin or estimate.high < -margin else "open"


def _among(claim: Claim, columns: Sequence[Column], *, top: int) -> Verdict:
    """A row of `families` is among the best `top` rows on `at_least` of the `of` tasks.

    Its rivals are the rows of all other families; rows of `families` in another `form` than the rule's, and those of
    families set `apart`, count for neither side. Surely: at most `top` - 1 rivals are not surely below it. Possibly:
    at most `top` - 1 rivals are surely above it. A task counts when every planned method has a finished run on it.
    """
    rule = claim.rule
    if len(columns) != rule["of"]:
        return Verdict("undecided", "", f"said of {_tasks(rule['of'])}, the table has {len(columns)}")
    sides: list[Side] = [_place(column, rule, top) for column in columns if column.complete]
    verdict = _tally(sides, at_least=rule["at_least"], of=len(columns))
    if len(sides) < len(columns):
        return Verdict("undecided", verdict.found, f"{len(sides)} of {_tasks(len(columns))} finished")
    return verdict


def _place(column: Column, rule: Mapping[str, Any], top: int) -> Side:
    rows = sorted((method for method in column.experiment.methods if method.finished), key=_score, reverse=True)
    own = [method for method in rows if method.family in rule["families"]]
    ours = [method for method in own if rule.get("form", method.form) == method.form]
    rivals = [method for method in rows if method not in own and method.family not in rule.get("apart", [])]
    if any(sum(not _is_above(method, rival) for rival in rivals) < top for method in ours):
        return "claimed"
    if all(sum(_is_above(rival, method) for rival in rivals) >= top for method in ours):
        return "opposite"
    return "open"


def _score(method: Method) -> float:
    return fmean(run.score for run in method.finished)


def _is_above(method: Method, other: Method) -> bool:
    """Surely: by the interval of the paired difference, which is drawn only where the means leave it open."""
    return _score(method) > _score(other) and _side(method.minus(other), "above", 0) == "claimed"


def _matches(claim: Claim, columns: Sequence[Column]) -> Verdict:
    """`method` on a `fraction` of `dataset` is at most `margin` points below `reference` on all of it."""
    rule, found = claim.rule, []
    for column in columns:
        if column.dataset == rule["dataset"] and abs(column.fraction - rule["fraction"]) < 1e-9:
            whole = (c for c in columns if (c.model, c.dataset, c.fraction) == (column.model, column.dataset, 1.0))
            full = next((c.experiment.method(rule["reference"]) for c in whole), None)
            method = column.experiment.method(rule["method"])
            if method and full:
                found.append((column, [method, full]))
    if not found:
        share = f"{100 * rule['fraction']:g} % of {rule['dataset']}"
        reason = f"no finished run of {rule['method']} on {share}, or of {rule['reference']} on all of it"
        return Verdict("undecided", "", reason)
    estimate, words = _mean_over(found, [1, -1])
    if estimate is None or estimate.low is None:
        return _without_interval(estimate, words)
    side = _side(estimate, "above", -rule["margin"])
    if side == "open":
        return Verdict("undecided", words, f"the interval contains {-rule['margin']:g}")
    return Verdict("agrees" if side == "claimed" else "disagrees", words)


def _ratio(claim: Claim, columns: Sequence[Column]) -> Verdict:
    """`to` trains `low` to `high` times as many parameters as `method`, without the head; the same on every task."""
    rule, names = claim.rule, [claim.rule["method"], claim.rule["to"]]
    finished = _finished(columns, names)
    if not finished:
        return Verdict("undecided", "", _absence(columns, names))
    counts = dict.fromkeys((to.trainable_parameters, method.trainable_parameters) for _, (method, to) in finished)
    if any(own == 0 for _, own in counts):
        return Verdict("disagrees", f"{rule['method']} trains the head alone")
    inside = [rule["low"] <= to / own <= rule["high"] for to, own in counts]
    words = "; ".join(f"{to / own:,.4g} times ({to:,} / {own:,})" for to, own in counts)
    holds = any(inside) if claim.scope == "some" else all(inside)
    return Verdict("agrees" if holds else "disagrees", words)


def _on_each(claim: Claim, columns: Sequence[Column]) -> Verdict:
    """A rule about parameters, on each task where the named methods have finished; all must agree."""
    names = named_methods(claim)
    finished = _finished(columns, names)
    if not finished:
        return Verdict("undecided", "", _absence(columns, names))
    verdicts = [RULES[claim.kind](claim.rule, dict(zip(names, methods, strict=True))) for _, methods in finished]
    found = "; ".join(dict.fromkeys(verdict.found for verdict in verdicts))
    return Verdict("agrees" if all(verdict.result == "agrees" for verdict in verdicts) else "disagrees", found)


COLUMN_RULES: dict[str, Callable[[Claim, Sequence[Column]], Verdict]] = {
    "difference": _difference,
    "count": _on_each,
    "equal_counts": _on_each,
    "share": _on_each,
    "best_on": partial(_among, top=1),
    "top_two_on": partial(_among, top=2),
    "every_column": _every_column,
    "larger_gain": _larger_gain,
    "equivalent": _equivalent,
    "matches": _matches,
    "ratio": _ratio,
}
