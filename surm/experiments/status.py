"""What is planned, what it costs, and what has become of it: `make reproduce DRY=1`, `make status`."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from surm.experiments.cli import console
from surm.experiments.forecast import Forecast, total
from surm.experiments.plan import Experiment, Planned, TrainingRun
from surm.experiments.tune import Trials, first_rates, first_values, known_head_rate, searches, searches_by_run
from surm.records.provenance import kind_of_machine, kind_of_this_machine
from surm.records.record import read_records
from surm.records.recorded import canonical
from surm.shared.errors import RecordError
from surm.shared.paths import PUBLISHED
from surm.training.checkpoint import check_checkpoint


def print_plan(experiments: Sequence[Experiment]) -> None:
    """The runs, which of them are done, what they train, and what the rest costs and downloads.

    Time is that of equal or similar runs in the records; for the paper's own data, hours of one GPU by `forecast`.
    """
    measured = Measured()
    left: dict[str, float | Forecast | None] = {}
    for experiment in experiments:
        header = ("signature", "method", "on", "rate", "seed", "status", "parameters", "head", "about")
        rows, costs = [], []
        for planned in experiment.runs:
            expected = planned.forecast()
            here = measured.seconds(planned.asked)
            cost = expected if here is None or _is_large(planned) else here
            costs.append(cost)
            status = planned.status()
            if status != "finished":
                left[planned.signature] = cost
            counts = (f"{expected.trainable:,}", f"{expected.head:,}") if expected else ("", "")
            rows.append((planned.signature, *planned.cells(), status, *counts, _in_words(cost)))
        print(f"\n{experiment.title} ({experiment.name}): {len(experiment.runs):,} runs{_total(costs)}\n")
        _print_rows((header, *rows))
    print(f"\nLeft: {len(left):,} different runs{_total(left.values())}.")
    _, downloads = total(cost for cost in left.values() if isinstance(cost, Forecast))
    for needed in downloads:
        print(f"  to download: {needed}")


def print_searches(runs: Sequence[TrainingRun], fraction: float | None = None) -> None:
    """The searches that `make tune` makes for some runs: first values, what is done, and what the rest costs.

    A search goes on beyond these values where the best is at an edge. A method's rate of the head is not known before
    the probe's search is done; until then its runs count as not done.
    """
    measured, number = Measured(), 0
    left: list[float | Forecast | None] = []
    rows: list[tuple[str, ...]] = [("task", "length", "method", "values", "seeds", "done", "about")]
    for key, member in searches_by_run(runs).items():
        search = member.config.search
        rates = first_values(member.config.structure.name, search.values)
        trials = Trials(member, search.seeds, fraction, known_head_rate(key))
        wanted = [run for rate in rates for run in trials.runs(rate)]
        rows.append((*key, *_row(rates, search.seeds, wanted, measured, left)))
        number += len(wanted)
    for (task, method), member in searches(runs).items():
        rates = first_rates(member.config.structure.name)
        wanted = [run for rate in rates for run in Trials(member, [member.config.seed], fraction).runs(rate)]
        rows.append((task, "", method, *_row(rates, [member.config.seed], wanted, measured, left)))
        number += len(wanted)
    _print_rows(rows)
    print(f"\n{number:,} runs before any range is extended. Left: {len(left):,}{_total(left)}.")


def _row(
    rates: Sequence[float],
    seeds: Sequence[int],
    wanted: Sequence[TrainingRun],
    measured: "Measured",
    left: list[float | Forecast | None],
) -> tuple[str, ...]:
    """A search's values, seeds, runs that are done, and what the rest costs, which is added to `left`."""
    costs = [measured.seconds(run.asked) for run in wanted if run.status() != "finished"]
    left += costs
    done = f"{len(wanted) - len(costs)} of {len(wanted)}"
    return ", ".join(f"{rate:g}" for rate in rates), ", ".join(map(str, seeds)), done, _total(costs)[2:] or "nothing"


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Measured:
    """What finished runs took on machines of this one's kind, published ones and its own."""

    def __init__(self) -> None:
        self._of_question: dict[str, list[float]] = {}
        self._of_step: dict[tuple[str, ...], list[float]] = {}
        kinds = ("not known", kind_of_this_machine())
        for record in read_records(PUBLISHED, Path("outputs/runs")).values():
            alike = kind_of_machine(record.where) in kinds
            if alike and record.finished and (seconds := record.happened.get("seconds")):
                self._of_question.setdefault(_cost_key(record.asked), []).append(seconds)
                if steps := record.happened.get("steps"):
                    for key in _step_keys(record.asked):
                        self._of_step.setdefault(key, []).append(seconds / steps)

    def seconds(self, asked: Mapping[str, Any]) -> float | None:
        """Mean of equal runs; else the steps times those of a similar run; None where nothing is known."""
        if equal := self._of_question.get(_cost_key(asked)):
            return statistics.mean(equal)
        steps = asked.get("trainer", {}).get("max_steps")
        similar = (self._of_step[key] for key in _step_keys(asked) if key in self._of_step)
        found = next(similar, None) if steps else None
        return None if found is None else steps * statistics.median(found)


