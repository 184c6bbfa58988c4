"""The paper's claims, and what records say about each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from surm.report.gather import Comparison
from surm.report.rules import KINDS, Claim, Effects, Verdict, in_words
from surm.shared.paths import PAPER


def read_claims(folder: Path = PAPER) -> dict[str, Claim]:
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


def describe(claim: Claim) -> str:
    """The rule in words."""
    rule = claim.rule
    words = in_words(claim.kind, rule)
    words += f", on {', '.join(rule['datasets'])}" if "datasets" in rule else ""
    words += f", on less than {100 * rule['fraction_below']:g} % of the data" if "fraction_below" in rule else ""
    return words


def judge(claim: Claim, tasks: Sequence[Comparison], doubt: str = "") -> Verdict:
    """Apply a claim's rule to the tasks it speaks of; undecided unless the numbers leave one side only.

    Tasks are restricted to the claim's `models`, to the rule's `datasets` and to fractions of the training split below
    `fraction_below`, where these are given. `doubt` says why the records are no evidence; it leaves every claim open.
    """
    spoken = [task for task in tasks if not claim.models or task.model in claim.models]
    chosen = [task for task in spoken or tasks if _is_chosen(claim.rule, task)]
    if not chosen:
        return Verdict("undecided", "", "no task that it speaks of")
    verdict = KINDS[claim.kind].decide(claim, chosen)
    if not verdict.found:
        return verdict
    if doubt:
        return Verdict("undecided", verdict.found, doubt)
    if not spoken:
        models = " and ".join(dict.fromkeys(task.model for task in tasks))
        return Verdict("undecided", verdict.found, f"said of {' and '.join(claim.models)}, run on {models}")
    if claim.scope == "some" and verdict.result == "disagrees":
        return Verdict("undecided", verdict.found, "not seen here, and claimed for some tasks only")
    return verdict


def judge_effect(claim: Claim, effects: Effects, doubt: str = "") -> Verdict:
    """Apply a claim's rule to what a study measured; `doubt` as for `judge`."""
    verdict = KINDS[claim.kind].decide(claim, effects)
    return Verdict("undecided", verdict.found, doubt) if doubt and verdict.found else verdict


def _is_chosen(rule: Mapping[str, Any], task: Comparison) -> bool:
    return task.dataset in rule.get("datasets", [task.dataset]) and (
        "fraction_below" not in rule or task.fraction < rule["fraction_below"]
    )
