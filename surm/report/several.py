"""The rules about one method among several: the best of them, one of the best, one that gains enough."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from surm.report.gather import NOT_RUN, Comparison, Method
from surm.report.inference import Simultaneous
from surm.report.rules import (
    Side,
    finished_on,
    mean_over,
    not_run,
    on_all,
    side_of,
    tally,
    without_interval,
)
from surm.report.verdict import LEVEL, MARGIN, Claim, Verdict, named_methods, number_of


def reaches(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """One of `methods` gains `threshold` points over `minus` on a task that leaves room for it (`headroom`).

    Intervals are simultaneous over the methods of a task (max-t) and over tasks (Bonferroni). Reached: one lies wholly
    above the threshold. Not reached: all lie wholly below, on every task with headroom.
    """
    rule, names = claim.rule, named_methods(claim)
    if unknown := [column.title for column in columns if column.headroom is None]:
        return Verdict("undecided", "", f"headroom not known of {', '.join(unknown)}", NOT_RUN)
    roomy = [column for column in columns if (column.headroom or 0) >= rule["headroom"]]
    if not roomy:
        rooms = ", ".join(f"{column.title} {column.headroom:+z.1f}" for column in columns)
        return Verdict("undecided", f"headroom {rooms} points", "no task with headroom", "not testable")
    judged = {}
    for column, (other, *methods) in finished_on(roomy, [rule["minus"], *rule["methods"]]):
        tables = {method.name: method.table_minus(other) for method in methods}
        if all(table is not None for table in tables.values()):
            judged[column.title] = Simultaneous.of({name: table for name, table in tables.items() if table is not None})
    if len(judged) < len(roomy):
        return not_run(roomy, names)
    level, tasks = rule["threshold"], len(judged)
    p_values = {
        (task, name): min(1.0, tasks * p) for task, one in judged.items() for name, p in one.p_differs(level).items()
    }
    above = {key for key in p_values if judged[key[0]].values[key[1]] > level}
    reached = min((p_values[key] for key in above), default=1.0)
    excluded = 1.0 if above else max(p_values.values())
    task, name = max(p_values, key=lambda key: judged[key[0]].values[key[1]])
    low, high = judged[task].intervals(1 - LEVEL / tasks)[name]
    found = f"largest: {name} on {task}, {judged[task].values[name]:+z.1f} [{low:+z.1f}, {high:+z.1f}] points"
    found += f", simultaneous over {number_of(tasks, 'task')} and {len(rule['methods'])} methods"
    wide = Verdict("undecided", found, "", f"too wide to say (±{(high - low) / 2:.1f})", min(reached, excluded))
    if reached <= excluded:
        return replace(wide, result="agrees", finding="larger", otherwise=wide)
    return replace(wide, result="disagrees", finding="smaller", otherwise=wide)


def best_of(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """The mean over tasks of `method` less each of `others` lies above 0."""
    rule = claim.rule
    names = [rule["method"], *rule["others"]]
    finished = finished_on(columns, names)
    if len(finished) < len(columns):
        return not_run(columns, names)
    errors, found = [], []
    for place, name in enumerate(rule["others"], start=1):
        estimate, words = mean_over([(column, [methods[0], methods[place]]) for column, methods in finished], [1, -1])
        if estimate is None or estimate.error is None:
            return without_interval(estimate, f"to {name} {words}")
        errors.append(estimate.error)
        found.append(f"to {name} {words}")
    verdict = on_all("; ".join(found), [error.p_differs() for error in errors], [error.value > 0 for error in errors])
    word = "larger" if verdict.result == "agrees" else "smaller"
    open_word = f"too wide to say (±{max(error.half_width() for error in errors):.1f})"
    if all(error.p_equivalent(MARGIN) <= LEVEL for error in errors):
        word = open_word = f"equivalent within {MARGIN:g}"
    unsure = Verdict("undecided", verdict.found, "", open_word, verdict.p)
    return replace(verdict, finding=word, otherwise=unsure)


def among(claim: Claim, columns: Sequence[Comparison], *, top: int) -> Verdict:
    """A row of `families` is among the best `top` rows on `at_least` of the `of` tasks.

    Its rivals are the rows of all other families; rows of `families` in another `form` than the rule's, and those of
    families set `apart`, count for neither side. Surely: at most `top` - 1 rivals are not surely below it. Possibly:
    at most `top` - 1 rivals are surely above it. A task counts when every planned method has a finished run on it.
    """
    rule = claim.rule
    if len(columns) != rule["of"]:
        return Verdict("undecided", "", f"said of {number_of(rule['of'], 'task')}, the table has {len(columns)}")
    sides: list[Side] = [_rank_side(column, rule, top) for column in columns if column.complete]
    verdict = tally(sides, at_least=rule["at_least"], of=len(columns))
    if len(sides) < len(columns):
        return Verdict("undecided", verdict.found, f"{len(sides)} of {number_of(len(columns), 'task')} finished")
    return verdict


def _rank_side(column: Comparison, rule: Mapping[str, Any], top: int) -> Side:
    rows = sorted(
        (method for method in column.methods if method.finished), key=lambda method: method.mean, reverse=True
    )
    own = [method for method in rows if method.family in rule["families"]]
    ours = [method for method in own if rule.get("form", method.form) == method.form]
    rivals = [method for method in rows if method not in own and method.family not in rule.get("apart", [])]
    if any(sum(not _is_above(method, rival) for rival in rivals) < top for method in ours):
        return "claimed"
    if all(sum(_is_above(rival, method) for rival in rivals) >= top for method in ours):
        return "opposite"
    return "open"


def _is_above(method: Method, other: Method) -> bool:
    """Surely: by the interval of the paired difference, which is drawn only where the means leave it open."""
    return method.mean > other.mean and side_of(method.minus(other), "above", 0) == "claimed"
