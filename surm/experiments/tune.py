"""Learning rates by a search that is the same for every method of a comparison.

Scores come from a fixed slice of the training split, never from the reported split. Two kinds, of which the runs'
`search.by` chooses:

* `run`: every method gets the same number of values in its own range, a factor of 2.5 apart, each with the same seeds,
  which no table reports; the value with the lowest mean loss is chosen. If any method's best is at an edge of its
  range, every method of that task and length gets one more value: beyond that edge, or else between its best and the
  better neighbour. The head has one rate for all methods, chosen before in the same way on the linear probe. A rate is
  for one task, length, batch, rank and number of terms.
* `family`: as the first published tables: four values a factor of 3 apart with one seed, and more while the best is at
  an edge; the primary metric decides, and the loss between equals. Variants of a method share its rate.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from filelock import FileLock

from surm.config.compose import TRAIN
from surm.config.rates import (
    SEARCHED_RATES,
    TUNED_RATES,
    SearchKey,
    rate_key,
    search_key,
    searched_rates,
    tuned_rates,
)
from surm.experiments.plan import TrainingRun
from surm.methods.names import label
from surm.methods.registry import AnyMethodConfig, method_class
from surm.records.record import Record
from surm.records.storage import write_json
from surm.shared.errors import ConfigError, RunError

FACTOR = 3.0  # between the values of search.by=family
FIRST_VALUES = 4
FINER_FACTOR = 2.5  # of search.by=run
ARGUMENTS = "${args_no_hyphens}"  # where the agent of a W&B sweep puts `optim.lr=<value>`
PROBE = "linear_probe"
PROBE_NAME = label({"structure": {"name": PROBE}})

Key = tuple[str, str]  # of search.by=family: model/dataset, and the family of methods that shares a rate
Score = tuple[float, ...]  # the larger, the better
Execute = Callable[[Sequence[TrainingRun]], Sequence[Record | None]]  # runs or finds them; None for a failed one

WORST: Score = (-math.inf,)


# --- which values -----------------------------------------------------------------------------------------------------


def first_rates(structure: str) -> list[float]:
    """The first values of a method's search by family, lowest first."""
    centre = method_class(structure).usual_rate
    return [_rate(centre * FACTOR**k) for k in range(-FIRST_VALUES // 2 + 1, FIRST_VALUES // 2 + 1)]


def first_values(structure: str, number: int) -> list[float]:
    """The first values of a method's search by run, lowest first; a smaller number is a part of a larger one."""
    middle = method_class(structure).middle_rate
    return [_rate(middle * FINER_FACTOR**k) for k in range(-(number // 2), (number + 1) // 2)]


def next_rate(tried: Mapping[float, Score], factor: float = FACTOR) -> float | None:
    """The value beyond the edge at which the best one lies, or None: the best is inside and the search is over."""
    rates = sorted(tried)
    best = max(rates, key=lambda rate: tried[rate])
    if best == rates[-1]:
        return _rate(best * factor)
    return _rate(best / factor) if best == rates[0] else None


def one_more(tried: Mapping[float, Score]) -> float:
    """One more value of a search by run: beyond the edge where the best lies, else beside it, on the better side."""
    beyond = next_rate(tried, FINER_FACTOR)
    if beyond is not None:
        return beyond
    rates = sorted(tried)
    place = rates.index(max(rates, key=lambda rate: tried[rate]))
    neighbour = max(rates[place - 1], rates[place + 1], key=lambda rate: tried[rate])
    return _rate(math.sqrt(rates[place] * neighbour))


def _rate(value: float) -> float:
    """Two significant digits, so that the same value has one spelling and one signature."""
    return float(f"{value:.1e}")


def score(record: Record) -> Score:
    """Primary metric and minus the loss, of a run's last evaluation."""
    evaluation = _evaluation(record)
    return evaluation[record.metric], -evaluation["loss"]


def _evaluation(record: Record) -> dict[str, float]:
    rows: list[dict[str, float]] = [row["evaluation"] for row in record.happened["history"] if "evaluation" in row]
    return rows[-1]


# --- one search -------------------------------------------------------------------------------------------------------


@dataclass
class Trials:
    """The values that were tried for one run, and the records of each, one for each seed."""

    member: TrainingRun
    seeds: Sequence[int]
    fraction: float | None = None  # of the training split that every run sees; None: what the member itself sees
    head_rate: float | None = None
    records: dict[float, list[Record | None]] = field(default_factory=dict)

    def runs(self, rate: float) -> list[TrainingRun]:
        """The runs of one value, one for each seed."""
        on_selection = self.member.on_selection
        return [on_selection(rate, self.fraction, head_rate=self.head_rate, seed=seed) for seed in self.seeds]

    def scores(self, of_record: Callable[[Record], Score]) -> dict[float, Score]:
        """By value, the mean over seeds; the worst for a value at which a run failed."""
        found = {}
        for rate, records in self.records.items():
            finished = [of_record(record) for record in records if record is not None]
            whole = len(finished) == len(records)
            found[rate] = tuple(sum(of) / len(of) for of in zip(*finished, strict=True)) if whole else WORST
        return found

    def losses(self) -> dict[float, Score]:
        """By value, minus the mean loss over the seeds."""
        return self.scores(lambda record: (-_evaluation(record)["loss"],))


def _try(wanted: Sequence[tuple[Trials, float]], execute: Execute) -> None:
    """Run some values of some searches, all at once, so that several processes can share them."""
    batches = [(trials, rate, trials.runs(rate)) for trials, rate in wanted if rate not in trials.records]
    records = iter(execute([run for _, _, runs in batches for run in runs]))
    for trials, rate, runs in batches:
        trials.records[rate] = [next(records) for _ in runs]


def _check(name: str, scores: Mapping[float, Score]) -> None:
    if all(value == WORST for value in scores.values()):
        raise RunError(f"{name}: no run of its search finished; the lines above say why.")


# --- search.by=run ----------------------------------------------------------------------------------------------------


def searches_by_run(members: Iterable[TrainingRun]) -> dict[SearchKey, TrainingRun]:
    """The searches of runs with `search.by=run`, each with the run it stands for; the probes first.

    Where several experiments ask for one search, that with the most values and seeds counts.
    """
    chosen: dict[SearchKey, TrainingRun] = {}
    probes: dict[SearchKey, TrainingRun] = {}
    own = (member for member in members if member.config.search.by == "run")
    for member in sorted(own, key=lambda member: -len(member.config.search.seeds) * member.config.search.values):
        probe = _probe(member)
        probes.setdefault(search_key(probe.config), probe)
        if member.config.structure.name != PROBE:
            chosen.setdefault(search_key(member.config), member)
    return probes | chosen


def known_head_rate(key: SearchKey) -> float | None:
    """The rate of the head on a task, if its probe was searched; None for the probe itself."""
    of_task = searched_rates().get(key.task, {}).get(key.length, {})
    return of_task[PROBE_NAME]["lr"] if PROBE_NAME in of_task and key.method != PROBE_NAME else None


def _probe(member: TrainingRun) -> TrainingRun:
    """The linear probe of the same task and length."""
    structure = AnyMethodConfig()
    structure.name = PROBE
    config = replace(member.config, structure=structure, optim=replace(member.config.optim, lr=None, head_lr=None))
    return TrainingRun.of(config)


def _search_by_run(members: Iterable[TrainingRun], execute: Execute, fraction: float | None) -> None:
    found = searches_by_run(members)
    trials = {key: Trials(member, member.config.search.seeds, fraction) for key, member in found.items()}
    probes = {key: of for key, of in trials.items() if of.member.config.structure.name == PROBE}
    _try_first(probes, execute)
    _extend([{key: of} for key, of in probes.items()], execute)
    write_searches(probes)
    methods = {key: of for key, of in trials.items() if key not in probes}
    for key, of in methods.items():
        of.head_rate = known_head_rate(key)
    _try_first(methods, execute)
    groups: dict[tuple[str, str], dict[SearchKey, Trials]] = {}
    for key, of in methods.items():
        groups.setdefault((key.task, key.length), {})[key] = of
    _extend(list(groups.values()), execute)
    write_searches(methods)


def _try_first(searches: Mapping[SearchKey, Trials], execute: Execute) -> None:
    wanted = []
    for of in searches.values():
        config = of.member.config
        wanted += [(of, rate) for rate in first_values(config.structure.name, config.search.values)]
    _try(wanted, execute)


def _extend(groups: Sequence[Mapping[SearchKey, Trials]], execute: Execute) -> None:
    """One more value for every method of a group, as long as the best of any of them is at an edge."""
    while True:
        wanted = []
        for group in groups:
            scores = {key: of.losses() for key, of in group.items()}
            for key, of_key in scores.items():
                _check(", ".join(key), of_key)
            most = max(map(len, scores.values()), default=0)
            at_edge = any(next_rate(of_key, FINER_FACTOR) is not None for of_key in scores.values())
            # Where two searches of one task began with different numbers, the smaller one catches up first.
            wanted += [(group[key], one_more(of)) for key, of in scores.items() if at_edge or len(of) < most]
        if not wanted:
            return
        _try(wanted, execute)


def _best(key: SearchKey, trials: Trials) -> float:
    losses = trials.losses()
    _check(", ".join(key), losses)
    return max(losses, key=lambda rate: losses[rate])


def write_searches(searches: Mapping[SearchKey, Trials]) -> None:
    """Add finished searches to `results/searched_rates.json`; one with more values and seeds there stays."""
    with FileLock(SEARCHED_RATES.with_suffix(".lock")):  # two processes that share a search end at the same time
        rates = searched_rates()
        for key, of in searches.items():
            there = rates.setdefault(key.task, {}).setdefault(key.length, {})
            kept = there.get(key.method)
            if kept is None or _size(kept["seeds"], kept["tried"]) <= _size(of.seeds, of.records):
                there[key.method] = _entry(key, of)
        write_json(SEARCHED_RATES, _sorted(rates))


def unequal_searches() -> list[str]:
    """One sentence for each task and length whose methods were searched with different numbers of values."""
    found = []
    for task, lengths in searched_rates().items():
        for length, methods in lengths.items():
            numbers = {name: len(of["tried"]) for name, of in methods.items() if name != PROBE_NAME}
            if len(set(numbers.values())) > 1:
                listed = ", ".join(f"{name} {number}" for name, number in numbers.items())
                found.append(
                    f"{task}, {length}: values of each method: {listed}; tune them together for equal numbers."
                )
    return found


def _size(seeds: Sequence[int], tried: Mapping[Any, Any]) -> int:
    return len(seeds) * len(tried)


def _entry(key: SearchKey, trials: Trials) -> dict[str, Any]:
    losses = trials.losses()
    tried = {
        f"{rate:g}": {
            "loss": None if losses[rate] == WORST else round(-losses[rate][0], 6),
            "runs": [run.signature for run in trials.runs(rate)],
        }
        for rate in sorted(losses)
    }
    chosen = {"lr": _best(key, trials), "head_lr": trials.head_rate}
    return {**chosen, "seeds": list(trials.seeds), "tried": tried}


def _sorted(rates: Mapping[str, Any]) -> dict[str, Any]:
    """The three upper levels by name."""
    return {
        task: {length: dict(sorted(methods.items())) for length, methods in sorted(lengths.items())}
        for task, lengths in sorted(rates.items())
    }


# --- search.by=family -------------------------------------------------------------------------------------------------


def searches(members: Iterable[TrainingRun]) -> dict[Key, TrainingRun]:
    """The searches by family, each with the run it stands for: the first seed's, with the most data."""
    chosen: dict[Key, TrainingRun] = {}
    own = (member for member in members if member.config.search.by == "family")
    for member in sorted(own, key=lambda member: -member.config.dataset.fraction):
        key = (f"{member.config.model.name}/{member.config.dataset.name}", rate_key(member.config))
        chosen.setdefault(key, member)
    return chosen


def search(members: Sequence[TrainingRun], execute: Execute, fraction: float | None = None) -> None:
    """Search the rates of some runs, and write them to `results/searched_rates.json` or `results/tuned_rates.json`.

    Args:
        members: runs of the experiments to tune for; by family, of each method the first seed is searched.
        execute: runs (or finds) runs and returns their records; None marks a failed run, which scores lowest.
        fraction: of the training split that every run of the search sees; None for what the member itself sees.

    Raises:
        RunError: no run of a search finished.
    """
    _search_by_run(members, execute, fraction)
    for (task, method), member in searches(members).items():
        trials = Trials(member, [member.config.seed], fraction)
        _try([(trials, rate) for rate in first_rates(member.config.structure.name)], execute)
        while True:
            scores = trials.scores(score)
            _check(f"{task}, {method}", scores)
            if (beyond := next_rate(scores)) is None:
                break
            _try([(trials, beyond)], execute)
        _write(task, method, scores)


def _write(task: str, method: str, scores: Mapping[float, Score]) -> None:
    """Add a finished search to those that the file holds, which another process may have added to."""
    best = max(scores, key=lambda rate: scores[rate])
    listed = {f"{rate:g}": round(scores[rate][0], 6) if scores[rate] != WORST else None for rate in sorted(scores)}
    with FileLock(TUNED_RATES.with_suffix(".lock")):
        rates: dict[str, dict[str, dict[str, Any]]] = tuned_rates()
        rates.setdefault(task, {})[method] = {"lr": best, "tried": listed}
        write_json(TUNED_RATES, {task: dict(sorted(methods.items())) for task, methods in sorted(rates.items())})


def wandb_sweeps(members: Sequence[TrainingRun], fraction: float | None = None) -> dict[Key, dict[str, Any]]:
    """The first values of each search by family as the file that `wandb sweep` takes: a grid over the learning rate.

    Its runs are those that `search` starts: afterwards that finds their records, and goes on beyond the edges.

    Args:
        members: as for `search`; their settings of tracking are for the sweep.
        fraction: as for `search`.

    Raises:
        ConfigError: a member has `search.by=run`, whose later values follow from those of other methods.
    """
    if any(member.config.search.by == "run" for member in members):
        raise ConfigError(
            "search.by=run: its values follow from each other, so no W&B sweep can list them; `make tune`."
        )
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
