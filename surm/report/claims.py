"""The paper's claims, and what records say about each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from surm.report.gather import NOT_RUN, Comparison
from surm.report.kinds import KINDS, in_words
from surm.report.plan import Plan
from surm.report.verdict import LEVEL, Claim, Effects, Verdict, named_methods
from surm.shared.paths import PAPER


def read_claims(*folders: Path) -> dict[str, Claim]:
    """Claims of papers by id, from the `claims.yaml` of their folders, by default of the paper alone.

    Raises:
        ValueError: a claim of a kind that no rule decides, or two of one id.
    """
    claims: dict[str, Claim] = {}
    for folder in folders or [PAPER]:
        entries = _stored(folder)
        entries.pop("registration", None)
        for name, entry in entries.items():
            claim = Claim(id=name, paper=folder.name, **entry)
            if claim.kind not in KINDS:
                raise ValueError(f"claim {claim.id} is of kind {claim.kind}: allowed are {', '.join(KINDS)}.")
            if name in claims:
                raise ValueError(f"claim {name} stands in {claims[name].paper} and in {folder.name}: give each its id.")
            claims[name] = claim
    return claims


def papers_beside(folder: Path) -> list[Path]:
    """A paper's folder and those beside it, it first."""
    others = {path.parent for path in folder.parent.glob("*/claims.yaml")} - {folder}
    return [folder, *sorted(others)]


def _stored(folder: Path) -> dict[str, Any]:
    stored: dict[str, Any] = yaml.safe_load((folder / "claims.yaml").read_text())
    return stored


def remarks_on(claim: Claim) -> list[str]:
    """What a reader must know of a rule beside its verdict."""
    remarks = (
        [f"Not counted, it can come out in one way only: {claim.by_construction}"] if claim.by_construction else []
    )
    return remarks + ([f"Chosen after a look: {claim.chosen_after}"] if claim.chosen_after else [])


@dataclass(frozen=True)
class Registration:
    """What was fixed before the runs that decide some claims, which are corrected together.

    seeds: table -> the seeds that it reports; no other is added after a look.
    tuning_seeds: never reported, but for the headroom.
    headroom: the table, or the start of the names of several, that shows how much room a task leaves above LoRA r=1.
    levels: of the primary claims (Holm) and of the secondary ones (Benjamini-Hochberg).
    papers: folders whose registered claims these are.
    """

    seeds: Mapping[str, Sequence[int]]
    tuning_seeds: Sequence[int]
    headroom: str
    levels: Mapping[str, float]
    papers: Sequence[str] = ()


def read_registrations(*folders: Path) -> list[Registration]:
    """The blocks `registration` of the `claims.yaml` of papers; a paper may name another whose block is its own, too.

    Raises:
        ValueError: a tuning seed is among the reported ones, or a paper names one that has no block.
    """
    stored = {folder.name: _stored(folder).get("registration") for folder in folders or [PAPER]}
    blocks = {name: block for name, block in stored.items() if isinstance(block, dict)}
    for name, block in stored.items():
        if isinstance(block, str) and block not in blocks:
            raise ValueError(f"{name}: registration: {block} names no paper with a registration of its own.")
    found = []
    for name, block in blocks.items():
        registration = Registration(**block, papers=[name, *(one for one, of in stored.items() if of == name)])
        reported = [own for table, own in registration.seeds.items() if not table.startswith(registration.headroom)]
        if both := set(chain(*reported)) & set(registration.tuning_seeds):
            raise ValueError(f"seeds {sorted(both)} are registered for tuning and for reporting: give each one use.")
        found.append(registration)
    return found


def registered_plan(plan: Plan, registrations: Sequence[Registration], claims: Mapping[str, Claim]) -> Plan:
    """The plan with the claims that name its table, the seeds that are registered for it, and the pairs compared."""
    own = [name for name, claim in claims.items() if claim.table == plan.name]
    seeds = next((of.seeds[plan.name] for of in registrations if plan.name in of.seeds), ())
    pairs = [pair for name in own if claims[name].registered for pair in _pairs(claims[name].rule)]
    ids = list(dict.fromkeys([*plan.claims, *own]))
    return replace(plan, seeds=tuple(seeds), claims=ids, contrasts=list(dict.fromkeys(pairs)))


