"""An experiment: the planned runs, the records that were found for them, gathered by method."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from surm.methods.names import label
from surm.records.record import Record, unrun
from surm.report.statistics import Estimate, estimate_contrast, estimate_mean

REFERENCE = "LoRA r=1"
"""The method that the others are compared with."""


@dataclass(frozen=True)
class Plan:
    """One table: the signatures of its records, and the paper's claims it can test.

    `claims` are ids of the paper's `claims.yaml`. A label that ends in "not evidence" is printed wherever the
    numbers are, and forbids verdicts.
    """

    name: str
    title: str
    signatures: Sequence[str]
    claims: Sequence[str] = ()
    label: str = ""


class ExperimentPlan(Plan):
    """Methods compared on one model and one data set."""


@dataclass(frozen=True)
class GridPlan(Plan):
    """Methods (rows) compared on several tasks (columns).

    `asked` holds the `asked` block of every planned signature, so that a cell without a record has its row, its column
    and the reason. `published` names a file of the paper's folder with rows that other publications print.
    """

    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published: str = ""


@dataclass(frozen=True)
class Method:
    """One row: the runs that differ in nothing but the seed."""

    name: str
    finished: list[Record]
    unfinished: list[Record]

    @property
    def records(self) -> list[Record]:
        return [*self.finished, *self.unfinished]

    @property
    def family(self) -> str:
        """The structure's name, shared by all its options."""
        return str(self.records[0].asked["structure"]["name"])

    @property
    def form(self) -> str:
        """Where it trains: "weight", "adapter", or "" for a method that needs no placement."""
        return str(self.records[0].asked.get("placement", {}).get("form", ""))

    @property
    def trainable_parameters(self) -> int:
        """Trained parameters without the task head."""
        return int(self.finished[0].happened["trainable_parameters"])

    @cached_property
    def mean(self) -> Estimate:
        """Mean score of the finished runs, in percent."""
        return estimate_mean([run.evaluation for run in self.finished], [run.score for run in self.finished])

    def minus(self, other: "Method") -> Estimate | None:
        """Mean difference to another method in points, paired by seed; None without a common seed."""
        return contrast([[self, other]], [1, -1])


def contrast(columns: Sequence[Sequence[Method]], signs: Sequence[int]) -> Estimate | None:
    """Mean over columns of a signed sum of methods in points, paired by seed; None without a seed common to all.

    Args:
        columns: the methods of each column, in the order of `signs`.
        signs: +1 or -1 of each method.
    """
    runs = [[{run.seed: run for run in method.finished} for method in methods] for methods in columns]
    seeds = sorted(set.intersection(*(set(of_seed) for methods in runs for of_seed in methods)))
    if not seeds:
        return None
    return estimate_contrast(
        [[[of_seed[seed].evaluation for seed in seeds] for of_seed in methods] for methods in runs],
        signs,
        [
            fmean(
                sum(sign * of_seed[seed].score for sign, of_seed in zip(signs, methods, strict=True))
                for methods in runs
            )
            for seed in seeds
        ],
    )


@dataclass(frozen=True)
class Experiment:
    """A plan with the records found for it."""

    plan: Plan
    label: str
    methods: list[Method]
    missing: list[str]  # planned signatures without a record
    names: Mapping[str, str]  # planned signature -> its method's name, where it is known what was asked

    @property
    def is_evidence(self) -> bool:
        return not self.label.endswith("not evidence")

    @property
    def finished(self) -> list[Record]:
        return [record for method in self.methods for record in method.finished]

    @property
    def model(self) -> str:
        return next(str(record.asked["model"]["name"]) for method in self.methods for record in method.records)

    def method(self, name: str) -> Method | None:
        """The row called `name`, if it has a finished run."""
        return next((method for method in self.methods if method.name == name and method.finished), None)


@dataclass(frozen=True)
class Column:
    """A task of a grid: a model, a data set and the fraction of its training split, with the methods' runs on it."""

    model: str
    dataset: str
    fraction: float
    label: str
    experiment: Experiment

    @property
    def rows(self) -> list[str]:
        """Names of the planned methods, in the plan's order."""
        return list(dict.fromkeys(self.experiment.names.values()))

    @property
    def complete(self) -> bool:
        """Every planned method has a finished run."""
        return bool(self.rows) and all(self.experiment.method(row) for row in self.rows)


