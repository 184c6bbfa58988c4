"""The registered claims of a report, decided together: their p-values are adjusted for how many they are.

Primary claims keep the chance of any wrong decision at 5 % (Holm 1979), secondary ones the expected share of wrong
decisions at 10 % (Benjamini and Hochberg 1995). A claim that cannot be tested yet counts with p = 1, so that their
number is the registered one whatever has been run.
"""

from collections.abc import Callable, Mapping, Sequence

from surm.report.base import Section
from surm.report.claims import Registration
from surm.report.gather import REFERENCE, Comparison
from surm.report.grid import Grid
from surm.report.inference import benjamini_hochberg, holm
from surm.report.verdict import Claim, Verdict

ABOVE = ("full fine-tuning", "LoRA r=8")  # what shows that a task leaves room above LoRA r=1
ADJUST: Mapping[str, Callable[[Mapping[str, float]], dict[str, float]]] = {
    "primary": holm,
    "secondary": benjamini_hochberg,
}


def headroom_of(task: Comparison) -> float | None:
    """By how many points the better of `ABOVE` lies above LoRA r=1, in mean scores; None where neither has run."""
    reference, others = task.method(REFERENCE), [method for name in ABOVE if (method := task.method(name))]
    if reference is None or not others:
        return None
    return max(method.mean for method in others) - reference.mean


def decide(sections: Sequence[Section], claims: Mapping[str, Claim], registrations: Sequence[Registration]) -> None:
    """Tell the sections of one set of records what room their tasks leave, and settle the registered claims."""
    for registration in registrations:
        _tell_headroom(sections, registration)
    of_claim = {name: section for section in sections for name in section.plan.claims if claims[name].registered}
    for registration in registrations:
        own = {name: claim for name, claim in claims.items() if claim.paper in registration.papers}
        _settle(of_claim, own, registration)


def _tell_headroom(sections: Sequence[Section], registration: Registration) -> None:
    grids = [section for section in sections if isinstance(section, Grid)]
    room = {
        task.task: headroom_of(task)
        for section in grids
        if section.plan.name.startswith(registration.headroom)
        for task in section.tasks
    }
    for section in grids:
        section.give_headroom(room)


def _settle(of_claim: Mapping[str, Section], claims: Mapping[str, Claim], registration: Registration) -> None:
    """Adjust the p-values of each family of claims."""
    for family, adjust in ADJUST.items():
        tentative: dict[str, Verdict | None] = {
            name: of_claim[name].judge(claim) if name in of_claim else None
            for name, claim in claims.items()
            if claim.registered == family
        }
        p_values = {
            name: 1.0 if verdict is None or verdict.p is None else verdict.p for name, verdict in tentative.items()
        }
        adjusted = adjust(p_values)
        for name, verdict in tentative.items():
            if verdict is not None:
                of_claim[name].settle(name, verdict.at(registration.levels[family], adjusted[name]))