def _pairs(rule: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The methods that a rule subtracts from one another."""
    if "others" in rule:
        return [(rule["method"], other) for other in rule["others"]]
    if "methods" in rule:
        return [(method, rule["minus"]) for method in rule["methods"]]
    return [(rule["method"], rule["minus"]), *(_pairs(rule["than"]) if "than" in rule else [])]


def describe(claim: Claim) -> str:
    """The rule in words."""
    rule = claim.rule
    words = in_words(claim.kind, rule)
    words += f", on {', '.join(rule['datasets'])}" if "datasets" in rule else ""
    if "fractions" in rule:
        words += f", on {' and '.join(f'{100 * share:g}' for share in rule['fractions'])} % of the data"
    words += f", on less than {100 * rule['fraction_below']:g} % of the data" if "fraction_below" in rule else ""
    return words


def judge(claim: Claim, tasks: Sequence[Comparison], doubt: str = "") -> Verdict:
    """Apply a claim's rule to the tasks it speaks of; undecided unless the numbers leave one side only.

    Tasks are restricted to the claim's `models`, to the rule's `datasets` and to its `fractions` of the training split
    or those below `fraction_below`, where these are given. `doubt` says why the records are no evidence; it leaves
    every claim open. A registered claim is judged once all its tasks and seeds are there, and its verdict is tentative:
    `surm.report.decide` adjusts it for the number of claims.
    """
    spoken = [task for task in tasks if not claim.models or task.model in claim.models]
    chosen = [task for task in spoken or tasks if _is_chosen(claim.rule, task)]
    if not chosen:
        return Verdict("undecided", "", "no task that it speaks of", NOT_RUN)
    verdict = KINDS[claim.kind].decide(claim, chosen)
    if claim.registered and (lacking := _lacking(claim, chosen)):
        return Verdict("undecided", verdict.found, lacking, NOT_RUN)
    verdict = verdict if claim.registered else verdict.at(LEVEL)
    if not verdict.found:
        return verdict
    if doubt:
        return Verdict("undecided", verdict.found, doubt)
    if not spoken:
        models = " and ".join(dict.fromkeys(task.model for task in tasks))
        return Verdict("undecided", verdict.found, f"said of {' and '.join(claim.models)}, run on {models}")
    if claim.scope == "some" and verdict.result == "disagrees":
        return replace(verdict, result="undecided", reason="not seen here, and claimed for some tasks only")
    return verdict


def _lacking(claim: Claim, tasks: Sequence[Comparison]) -> str:
    """Which registered tasks and seeds have no finished run; empty where all are there."""
    parts = [name for name in claim.rule.get("datasets", []) if name not in {task.dataset for task in tasks}]
    parts += [
        f"{100 * share:g} % of the data"
        for share in claim.rule.get("fractions", [])
        if not any(abs(task.fraction - share) < 1e-9 for task in tasks)
    ]
    runs = dict.fromkeys(named_methods(claim), 0)  # to come
    for task in tasks:
        for name in runs:
            method = task.method(name)
            runs[name] += len(set(task.seeds) - {run.seed for run in method.finished} if method else task.seeds)
    if to_come := {name: number for name, number in runs.items() if number}:
        total = sum(len(task.seeds) for task in tasks) * len(runs)
        of_each = ", ".join(f"{name} {number}" for name, number in to_come.items())
        parts.append(f"{sum(to_come.values())} of {total} runs ({of_each})")
    return f"to come: {'; '.join(parts)}" if parts else ""


def judge_effect(claim: Claim, effects: Effects, doubt: str = "") -> Verdict:
    """Apply a claim's rule to what a study measured; `doubt` as for `judge`."""
    verdict = KINDS[claim.kind].decide(claim, effects)
    return Verdict("undecided", verdict.found, doubt) if doubt and verdict.found else verdict


def _is_chosen(rule: Mapping[str, Any], task: Comparison) -> bool:
    fractions = rule.get("fractions", [task.fraction])
    return (
        task.dataset in rule.get("datasets", [task.dataset])
        and any(abs(task.fraction - share) < 1e-9 for share in fractions)
        and ("fraction_below" not in rule or task.fraction < rule["fraction_below"])
    )
