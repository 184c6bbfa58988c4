"""Experiments as lists of records: read `conf/experiment/<scale>/<name>.yaml`, expand it, know what is done.

A run and a part of a study are each one record, and answer the same questions (`Planned`).
"""

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import yaml

from surm.config.checks import ignored_line
from surm.config.command import entry_of
from surm.config.compose import ENTRIES, TRAIN, Entry, Member, compose_sweep, composer, groups
from surm.config.run import Run
from surm.config.schema import TableConfig
from surm.data import primary_metric
from surm.experiments.forecast import Forecast, forecast
from surm.methods.names import data_name, label
from surm.records.record import Record
from surm.records.recorded import Recorded
from surm.shared.errors import ConfigError
from surm.shared.paths import CONFIG_DIRECTORY
from surm.shared.registry import hint
from surm.studies.entry import APPROXIMATE, Part
from surm.studies.registry import STUDIES
from surm.studies.run import run_part
from surm.training.run import execute


class Display(Protocol):
    """Where a run says how it goes."""

    def say(self, line: str) -> None:
        """Print a line."""

    def show(self, text: str, step: int | None = None, steps: int | None = None) -> None:
        """What goes on now, and how far it is; the next call replaces it."""


class Planned(Recorded):
    """One record that an experiment asks for."""

    entry: Entry[Any]  # the script that is for it
    overrides: tuple[str, ...]  # what that script is told to ask for it; all parts of a study are asked for at once

    @classmethod
    @abstractmethod
    def of_member(cls, member: Member[Any]) -> "list[Self]":
        """What a member of a checked command asks for."""

    @property
    @abstractmethod
    def table(self) -> TableConfig:
        """The experiment that asks for it; no part of its identity."""

    @property
    def study(self) -> str:
        """The name of the study that it is a part of; empty for a run."""
        return ""

    @property
    def trained(self) -> "TrainingRun | None":
        """Itself, if a model is trained: what rates are tuned for, and what W&B sees."""
        return None

    @abstractmethod
    def execute(self, display: Display) -> Record:
        """Run, resume or find it.

        Raises:
            Claimed, RecordError, StorageError, RunError, Interrupted: as `surm.training.run.execute` does.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line that names it."""

    def notes(self) -> list[str]:
        """Lines that are worth knowing before it starts."""
        return []

    @abstractmethod
    def result(self, record: Record) -> list[str]:
        """Lines that tell what its record says."""

    def result_of_before(self, record: Record) -> list[str]:
        """The same, where it was finished before it was asked for."""
        first, *more = self.result(record)
        return [f"done before: {first}", *more]

    @abstractmethod
    def cells(self) -> tuple[str, str, str, str]:
        """Method, data, rate and seed, in a listing of a plan."""

    def forecast(self) -> Forecast | None:
        """What it will train, cost and download, as far as that is known without a measured run."""
        return None