def gather(plan: Plan, records: Mapping[str, Record], *, known: Mapping[str, Record], label: str) -> Experiment:
    """Collect a plan's records by method, in the plan's order, with every further seed of the same requests.

    Args:
        records: the records to report, by signature.
        known: records that tell what a planned signature stands for, where `records` lacks it.
        label: the label of the whole report, used where the plan has none.

    Raises:
        ValueError: the plan mixes models or data sets, whose scores have no common table.
    """
    everything = {**known, **records}
    planned = {signature: everything[signature] for signature in plan.signatures if signature in everything}
    of_request: dict[str, list[Record]] = defaultdict(list)
    for record in records.values():
        of_request[record.request].append(record)

    tasks = {_task(record) for record in planned.values()}
    if len(tasks) > 1:
        mixed = ", ".join(_words(task) for task in sorted(tasks))
        raise ValueError(f"experiment {plan.name} mixes {mixed}: give one plan for each, or one grid.")

    requests = {record.request: record.asked for record in planned.values()}
    names = dict(zip(requests, _distinct_names(list(requests.values())), strict=True))
    groups = [
        (name, sorted(of_request[request], key=lambda record: record.seed))
        for request, name in names.items()
        if request in of_request
    ]
    return Experiment(
        plan=plan,
        label=plan.label or label,
        methods=[
            Method(
                name,
                finished=[record for record in group if record.finished],
                unfinished=[record for record in group if not record.finished],
            )
            for name, group in groups
        ],
        missing=[signature for signature in dict.fromkeys(plan.signatures) if signature not in records],
        names={signature: names[record.request] for signature, record in planned.items()},
    )


def gather_columns(
    plan: GridPlan, records: Mapping[str, Record], *, known: Mapping[str, Record], label: str
) -> list[Column]:
    """Collect a grid's records by column, in the plan's order; arguments as for `gather`."""
    planned = {signature: unrun(signature, asked) for signature, asked in plan.asked.items()}
    everything = {**planned, **known, **records}
    members: dict[tuple[str, str, float], list[str]] = defaultdict(list)
    for signature in dict.fromkeys(plan.signatures):  # a sweep names a method twice where it ignores a setting
        members[_task(everything[signature])].append(signature)
    models = {model for model, _, _ in members}
    fractions = {fraction for _, _, fraction in members}
    columns = []
    for (model, dataset, fraction), signatures in members.items():
        words = [dataset, *([model] if len(models) > 1 else [])]
        words += [f"{100 * fraction:g} %"] if len(fractions) > 1 and fraction < 1 else []
        part = ExperimentPlan(plan.name, ", ".join(words), signatures, label=plan.label)
        experiment = gather(part, records, known={**planned, **known}, label=label)
        columns.append(Column(model, dataset, fraction, ", ".join(words), experiment))
    return columns


def as_column(experiment: Experiment) -> Column:
    """A comparison on one task as a grid's only column.

    Raises:
        StopIteration: no record says which task it is.
    """
    first = next(record for method in experiment.methods for record in method.records)
    return Column(*_task(first), experiment.plan.title, experiment)


def _task(record: Record) -> tuple[str, str, float]:
    """Model, data set and fraction of its training split."""
    dataset = record.asked["dataset"]
    return str(record.asked["model"]["name"]), str(dataset["name"]), float(dataset.get("fraction", 1.0))


def _words(task: tuple[str, str, float]) -> str:
    model, dataset, fraction = task
    return f"{model} on {dataset}" if fraction == 1 else f"{model} on {100 * fraction:g} % of {dataset}"


def _distinct_names(requests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each request's label; methods that share a label are told apart by their learning rate and factor shape."""
    names = [label(asked) for asked in requests]
    shared = Counter(names)
    return [
        f"{name}, {_difference(asked)}" if shared[name] > 1 else name
        for name, asked in zip(names, requests, strict=True)
    ]


def _difference(asked: Mapping[str, Any]) -> str:
    shape = asked["structure"].get("factor_shape")
    return f"lr {asked['optim']['lr']:g}" + (f", {shape[0]} x {shape[1]}" if shape else "")
