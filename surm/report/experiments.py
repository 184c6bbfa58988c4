"""An experiment: the planned runs, the records that were found for them, gathered by method."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from surm.report.records import Record, label
from surm.report.statistics import Estimate, estimate_difference, estimate_mean

REFERENCE = "LoRA r=1"
"""The method that the others are compared with."""


@dataclass(frozen=True)
class Plan:
    """One table: the signatures of its records, and the paper's claims it can test.

    `claims` are ids of `results/paper/claims.yaml`. A label that ends in "not evidence" is printed wherever the
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
    def trainable_parameters(self) -> int:
        """Trained parameters without the task head."""
        return int(self.finished[0].happened["trainable_parameters"])

    @cached_property
    def mean(self) -> Estimate:
        """Mean score of the finished runs, in percent."""
        return estimate_mean([run.evaluation for run in self.finished], [run.score for run in self.finished])

    def minus(self, other: "Method") -> Estimate | None:
        """Mean difference to another method in points, paired by seed; None without a common seed."""
        mine, others = ({run.seed: run for run in method.finished} for method in (self, other))
        pairs = [(mine[seed], others[seed]) for seed in sorted(mine.keys() & others.keys())]
        if not pairs:
            return None
        return estimate_difference(
            [run.evaluation for run, _ in pairs],
            [run.evaluation for _, run in pairs],
            [run.score - reference.score for run, reference in pairs],
        )


@dataclass(frozen=True)
class Experiment:
    """A plan with the records found for it."""

    plan: Plan
    label: str
    methods: list[Method]
    missing: list[str]  # planned signatures without a record

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
    planned = [everything[signature] for signature in plan.signatures if signature in everything]
    of_request: dict[str, list[Record]] = defaultdict(list)
    for record in records.values():
        of_request[record.request].append(record)

    requests = dict.fromkeys(record.request for record in planned)
    settings = {(record.asked["model"]["name"], record.asked["dataset"]["name"]) for record in planned}
    if len(settings) > 1:
        pairs = ", ".join(f"{model} on {dataset}" for model, dataset in sorted(settings))
        raise ValueError(f"experiment {plan.name} mixes {pairs}: give one plan for each.")

    groups = [
        sorted(of_request[request], key=lambda record: record.seed) for request in requests if request in of_request
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
            for name, group in zip(_distinct_names(groups), groups, strict=True)
        ],
        missing=[signature for signature in plan.signatures if signature not in records],
    )


def _distinct_names(groups: Sequence[Sequence[Record]]) -> list[str]:
    """Each group's label; methods that share a label are told apart by their learning rate and factor shape."""
    names = [label(group[0].asked) for group in groups]
    shared = Counter(names)
    return [
        f"{name}, {_difference(group[0].asked)}" if shared[name] > 1 else name
        for name, group in zip(names, groups, strict=True)
    ]


def _difference(asked: Mapping[str, Any]) -> str:
    shape = asked["structure"].get("factor_shape")
    return f"lr {asked['optim']['lr']:g}" + (f", {shape[0]} x {shape[1]}" if shape else "")
