"""The kinds of claim: the rule that decides each, and the same rule in words."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from surm.report import counts, rules, several
from surm.report.verdict import Claim, Verdict


class Kind(NamedTuple):
    """A kind of claim: the rule that decides it, and its text, which `in_words` fills."""

    decide: Callable[[Claim, Any], Verdict]
    words: str


def in_words(kind: str, rule: Mapping[str, Any]) -> str:
    """A rule in words: the text of its kind, filled from the rule and from what follows from it."""
    facts: dict[str, Any] = {
        "sign": ">" if rule.get("side") == "above" else "<",
        "tasks": f"at least {rule['at_least']} tasks" if "at_least" in rule else "every task",
        "of_tasks": "the mean of the tasks" if rule.get("mean") else "every task",
        "names": ", ".join(rule.get("methods", rule.get("families", []))),
        "others": " and ".join(rule.get("others", [])),
        "in_form": f" in {rule['form']} form" if "form" in rule else "",
        "below": -rule.get("margin", 0),
        "percent": 100 * rule.get("fraction", 0),
        "in_every_draw": ", in every draw" if rule.get("every") else "",
    }
    return KINDS[kind].words.format(**{**rule, **facts})


_AMONG = "one of {names}{in_form} is RANK on at least {at_least} of {of} tasks"
KINDS: dict[str, Kind] = {
    "difference": Kind(rules.difference, "{method} minus {minus} {sign} {threshold:g} points"),
    "count": Kind(partial(counts.on_each, holds=counts.count), "{method} trains {equals:,} parameters"),
    "equal_counts": Kind(partial(counts.on_each, holds=counts.equal_counts), "{names} train equally many parameters"),
    "share": Kind(partial(counts.on_each, holds=counts.share), "{method} trains {low:g} to {high:g} % of the model"),
    "effect": Kind(rules.effect, "{effect} {sign} {threshold:g}{in_every_draw}"),
    "best_on": Kind(partial(several.among, top=1), _AMONG.replace("RANK", "best")),
    "top_two_on": Kind(partial(several.among, top=2), _AMONG.replace("RANK", "among the best two")),
    "every_column": Kind(rules.every_task, "{method} minus {minus} {sign} {threshold:g} points on {tasks}"),
    "larger_gain": Kind(
        rules.larger_gain, "({method} minus {minus}) minus ({than[method]} minus {than[minus]}) > 0 points"
    ),
    "mean_gain": Kind(rules.mean_gain, "{method} minus {minus} {sign} {threshold:g} points on the mean of the tasks"),
    "reaches": Kind(
        several.reaches,
        "one of {names} minus {minus} > {threshold:g} points on a task where full fine-tuning or LoRA r=8 lies at "
        "least {headroom:g} above LoRA r=1",
    ),
    "best_of": Kind(several.best_of, "{method} minus {others} > 0 points on the mean of the tasks"),
    "equivalent": Kind(rules.equivalent, "{method} minus {minus} within ±{margin:g} points on {of_tasks}"),
    "matches": Kind(
        rules.matches, "{method} on {percent:g} % of {dataset} minus {reference} on all of it > {below:g} points"
    ),
    "ratio": Kind(counts.ratio, "{to} trains {low:g} to {high:g} times the parameters of {method}"),
}
"""The kinds of claim. All but "effect", which a study decides, are about methods on tasks."""