def _step_keys(asked: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a step's time depends on most, in two degrees of likeness."""
    if "trainer" not in asked:
        return []
    model, structure = asked["model"], asked["structure"]["name"]
    same = (canonical([model["name"], model.get("image_size"), asked["trainer"].get("batch_size")]),)
    kind = "probe" if structure == "linear_probe" else "full" if structure == "full" else "added"
    return [(*same, structure), (*same, f"kind {kind}")]


def _is_large(planned: Planned) -> bool:
    """Whether a run is of the paper's scale, whose cost is that on a GPU whatever was measured here."""
    return planned.trained is not None and not planned.trained.config.model.name.startswith(("builtin_", "tiny_"))


def _in_words(cost: float | Forecast | None) -> str:
    if cost is None:
        return "not known"
    return f"{cost.gpu_hours:.3g} GPU-hours" if isinstance(cost, Forecast) else f"{cost:.0f} s"


def _total(costs: Iterable[float | Forecast | None]) -> str:
    known = list(costs)
    hours, _ = total(cost for cost in known if isinstance(cost, Forecast))
    seconds = sum(cost for cost in known if isinstance(cost, float))
    unknown = sum(cost is None for cost in known)
    parts = [f"about {hours:,.1f} GPU-hours"] if hours else []
    parts += [f"about {timedelta(seconds=round(seconds))} here"] if seconds else []
    parts += [f"{unknown} of unknown time"] if unknown else []
    return "".join(f", {part}" for part in parts)


def _cost_key(asked: Mapping[str, Any]) -> str:
    """Runs that cost the same: model, data, method and length, whatever the rate and the seed."""
    run = {name: asked.get(name) for name in ("model", "dataset", "structure", "placement", "trainer")}
    study = {name: value for name, value in asked.get("study", {}).items() if name != "draw"}
    return canonical([run, study])


def status(experiments: Sequence[Experiment]) -> None:
    """Count runs by state; list those not finished with who works on them, why they failed, what is damaged."""
    for experiment in experiments:
        counts: dict[str, list[Planned]] = {}
        for planned in experiment.runs:
            counts.setdefault(planned.status(), []).append(planned)
        console.print(f"{experiment.name}: " + ", ".join(f"{len(runs)} {status}" for status, runs in counts.items()))
        for state, runs in counts.items():
            for planned in runs if state != "finished" else []:
                console.print(f"  {state:12} {planned.signature}  {planned.describe()}{_remark(planned)}")


def _remark(planned: Planned) -> str:
    """Who works on a run, why it failed, or which of its files is damaged."""
    holder = planned.holder()
    if holder:
        return f"  ({holder}, last sign of life {holder.silent:.0f} s ago)"
    try:
        record = planned.record()
        check_checkpoint(planned.folder.checkpoint)
    except RecordError as damage:
        return f"  ({damage})"
    error = record.happened.get("error") if record else None
    return f"  ({error})" if error else ""