@dataclass(frozen=True)
class TrainingRun(Run, Planned):
    """One member of an experiment's sweep: a model fine-tuned on a task."""

    overrides: tuple[str, ...] = ()
    entry = TRAIN

    @classmethod
    def of_member(cls, member: Member[Any]) -> list[Self]:
        return [replace(cls.of(member.config), overrides=tuple(member.overrides))]

    @property
    def table(self) -> TableConfig:
        return self.config.table

    @property
    def trained(self) -> "TrainingRun":
        return self

    def execute(self, display: Display) -> Record:
        display.show("loading")

        def report(step: int, steps: int, values: dict[str, float]) -> None:
            display.show("  ".join(f"{name} {value:.4f}" for name, value in values.items()), step, steps)

        return execute(self, report=report, say=display.say)

    def describe(self) -> str:
        return f"{label(self.asked)} on {self._data()}, rate {self.rate:g}, seed {self.config.seed}"

    def notes(self) -> list[str]:
        rate = f"learning rate {self.rate:g}: {self.rate_source}" if self.rate_source else None
        return [line for line in (ignored_line(self.config), rate) if line]

    def result(self, record: Record) -> list[str]:
        happened, metric = record.happened, record.metric
        lines = [
            f"{metric} {happened['metrics'][metric]:.4f} (n = {happened['evaluation_examples']})  "
            f"trainable {happened['trainable_parameters']:,} + head {happened['head_parameters']:,}  "
            f"{self.folder.record}"
        ]
        if others := [f"{name} {value:.4f}" for name, value in happened["metrics"].items() if name != metric]:
            lines.append(f"beside it: {', '.join(others)}")
        if baselines := [f"{name} {value:.4f}" for name, value in happened["baselines"].items()]:
            lines.append(f"without a model: {', '.join(baselines)}")
        return lines

    def cells(self) -> tuple[str, str, str, str]:
        return label(self.asked), self._data(), f"{self.rate:g}", str(self.config.seed)

    def forecast(self) -> Forecast | None:
        return forecast(self)

    def _data(self) -> str:
        """Model and data."""
        data = self.config.dataset
        share = f", {100 * data.fraction:g} %" if data.fraction < 1 else ""
        split = "" if data.evaluate_on == "test" else " (selection)"
        return f"{self.config.model.name} x {data_name(self.asked['dataset'])}{share}{split}"

    @property
    def metric(self) -> str:
        """The metric of its tables; at W&B `evaluation/<metric>`, and `metrics/<metric>` from the end on."""
        return primary_metric(self.config.dataset.name, **self.config.dataset.origin())

    def on_selection(
        self,
        rate: float,
        fraction: float | None = None,
        *,
        head_rate: float | None = None,
        seed: int | None = None,
    ) -> "TrainingRun":
        """The same run with given learning rates, scored on the selection slice of the training split.

        fraction: of the rest of the training split, for a search that the whole would make too long.
        head_rate: of the task head; default: what the run has.
        seed: default: the run's own.
        """
        dataset = replace(self.config.dataset, evaluate_on="selection")
        config = replace(
            self.config,
            dataset=replace(dataset, fraction=fraction) if fraction else dataset,
            optim=replace(self.config.optim, lr=rate, head_lr=head_rate or self.config.optim.head_lr),
            seed=self.config.seed if seed is None else seed,
        )
        return TrainingRun(config)


@dataclass(frozen=True)
class StudyPart(Part, Planned):
    """One part of a study."""

    overrides: tuple[str, ...] = ()
    entry = APPROXIMATE

    @classmethod
    def of_member(cls, member: Member[Any]) -> list[Self]:
        config = member.config
        return [cls(config, part, tuple(member.overrides)) for part in STUDIES[config.study.name].parts(config.study)]

    @property
    def table(self) -> TableConfig:
        return self.config.table

    @property
    def study(self) -> str:
        return str(self.config.study.name)

    def execute(self, display: Display) -> Record:
        display.show("computing")
        return run_part(self, display.show)

    def describe(self) -> str:
        return f"{self.study} {self._differs()}"

    def result(self, record: Record) -> list[str]:
        return [f"{record.happened['seconds']:.0f} s  {self.folder.record}"]

    def result_of_before(self, record: Record) -> list[str]:
        return [f"done before: {self.describe()}  {self.folder.record}"]

    def cells(self) -> tuple[str, str, str, str]:
        return self._differs(), "", "", ""

    def _differs(self) -> str:
        """What tells a part from the others: its words, and its draw or seeds."""
        return ", ".join(
            f"{key} {value}" for key, value in self.part.items() if isinstance(value, str) or key in ("draw", "seeds")
        )


PLANNED: dict[str, type[Planned]] = {kind.entry.name: kind for kind in (TrainingRun, StudyPart)}
"""What each script asks for, by the script's primary file."""


def plan(members: Iterable[Member[Any]], entry: Entry[Any]) -> list[Planned]:
    """The records that the members of a checked command ask for, each once.

    Several members are one run where no placement matters to a method.
    """
    planned: dict[str, Planned] = {}
    for member in members:
        for run in PLANNED[entry.name].of_member(member):
            planned.setdefault(run.signature, run)
    return list(planned.values())


@dataclass(frozen=True)
class Experiment:
    """An experiment file with the records it asks for: all runs, or all parts of one study."""

    name: str  # of its table
    title: str
    claims: list[str]
    runs: Sequence[Planned]
    published: str = ""  # file of the paper's folder with rows that others published
    file: str = ""  # in conf/experiment, as `experiment=` takes it


