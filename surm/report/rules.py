"""The rules that decide claims, one for each kind, and the same rules in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, Literal, NamedTuple

from surm.report.gather import Comparison, Method, contrast
from surm.report.statistics import Estimate, mean_interval

Result = Literal["agrees", "disagrees", "undecided"]
Side = Literal["claimed", "opposite", "open"]
Effects = Mapping[str, Sequence[float]]
"""What a study measured: quantity -> one value for each draw."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper in our words, where it stands there, and the rule that decides it.

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


class Kind(NamedTuple):
    """A kind of claim: the rule that decides it, and its text, which `in_words` fills."""

    decide: Callable[[Claim, Any], Verdict]
    words: str


def named_methods(claim: Claim) -> list[str]:
    """The methods that a claim's rule names."""
    rule = claim.rule
    return [*rule.get("methods", []), *(rule[key] for key in ("method", "minus") if key in rule)]


def format_difference(estimate: Estimate) -> str:
    """A difference in points with its interval, as `+1.6 [+0.4, +2.8]`."""
    if estimate.low is None:
        return f"{estimate.value:+.2f}"
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


# --- what rules about tasks share -------------------------------------------------------------------------------------


def _side(estimate: Estimate | None, side: str, threshold: float) -> Side:
    """On which side of the threshold an interval lies as a whole."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "open"
    above, below = estimate.low > threshold, estimate.high < threshold
    claimed, opposite = (above, below) if side == "above" else (below, above)
    return "claimed" if claimed else "opposite" if opposite else "open"


def _finished(columns: Sequence[Comparison], names: Sequence[str]) -> list[tuple[Comparison, list[Method]]]:
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


def _mean_over(chosen: Sequence[tuple[Comparison, list[Method]]], signs: Sequence[int]) -> tuple[Estimate | None, str]:
    """The mean over columns of a signed sum of methods, and the same in words."""
    estimate = contrast([methods for _, methods in chosen], signs)
    if estimate is None:
        return None, ""
    found = f"{format_difference(estimate)} points, {estimate.seeds} seeds"
    return estimate, found if len(chosen) == 1 else f"{found}, mean of {_tasks(len(chosen))}"


def _without_interval(estimate: Estimate | None, found: str) -> Verdict:
    return Verdict("undecided", found, estimate.reason if estimate else "no common seed")


# --- rules: a claim and its tasks, or what a study measured, to a verdict ---------------------------------------------


def _difference(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """The mean over tasks of `method` less `minus`; of scope "some" and several tasks: the difference on one of them.

    Above (or below) `threshold` points by the 95 % interval, paired by seed.
    """
    rule, names = claim.rule, named_methods(claim)
    finished = _finished(columns, names)
    sides = {
        column.title: _side(method.minus(other), rule["side"], rule["threshold"])
        for column, (method, other) in finished
    }
    if claim.scope == "some" and finished and len(columns) > 1:
        return _tally(list(sides.values()), at_least=1, of=len(columns))
    if len(finished) < len(columns):
        return Verdict("undecided", "", _absence(columns, names))
    verdict = _mean_difference(rule, finished, [1, -1])
    opposite = [label for label, side in sides.items() if side == "opposite"]
    if verdict.result == "agrees" and opposite:
        return Verdict("undecided", verdict.found, f"the opposite on {', '.join(opposite)}")
    return verdict


def _larger_gain(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """What `method` gains over `minus` is more than what `than.method` gains over `than.minus`, on the mean."""
    rule = claim.rule
    names = [rule["method"], rule["minus"], rule["than"]["method"], rule["than"]["minus"]]
    finished = _finished(columns, names)
    if len(finished) < len(columns):
        return Verdict("undecided", "", _absence(columns, names))
    return _mean_difference({"side": "above", "threshold": 0}, finished, [1, -1, -1, 1])


def _mean_difference(
    rule: Mapping[str, Any], finished: Sequence[tuple[Comparison, list[Method]]], signs: Sequence[int]
) -> Verdict:
    estimate, found = _mean_over(finished, signs)
    if estimate is None or estimate.low is None:
        return _without_interval(estimate, found)
    side = _side(estimate, rule["side"], rule["threshold"])
    if side == "open":
        return Verdict("undecided", found, f"the interval contains {rule['threshold']:g}")
    return Verdict("agrees" if side == "claimed" else "disagrees", found)


def _every_task(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """`method` less `minus` lies on the claimed side of `threshold` on every task, or on `at_least` of them."""
    rule, names = claim.rule, named_methods(claim)
    finished = _finished(columns, names)
    if not finished:
        return Verdict("undecided", "", _absence(columns, names))
    sides = [_side(method.minus(other), rule["side"], rule["threshold"]) for _, (method, other) in finished]
    return _tally(sides, at_least=rule.get("at_least", len(columns)), of=len(columns))


def _equivalent(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
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


def _among(claim: Claim, columns: Sequence[Comparison], *, top: int) -> Verdict:
    """A row of `families` is among the best `top` rows on `at_least` of the `of` tasks.

    Its rivals are the rows of all other families; rows of `families` in another `form` than the rule's, and those of
    families set `apart`, count for neither side. Surely: at most `top` - 1 rivals are not surely below it. Possibly:
    at most `top` - 1 rivals are surely above it. A task counts when every planned method has a finished run on it.
    """
    rule = claim.rule
    if len(columns) != rule["of"]:
        return Verdict("undecided", "", f"said of {_tasks(rule['of'])}, the table has {len(columns)}")
    sides: list[Side] = [_rank_side(column, rule, top) for column in columns if column.complete]
    verdict = _tally(sides, at_least=rule["at_least"], of=len(columns))
    if len(sides) < len(columns):
        return Verdict("undecided", verdict.found, f"{len(sides)} of {_tasks(len(columns))} finished")
    return verdict


def _rank_side(column: Comparison, rule: Mapping[str, Any], top: int) -> Side:
    rows = sorted((method for method in column.methods if method.finished), key=_score, reverse=True)
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


def _matches(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
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
        return Verdict("undecided", "", reason)
    estimate, words = _mean_over(found, [1, -1])
    if estimate is None or estimate.low is None:
        return _without_interval(estimate, words)
    side = _side(estimate, "above", -rule["margin"])
    if side == "open":
        return Verdict("undecided", words, f"the interval contains {-rule['margin']:g}")
    return Verdict("agrees" if side == "claimed" else "disagrees", words)


def _ratio(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
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


def _on_each(claim: Claim, columns: Sequence[Comparison], holds: Callable[..., tuple[bool, str]]) -> Verdict:
    """A rule about numbers of parameters, on each task where the named methods have finished; all must agree."""
    names = named_methods(claim)
    finished = _finished(columns, names)
    if not finished:
        return Verdict("undecided", "", _absence(columns, names))
    answers = [holds(claim.rule, *methods) for _, methods in finished]
    found = "; ".join(dict.fromkeys(words for _, words in answers))
    return Verdict("agrees" if all(held for held, _ in answers) else "disagrees", found)


def _count(rule: Mapping[str, Any], method: Method) -> tuple[bool, str]:
    """`method` trains exactly `equals` parameters without the head."""
    return method.trainable_parameters == rule["equals"], f"{method.trainable_parameters:,}"


def _equal_counts(rule: Mapping[str, Any], *methods: Method) -> tuple[bool, str]:
    """All `methods` train the same number of parameters without the head."""
    counts = {method.name: method.trainable_parameters for method in methods}
    if len(set(counts.values())) == 1:
        return True, f"{methods[0].trainable_parameters:,} each"
    return False, ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _share(rule: Mapping[str, Any], method: Method) -> tuple[bool, str]:
    """The trained share of the model's parameters lies between `low` and `high` percent."""
    share = 100 * method.trainable_parameters / method.finished[0].happened["total_parameters"]
    return rule["low"] <= share <= rule["high"], f"{share:.3g} % ({method.trainable_parameters:,})"


