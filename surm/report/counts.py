"""The rules about numbers of parameters: a claim with its tasks to a verdict."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from surm.report.gather import Comparison, Method
from surm.report.rules import finished_on, not_run
from surm.report.verdict import Claim, Verdict, named_methods


def ratio(claim: Claim, columns: Sequence[Comparison]) -> Verdict:
    """`to` trains `low` to `high` times as many parameters as `method`, without the head; the same on every task."""
    rule, names = claim.rule, [claim.rule["method"], claim.rule["to"]]
    finished = finished_on(columns, names)
    if not finished:
        return not_run(columns, names)
    counts = dict.fromkeys((to.trainable_parameters, method.trainable_parameters) for _, (method, to) in finished)
    if any(own == 0 for _, own in counts):
        return Verdict("disagrees", f"{rule['method']} trains the head alone")
    inside = [rule["low"] <= to / own <= rule["high"] for to, own in counts]
    words = "; ".join(f"{to / own:,.4g} times ({to:,} / {own:,})" for to, own in counts)
    holds = any(inside) if claim.scope == "some" else all(inside)
    return Verdict("agrees" if holds else "disagrees", words)


def on_each(claim: Claim, columns: Sequence[Comparison], holds: Callable[..., tuple[bool, str]]) -> Verdict:
    """A rule about numbers of parameters, on each task where the named methods have finished; all must agree."""
    names = named_methods(claim)
    finished = finished_on(columns, names)
    if not finished:
        return not_run(columns, names)
    answers = [holds(claim.rule, *methods) for _, methods in finished]
    found = "; ".join(dict.fromkeys(words for _, words in answers))
    return Verdict("agrees" if all(held for held, _ in answers) else "disagrees", found)


def count(rule: Mapping[str, Any], method: Method) -> tuple[bool, str]:
    """`method` trains exactly `equals` parameters without the head."""
    return method.trainable_parameters == rule["equals"], f"{method.trainable_parameters:,}"


def equal_counts(rule: Mapping[str, Any], *methods: Method) -> tuple[bool, str]:
    """All `methods` train the same number of parameters without the head."""
    counts = {method.name: method.trainable_parameters for method in methods}
    if len(set(counts.values())) == 1:
        return True, f"{methods[0].trainable_parameters:,} each"
    return False, ", ".join(f"{name} {count:,}" for name, count in counts.items())


def share(rule: Mapping[str, Any], method: Method) -> tuple[bool, str]:
    """The trained share of the model's parameters lies between `low` and `high` percent."""
    share = 100 * method.trainable_parameters / method.finished[0].happened["total_parameters"]
    return rule["low"] <= share <= rule["high"], f"{share:.3g} % ({method.trainable_parameters:,})"
