"""The records of a plan, gathered by method: one comparison for each task."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surm.methods.names import data_name, label
from surm.records.record import Evaluation, Record, unrun
from surm.report.plan import ComparisonPlan, GridPlan, Plan
from surm.report.statistics import COUNTING, METRICS, Array, Estimate, contrast_table, estimate_contrast

NOT_RUN = "not run"  # of a planned run without a record
REFERENCE = "LoRA r=1"
"""The method that the others are compared with."""
Task = tuple[str, str, float, int]
"""Model, data set, fraction of its training split and image size (0 for text)."""


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

    @property
    def scores(self) -> list[float]:
        """The scores of the finished runs, in percent."""
        return [run.score for run in self.finished]

    @property
    def mean(self) -> float:
        """Mean score of the finished runs, in percent."""
        return fmean(self.scores)

    @property
    def sd(self) -> float | None:
        """Standard deviation of the scores over seeds; None for one seed."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def ends(self) -> tuple[float, float] | tuple[None, None]:
        """Mean less and plus one standard deviation, what figures draw of the seeds."""
        return (None, None) if self.sd is None else (self.mean - self.sd, self.mean + self.sd)

    def __str__(self) -> str:
        """Mean and standard deviation, as `97.6 ± 0.5 %`."""
        return f"{self.mean:.1f} %" if self.sd is None else f"{self.mean:.1f} ± {self.sd:.1f} %"

    def minus(self, other: "Method") -> Estimate | None:
        """Mean difference to another method in points, paired by seed; None without a common seed."""
        return contrast([[self, other]], [1, -1])

    def table_minus(self, other: "Method") -> Array | None:
        """The (S, N) differences to another method in points, seeds by examples; None where `minus` has no interval."""
        estimate = self.minus(other)
        if estimate is None or estimate.error is None:
            return None
        pairs = [{run.seed: run.evaluation for run in method.finished} for method in (self, other)]
        seeds = sorted(set(pairs[0]) & set(pairs[1]))
        return contrast_table([run for of_seed in pairs for seed in seeds if (run := of_seed[seed])], [1, -1])


@dataclass(frozen=True)
class FailedRun(Record):
    """A run that failed, counted as if it had answered the same for every example: the most frequent label.

    Where labels are numbers of tokens, it has none right.
    """

    answered: Evaluation

    @property
    def evaluation(self) -> Evaluation:
        return self.answered

    @classmethod
    def of(cls, record: Record, finished: Record, labels: NDArray[np.generic]) -> "FailedRun":
        """`finished` is a run of the same task: its metric and sizes are taken, and `labels` are those it met."""
        values, counts = np.unique(labels, return_counts=True)
        answer = np.full(labels.shape, 0 if finished.metric in COUNTING else values[np.argmax(counts)])
        ones = np.ones((1, len(labels)))
        score = float(METRICS[finished.metric](labels.astype(float), answer.astype(float), ones)[0])
        metrics = {finished.metric: score}
        happened = {**finished.happened, "metrics": metrics, "best_epoch_metrics": metrics, "history": []}
        happened |= {"error": record.happened.get("error"), "seconds_per_step": None, "peak_memory_bytes": None}
        kept = {name: getattr(record, name) for name in ("path", "signature", "asked", "where")}
        return cls(**kept, status="finished", happened=happened, answered=Evaluation(finished.metric, labels, answer))


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
class Comparison:
    """Methods compared on one task: a model at one image size, a data set and a fraction of its training split.

    `missing` are planned signatures without a record, `names` gives the method of each planned signature, where it is
    known what was asked. Model and data set are empty where nothing is known of the plan. `seeds` are those that were
    fixed before the runs, if any. `headroom` says by how many points full fine-tuning or LoRA r=8, the better one,
    lies above LoRA r=1 here, where that is known.
    """

    title: str
    model: str
    dataset: str
    fraction: float
    methods: list[Method]
    missing: list[str]
    names: Mapping[str, str]
    seeds: Sequence[int] = ()
    headroom: float | None = None
    image_size: int = 0

    @property
    def task(self) -> "Task":
        """What tells it from other columns."""
        return self.model, self.dataset, self.fraction, self.image_size

    @property
    def rows(self) -> list[str]:
        """Names of the planned methods, in the plan's order."""
        return list(dict.fromkeys(self.names.values()))

    @property
    def finished(self) -> list[Method]:
        """The methods that have a finished run."""
        return [method for method in self.methods if method.finished]

    @property
    def complete(self) -> bool:
        """Every planned method has a finished run."""
        return bool(self.rows) and all(self.method(row) for row in self.rows)

    @property
    def facts(self) -> dict[str, Any]:
        """What happened in the first finished run: metric, number of examples, scores without training."""
        return self.finished[0].finished[0].happened

    @property
    def metric(self) -> str:
        """Name of the reported metric."""
        return str(self.facts["primary_metric"]) if self.finished else "score"

    @property
    def baselines(self) -> dict[str, float]:
        """Scores that need no training, in percent."""
        return {name: 100 * value for name, value in self.facts.get("baselines", {}).items()} if self.finished else {}

    @property
    def reference(self) -> Method | None:
        """LoRA of rank 1 on q, k and v, or, where it is not planned, the only one of another placement."""
        others = [row for row in self.rows if row.startswith(f"{REFERENCE} (")]
        alone = REFERENCE not in self.rows and len(others) == 1
        return self.method(others[0] if alone else REFERENCE)

    def not_run(self, name: str) -> str:
        """How many of a planned method's runs have no record, such as "3 of 8 seeds"; empty where all have one."""
        missing = sum(self.names.get(signature) == name for signature in self.missing)
        return f"{missing} of {sum(row == name for row in self.names.values())} seeds" if missing else ""

    def method(self, name: str) -> Method | None:
        """The row called `name`, if it has a finished run."""
        return next((method for method in self.finished if method.name == name), None)