def _effect(claim: Claim, effects: Effects) -> Verdict:
    """The 95 % interval of the mean over a study's draws lies on the claimed side of `threshold`.

    A claim about every draw (`every: true`) agrees only if each one lies on the claimed side.
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


# --- kinds of claim ---------------------------------------------------------------------------------------------------


def in_words(kind: str, rule: Mapping[str, Any]) -> str:
    """A rule in words: the text of its kind, filled from the rule and from what follows from it."""
    facts: dict[str, Any] = {
        "sign": ">" if rule.get("side") == "above" else "<",
        "tasks": f"at least {rule['at_least']} tasks" if "at_least" in rule else "every task",
        "of_tasks": "the mean of the tasks" if rule.get("mean") else "every task",
        "names": ", ".join(rule.get("methods", rule.get("families", []))),
        "in_form": f" in {rule['form']} form" if "form" in rule else "",
        "below": -rule.get("margin", 0),
        "percent": 100 * rule.get("fraction", 0),
        "in_every_draw": ", in every draw" if rule.get("every") else "",
    }
    return KINDS[kind].words.format(**{**rule, **facts})


_AMONG = "one of {names}{in_form} is RANK on at least {at_least} of {of} tasks"
KINDS: dict[str, Kind] = {
    "difference": Kind(_difference, "{method} minus {minus} {sign} {threshold:g} points"),
    "count": Kind(partial(_on_each, holds=_count), "{method} trains {equals:,} parameters"),
    "equal_counts": Kind(partial(_on_each, holds=_equal_counts), "{names} train equally many parameters"),
    "share": Kind(partial(_on_each, holds=_share), "{method} trains {low:g} to {high:g} % of the model"),
    "effect": Kind(_effect, "{effect} {sign} {threshold:g}{in_every_draw}"),
    "best_on": Kind(partial(_among, top=1), _AMONG.replace("RANK", "best")),
    "top_two_on": Kind(partial(_among, top=2), _AMONG.replace("RANK", "among the best two")),
    "every_column": Kind(_every_task, "{method} minus {minus} {sign} {threshold:g} points on {tasks}"),
    "larger_gain": Kind(_larger_gain, "({method} minus {minus}) minus ({than[method]} minus {than[minus]}) > 0 points"),
    "equivalent": Kind(_equivalent, "{method} minus {minus} within ±{margin:g} points on {of_tasks}"),
    "matches": Kind(
        _matches, "{method} on {percent:g} % of {dataset} minus {reference} on all of it > {below:g} points"
    ),
    "ratio": Kind(_ratio, "{to} trains {low:g} to {high:g} times the parameters of {method}"),
}
"""The kinds of claim. All but "effect", which a study decides, are about methods on tasks."""
