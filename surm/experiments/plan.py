"""Experiments as lists of records: read `conf/experiment/<name>.yaml`, expand it, know what is done."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from surm.config.command import entry_of
from surm.config.compose import compose_sweep, composer
from surm.config.run import Run
from surm.config.schema import RunConfig
from surm.records.record import Record
from surm.shared.errors import ConfigError
from surm.shared.paths import CONFIG_DIRECTORY
from surm.shared.registry import hint
from surm.studies.entry import APPROXIMATE, ApproximateConfig, Part, compose_study, parts_of


@dataclass(frozen=True)
class Planned:
    """One record that an experiment asks for."""

    experiment: str
    task: Run | Part

    @property
    def asked(self) -> dict[str, Any]:
        return self.task.asked

    @property
    def signature(self) -> str:
        return self.task.signature

    @property
    def record_path(self) -> Path:
        return self.task.folder.record

    def record(self) -> Record | None:
        return self.task.record()

    def status(self) -> str:
        """finished | interrupted | failed | damaged | running | missing."""
        return self.task.status()

    def holder(self) -> dict[str, Any] | None:
        """The process that works on it now, as its claim says, or None."""
        return self.task.holder()


@dataclass(frozen=True)
class PlannedRun(Planned):
    """One member of an experiment's sweep: a model fine-tuned on a task."""

    task: Run

    @property
    def config(self) -> RunConfig:
        return self.task.config


@dataclass(frozen=True)
class PlannedPart(Planned):
    """One part of a study."""

    task: Part

    @property
    def config(self) -> ApproximateConfig:
        return self.task.config


@dataclass(frozen=True)
class Experiment:
    """An experiment file with the records it asks for: all runs, or all parts of one study."""

    name: str
    title: str
    claims: list[str]
    runs: Sequence[Planned]
    published: str = ""  # file of results/paper with rows that others published


def load_experiment(name: str, seeds: int | None = None, overrides: Sequence[str] = ()) -> Experiment:
    """Compose every member of an experiment; call inside `surm.compose.composer()`.

    Args:
        name: of a file in `conf/experiment`.
        seeds: number of seeds (0, 1, ...) or of a study's draws, in place of the file's own.
        overrides: more settings for every member.
    """
    runs: list[Planned] = []
    if entry_of(name) is APPROXIMATE:
        study = compose_study([f"experiment={name}", *overrides])
        if seeds:
            key, value = ("draws", seeds) if hasattr(study.study, "draws") else ("seeds", list(range(seeds)))
            setattr(study.study, key, value)
        runs += plan_study(study, name)
        table = study.table
    else:
        extra = [f"seed={','.join(map(str, range(seeds)))}"] if seeds else []
        configs = compose_sweep([f"experiment={name}", *extra, *overrides])
        # A method that no placement matters to is one run, however many placements the sweep has.
        runs += {run.signature: run for run in (PlannedRun(name, Run.of(config)) for config in configs)}.values()
        table = configs[0].table
    return Experiment(name, table.title, table.claims, runs, table.published)


def plan_study(config: ApproximateConfig, experiment: str) -> list[PlannedPart]:
    """The parts of a study, one record each."""
    return [PlannedPart(experiment, part) for part in parts_of(config)]


@dataclass(frozen=True)
class Scale:
    """How much `make reproduce` runs; a label printed with its numbers, and whether these are evidence."""

    name: str
    experiments: list[str]
    label: str = ""
    evidence: bool = True


def load_scale(name: str) -> Scale:
    """Read `conf/scale/<name>.yaml`."""
    names = sorted(file.stem for file in (CONFIG_DIRECTORY / "scale").glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"SCALE={name}: allowed are {', '.join(names)}{hint(name, names)}")
    return Scale(name=name, **yaml.safe_load((CONFIG_DIRECTORY / "scale" / f"{name}.yaml").read_text()))


def load_scale_experiments(
    scale: Scale, *, seeds: int | None = None, only: str | None = None, overrides: Sequence[str] = ()
) -> list[Experiment]:
    """The experiments of a scale, or the one named by `only`, which may stand outside the scale."""
    names = [only] if only else scale.experiments
    with composer():
        return [load_experiment(name, seeds, overrides) for name in names]


def on_selection(run: PlannedRun, rate: float, fraction: float | None = None) -> PlannedRun:
    """The same run with a given learning rate, scored on the selection slice of the training split.

    fraction: of the rest of the training split, for a search that the whole would make too long.
    """
    dataset = replace(run.config.dataset, evaluate_on="selection")
    config = replace(
        run.config,
        dataset=replace(dataset, fraction=fraction) if fraction else dataset,
        optim=replace(run.config.optim, lr=rate),
    )
    return replace(run, task=Run(config))
