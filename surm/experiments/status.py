"""What is planned, what it costs, and what has become of it: `make reproduce DRY=1`, `make status`."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from surm.experiments.cli import console
from surm.experiments.forecast import Forecast, total
from surm.experiments.plan import Experiment, Planned
from surm.records.record import read_records
from surm.records.recorded import canonical
from surm.shared.errors import RecordError
from surm.shared.paths import PUBLISHED
from surm.training.checkpoint import check_checkpoint


def print_plan(experiments: Sequence[Experiment]) -> None:
    """The runs, which of them are done, what they train, and what the rest costs and downloads.

    Time is that of equal or similar runs in the records; for the paper's own data, hours of one GPU by `forecast`.
    """
    known = read_records(PUBLISHED, Path("outputs/runs"))
    by_question: dict[str, list[float]] = {}
    for record in known.values():
        if record.finished and (seconds := record.happened.get("seconds")):
            by_question.setdefault(_cost_key(record.asked), []).append(seconds)
    left: dict[str, float | Forecast | None] = {}
    for experiment in experiments:
        header = ("signature", "method", "on", "rate", "seed", "status", "parameters", "head", "about")
        rows, costs = [], []
        for planned in experiment.runs:
            measured = by_question.get(_cost_key(planned.asked))
            expected = planned.forecast()
            cost = statistics.mean(measured) if measured and expected is None else expected
            costs.append(cost)
            status = planned.status()
            if status != "finished":
                left[planned.signature] = cost
            counts = (f"{expected.trainable:,}", f"{expected.head:,}") if expected else ("", "")
            rows.append((planned.signature, *planned.cells(), status, *counts, _in_words(cost)))
        print(f"\n{experiment.title} ({experiment.name}): {len(experiment.runs):,} runs{_total(costs)}\n")
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        for row in (header, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nLeft: {len(left):,} different runs{_total(left.values())}.")
    _, downloads = total(cost for cost in left.values() if isinstance(cost, Forecast))
    for needed in downloads:
        print(f"  to download: {needed}")


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
