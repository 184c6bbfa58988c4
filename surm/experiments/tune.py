"""Learning rates by a search that is the same for every method of a comparison.

Each method starts with the same number of values, a factor of 3 apart, around its usual rate, and its range is extended
until the best value is not at the edge. Scores come from a fixed slice of the training split, never from the reported
split.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from surm.config.compose import TRAIN
from surm.config.rates import TUNED_RATES, rate_key, tuned_rates
from surm.experiments.plan import TrainingRun
from surm.methods.registry import method_class
from surm.records.record import Record
from surm.records.storage import write_json

FACTOR = 3.0
FIRST_VALUES = 4
ARGUMENTS = "${args_no_hyphens}"  # where the agent of a W&B sweep puts `optim.lr=<value>`

Key = tuple[str, str]  # what a search is for: model/dataset, and the family of methods that shares a rate
Score = tuple[float, float]  # primary metric, minus the loss: the loss decides between equal metrics


def first_rates(structure: str) -> list[float]:
    """The first values of a method's search, lowest first."""
    centre = method_class(structure).usual_rate
    return [_rate(centre * FACTOR**k) for k in range(-FIRST_VALUES // 2 + 1, FIRST_VALUES // 2 + 1)]


def next_rate(tried: Mapping[float, Score]) -> float | None:
    """The value beyond the edge at which the best one lies, or None: the best is inside and the search is over."""
    rates = sorted(tried)
    best = max(rates, key=lambda rate: tried[rate])
    if best == rates[-1]:
        return _rate(best * FACTOR)
    return _rate(best / FACTOR) if best == rates[0] else None


def _rate(value: float) -> float:
    """Two significant digits, so that the same value has one spelling and one signature."""
    return float(f"{value:.1e}")


def score(record: Record) -> Score:
    evaluation = [row["evaluation"] for row in record.happened["history"] if "evaluation" in row][-1]
    return evaluation[record.metric], -evaluation["loss"]


def searches(members: Iterable[TrainingRun]) -> dict[Key, TrainingRun]:
    """The searches that tune for some runs, each with the run it stands for: the first seed's, with the most data."""
    chosen: dict[Key, TrainingRun] = {}
    for member in sorted(members, key=lambda member: -member.config.dataset.fraction):
        key = (f"{member.config.model.name}/{member.config.dataset.name}", rate_key(member.config))
        chosen.setdefault(key, member)
    return chosen


def search(
    members: list[TrainingRun], execute: Callable[[TrainingRun], Record | None], fraction: float | None = None
) -> None:
    """Search the rate of each (model, dataset, method) among the members and write `results/tuned_rates.json`.

    Args:
        members: runs of the experiments to tune for; of each method the first seed is searched, with the most data.
        execute: runs (or finds) a run and returns its record; None marks a failed run, which scores lowest.
        fraction: of the training split that every run of the search sees; None for what the member itself sees.
    """
    tried: dict[Key, dict[float, Score]] = {}
    runs = searches(members)

    def attempt(key: Key, rate: float) -> None:
        record = execute(runs[key].on_selection(rate, fraction))
        tried.setdefault(key, {})[rate] = score(record) if record else (-math.inf, -math.inf)

    for key, member in runs.items():
        for rate in first_rates(member.config.structure.name):
            attempt(key, rate)
        while (beyond := next_rate(tried[key])) is not None:
            attempt(key, beyond)
        _write(*key, tried[key])


def _write(task: str, method: str, scores: Mapping[float, Score]) -> None:
    """Add a finished search to those that the file holds, which another process may have added to."""
    best = max(scores, key=lambda rate: scores[rate])
    listed = {f"{rate:g}": round(scores[rate][0], 6) if scores[rate][0] > -1 else None for rate in sorted(scores)}
    rates: dict[str, dict[str, dict[str, Any]]] = tuned_rates()
    rates.setdefault(task, {})[method] = {"lr": best, "tried": listed}
    write_json(TUNED_RATES, {task: dict(sorted(methods.items())) for task, methods in sorted(rates.items())})


def wandb_sweeps(members: Iterable[TrainingRun], fraction: float | None = None) -> dict[Key, dict[str, Any]]:
    """The first values of each search as the file that `wandb sweep` takes: a grid over the learning rate.

    Its runs are those that `search` starts: afterwards that finds their records, and goes on beyond the edges.

    Args:
        members: as for `search`; their settings of tracking are for the sweep.
        fraction: as for `search`.
    """
    more = ["dataset.evaluate_on=selection", *([f"dataset.fraction={fraction}"] if fraction else []), "tracking=wandb"]
    return {
        (task, method): {
            "name": f"{task}, {method}: learning rate",
            "project": member.config.tracking.project,
            **({"entity": member.config.tracking.entity} if member.config.tracking.entity else {}),
            "program": TRAIN.script,
            "method": "grid",
            "metric": {"name": f"evaluation/{member.metric}", "goal": "maximize"},
            "parameters": {"optim.lr": {"values": first_rates(member.config.structure.name)}},
            "command": ["${env}", "${interpreter}", "${program}", *member.overrides, *more, ARGUMENTS],
        }
        for (task, method), member in searches(members).items()
    }
