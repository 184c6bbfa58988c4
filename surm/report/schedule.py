"""How the learning rates of a table were searched: among how many values, and in runs of which length."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surm.records.record import Record
from surm.report.gather import Comparison, Method
from surm.report.verdict import number_of


def searched_elsewhere(tasks: Sequence[Comparison], records: Iterable[Record]) -> list[str]:
    """A sentence for each task whose rates were searched in runs of another length or batch; none where they were not.

    Args:
        tasks: of a table.
        records: all at hand; those scored on the selection slice are a search, of the rates that they ran with.
    """
    searches = _searches(records)
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


def values_tried(tasks: Sequence[Comparison], records: Iterable[Record]) -> list[str]:
    """A sentence for the tasks whose rates are the best of equally many values; none where no search is at hand.

    Args:
        tasks: of a table.
        records: all at hand; those scored on the selection slice are a search. Of a method count those that differ from
            its runs in nothing but the rate, the seed and the placement's sites, which share a rate; and none if its
            own rate is not among them.
    """
    tried: dict[str, list[Record]] = defaultdict(list)
    for record in _searches(records):
        tried[_besides_the_rate(record.asked)].append(record)

    def search_of(method: Method) -> list[Record]:
        asked = method.finished[0].asked
        found = tried[_besides_the_rate(asked)]
        return found if _rate(asked) in map(_rate, (run.asked for run in found)) else []

    datasets: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        searches = {method.name: search_of(method) for method in task.finished}
        if any(searches.values()):
            datasets[_of_values(searches)].append(task.dataset)
    return [
        f"Learning rates on {', '.join(dict.fromkeys(names))}: the best of {values} on a slice of the training split.\n"
        for values, names in datasets.items()
    ]


def _searches(records: Iterable[Record]) -> list[Record]:
    return [
        record
        for record in records
        if record.finished and not record.is_study and record.asked["dataset"].get("evaluate_on") == "selection"
    ]


def _besides_the_rate(asked: Mapping[str, Any]) -> str:
    """What a run and the search of its rate have in common."""
    dataset = {name: value for name, value in asked["dataset"].items() if name != "evaluate_on"}
    optim = {name: value for name, value in asked["optim"].items() if name != "lr"}
    form = asked.get("placement", {}).get("form")
    common = [asked["model"], dataset, asked["structure"], form, optim, asked.get("trainer")]
    return json.dumps(common, sort_keys=True, default=str)


def _of_values(searches: Mapping[str, Sequence[Record]]) -> str:
    """7 values each (linear probe 6; LoRA r=2 not searched), scored with seeds 100, 101."""
    counts = {name: len({_rate(run.asked) for run in runs}) for name, runs in searches.items()}
    usual = Counter(filter(None, counts.values())).most_common(1)[0][0]
    others = ", ".join(f"{name} {count}" for name, count in counts.items() if count not in (0, usual))
    without = ", ".join(name for name, count in counts.items() if not count)
    but = "; ".join(filter(None, [others, f"{without} not searched" if without else ""]))
    seeds = sorted({run.seed for runs in searches.values() for run in runs})
    scored = f"scored with {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    return f"{number_of(usual, 'value')} each{f' ({but})' if but else ''}, {scored}"


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
