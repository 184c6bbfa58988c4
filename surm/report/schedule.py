"""Whether the learning rates of a table were searched in runs of another length."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surm.records.record import Record
from surm.report.gather import Comparison


def searched_elsewhere(tasks: Sequence[Comparison], records: Iterable[Record]) -> list[str]:
    """A sentence for each task whose rates were searched in runs of another length or batch; none where they were not.

    Args:
        tasks: of a table.
        records: all at hand; those scored on the selection slice are a search, of the rates that they ran with.
    """
    searches = [
        record
        for record in records
        if record.finished and not record.is_study and record.asked["dataset"].get("evaluate_on") == "selection"
    ]
    lines = []
    for task in tasks:
        used = {_rate(run.asked) for method in task.finished for run in method.finished}
        of_task = [
            record
            for record in searches
            if _name(record.asked) == (task.model, task.dataset) and _rate(record.asked) in used
        ]
        if not task.finished or not of_task:
            continue
        shown = task.finished[0].finished[0]
        if all(_length(record.asked) != _length(shown.asked) for record in of_task):
            there = ", ".join(sorted({_words(record) for record in of_task}))
            here = _words(shown)
            lines.append(f"Rates on {task.dataset} were searched in runs of {there}, and used here for {here}.\n")
    return lines


def _name(asked: Mapping[str, Any]) -> tuple[str, str]:
    return str(asked["model"]["name"]), str(asked["dataset"]["name"])


def _rate(asked: Mapping[str, Any]) -> tuple[str, float]:
    """The method and its rate."""
    return str(asked["structure"]["name"]), float(asked["optim"]["lr"])


def _length(asked: Mapping[str, Any]) -> tuple[Any, ...]:
    """What was asked of the length: a search has fewer examples, so that its number of steps may differ."""
    trainer = asked.get("trainer", {})
    length = trainer.get("max_steps") or f"{trainer.get('epochs')} epochs"
    return length, trainer.get("batch_size")


def _words(record: Record) -> str:
    trainer, steps = record.asked.get("trainer", {}), record.happened.get("steps")
    epochs = "" if trainer.get("max_steps") else f"{trainer.get('epochs')} epochs"
    of_steps = f"{steps} steps" if steps else ""
    return f"{epochs} ({of_steps})" if epochs and of_steps else epochs or of_steps