def gather(plan: Plan, records: Mapping[str, Record]) -> Comparison:
    """Collect a plan's records by method, in the plan's order.

    A plan that fixes its seeds gets those; any other one gets every further seed of the same requests.

    Args:
        plan: what was planned.
        records: the records to report, by signature.

    Raises:
        ValueError: the plan mixes models or data sets, whose scores have no common table.
    """
    everything = {**_unrun(plan), **records}
    planned = {signature: everything[signature] for signature in plan.signatures if signature in everything}
    of_request: dict[str, list[Record]] = defaultdict(list)
    for record in records.values():
        if not plan.seeds or (not record.is_study and record.seed in plan.seeds):
            of_request[record.request].append(record)

    tasks = sorted({_task(record) for record in planned.values()})
    if len(tasks) > 1:
        mixed = ", ".join(_words(task) for task in tasks)
        raise ValueError(f"experiment {plan.name} mixes {mixed}: give one plan for each, or one grid.")

    requests = {record.request: record.asked for record in planned.values()}
    names = dict(zip(requests, _distinct_names(list(requests.values())), strict=True))
    groups = [
        (name, sorted(of_request[request], key=lambda record: record.seed))
        for request, name in names.items()
        if request in of_request
    ]
    methods = [
        Method(
            name,
            finished=[record for record in group if record.finished],
            unfinished=[record for record in group if not record.finished],
        )
        for name, group in groups
    ]
    return Comparison(
        plan.title,
        *(tasks[0][:3] if tasks else ("", "", 1.0)),
        methods=_with_failed(methods) if plan.seeds else methods,
        seeds=tuple(plan.seeds),
        image_size=tasks[0][3] if tasks else 0,
        missing=[signature for signature in dict.fromkeys(plan.signatures) if signature not in records],
        names={signature: names[record.request] for signature, record in planned.items()},
    )


def _with_failed(methods: Sequence[Method]) -> list[Method]:
    """The methods with their failed runs among the finished ones, scored as `FailedRun` says.

    A method that never finished stays without a score: its runs may fail for a reason that is not the method's.
    """
    answers = [(run, run.evaluation) for method in methods for run in method.finished]
    labels = next((evaluation.labels for _, evaluation in answers if evaluation), None)
    if labels is None:
        return list(methods)
    counted = []
    for method in methods:
        failed = [run for run in method.unfinished if run.status == "failed"] if method.finished else []
        runs = [*method.finished, *(FailedRun.of(run, method.finished[0], labels) for run in failed)]
        others = [run for run in method.unfinished if run not in failed]
        counted.append(replace(method, finished=sorted(runs, key=lambda run: run.seed), unfinished=others))
    return counted


def gather_columns(plan: GridPlan, records: Mapping[str, Record]) -> list[Comparison]:
    """Collect a grid's records by task, in the plan's order; arguments as for `gather`."""
    everything = {**_unrun(plan), **records}
    members: dict[Task, list[str]] = defaultdict(list)
    for signature in dict.fromkeys(plan.signatures):  # a sweep names a method twice where it ignores a setting
        members[_task(everything[signature])].append(signature)
    models, _, fractions, sizes = (set(values) for values in zip(*members, strict=True)) if members else [set()] * 4
    columns = []
    for (model, dataset, fraction, size), signatures in members.items():
        words = [dataset, *([model] if len(models) > 1 else [])]
        words += [f"{100 * fraction:g} %"] if len(fractions) > 1 and fraction < 1 else []
        words += [f"{size} px"] if len(sizes) > 1 and len(members) > len({task[:3] for task in members}) else []
        part = ComparisonPlan(plan.name, ", ".join(words), signatures, seeds=plan.seeds, asked=plan.asked)
        columns.append(gather(part, records))
    return columns


def _unrun(plan: Plan) -> dict[str, Record]:
    """The plan's runs as records of nothing but the question."""
    return {signature: unrun(signature, asked) for signature, asked in plan.asked.items()}


def _task(record: Record) -> Task:
    dataset, model = record.asked["dataset"], record.asked["model"]
    share, size = float(dataset.get("fraction", 1.0)), int(model.get("image_size") or 0)
    return str(model["name"]), data_name(dataset), share, size


def _words(task: Task) -> str:
    model, dataset, fraction, _ = task
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