def load_experiment(name: str, seeds: int | None = None, overrides: Sequence[str] = ()) -> Experiment:
    """Compose every member of an experiment; call inside `surm.config.compose.composer()`.

    Args:
        name: of a file in `conf/experiment`, such as laptop/digits.
        seeds: number of seeds (0, 1, ...) or of a study's draws, in place of the file's own.
        overrides: more settings for every member.
    """
    entry = entry_of(name)
    extra = [entry.seeds(name, seeds)] if seeds else []
    runs = plan(compose_sweep([f"experiment={name}", *extra, *overrides], entry), entry)
    table = runs[0].table
    assert table.name, f"conf/experiment/{name}.yaml names no table"
    return Experiment(table.name, table.title, table.claims, runs, table.published, name)


def training_runs(experiments: Iterable[Experiment]) -> list[TrainingRun]:
    """The runs of experiments, without the parts of studies."""
    return [run.trained for experiment in experiments for run in experiment.runs if run.trained]


@dataclass(frozen=True)
class Scale:
    """How much `make reproduce` runs; a label printed with its numbers, and whether these are evidence."""

    name: str
    experiments: list[str]
    label: str = ""
    evidence: bool = True


def scales() -> list[str]:
    """What `SCALE=` takes: the folders of `conf/experiment`, and the lists of `conf/scale`."""
    folders = {name.partition("/")[0] for name in groups()["experiment"] if "/" in name}
    return sorted(folders | {file.stem for file in (CONFIG_DIRECTORY / "scale").glob("*.yaml")})


def load_scale(name: str) -> Scale:
    """A folder of `conf/experiment`, and what `conf/scale/<name>.yaml` says beside it.

    A folder runs its tables and figures before its other data sets, these before its studies; equals by name.
    """
    if name not in scales():
        raise ConfigError(f"SCALE={name}: allowed are {', '.join(scales())}{hint(name, scales())}")
    file = CONFIG_DIRECTORY / "scale" / f"{name}.yaml"
    told = yaml.safe_load(file.read_text()) if file.exists() else {}
    folder = sorted((file for file in groups()["experiment"] if file.startswith(f"{name}/")), key=_order)
    return Scale(name, **{"experiments": folder, **told})


def _order(experiment: str) -> tuple[int, int, list[str | int]]:
    name = experiment.rpartition("/")[-1]
    kind = next((k for k, start in enumerate(("table", "fig")) if name.startswith(start)), 2)
    # Table 10 comes after Table 2. Words and numbers alternate, so that like is compared with like.
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    return ENTRIES.index(entry_of(experiment)), kind, parts


def find_experiment(name: str, scale: str) -> str:
    """The file of `conf/experiment` that `ONLY=` means.

    Args:
        name: within the scale (digits), in full (laptop/digits), or of the experiment's table (laptop_digits).
        scale: which folder to look in first.

    Raises:
        ConfigError: there is none; one sentence with the nearest.
    """
    files = groups()["experiment"]
    for file in (f"{scale}/{name}", name):
        if file in files:
            return file
    for file in files:
        if yaml.safe_load((CONFIG_DIRECTORY / "experiment" / f"{file}.yaml").read_text())["table"]["name"] == name:
            return file
    allowed = sorted((file.removeprefix(f"{scale}/") for file in files), key=lambda file: "/" in file)
    # The names of this scale stand there without its folder, so the nearest is sought without it, too.
    nearest = hint(name.removeprefix(f"{scale}/"), allowed)
    raise ConfigError(f"ONLY={name}: conf/experiment has {', '.join(allowed)}{nearest}")


def load_scale_experiments(
    scale: Scale, *, seeds: int | None = None, only: str | None = None, overrides: Sequence[str] = ()
) -> list[Experiment]:
    """The experiments of a scale, or the one named by `only`, which may stand outside the scale."""
    names = [find_experiment(only, scale.name)] if only else scale.experiments
    with composer():
        return [load_experiment(name, seeds, overrides) for name in names]
