"""Experiments as lists of runs: read `conf/experiment/<name>.yaml`, expand its sweep, know what is done."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from surm import signature as identity
from surm.claim import living_holder
from surm.config import ConfigError, RunConfig, Scale, compose_run, composer, groups, sweep_members
from surm.record import PUBLISHED, Record, read_record, run_directory
from surm.report import ExperimentPlan


@dataclass(frozen=True)
class PlannedRun:
    """One member of an experiment's sweep."""

    experiment: str
    overrides: list[str]
    config: RunConfig
    signature: str

    @property
    def record_path(self) -> Path:
        return run_directory(self.config.output_dir, self.signature) / "record.json"

    def record(self) -> Record | None:
        return read_record(self.record_path)

    def status(self) -> str:
        """finished | interrupted | failed | running | missing."""
        if living_holder(self.record_path.parent) is not None:
            return "running"
        record = self.record()
        return record["status"] if record is not None else "missing"

    def published(self) -> Record | None:
        return read_record(PUBLISHED / f"{self.signature}.json")


@dataclass(frozen=True)
class Experiment:
    """An experiment file with its runs."""

    name: str
    title: str
    claims: list[str]
    runs: list[PlannedRun]

    def for_report(self, label: str = "") -> ExperimentPlan:
        return ExperimentPlan(self.name, self.title, [run.signature for run in self.runs], self.claims, label)


def load_experiment(name: str, seeds: int | None = None, overrides: Sequence[str] = ()) -> Experiment:
    """Compose every member of an experiment's sweep; call inside `surm.config.composer()`.

    Args:
        name: of a file in `conf/experiment`.
        seeds: number of seeds (0, 1, ...) in place of the file's own.
        overrides: more settings for every member.
    """
    if name not in groups()["experiment"]:
        raise ConfigError(f"experiment={name}: conf/experiment has {', '.join(groups()['experiment'])}.")
    extra = [f"seed={','.join(map(str, range(seeds)))}"] if seeds else []
    runs = []
    for member in sweep_members([f"experiment={name}", *extra, *overrides]):
        config = compose_run(member)
        runs.append(PlannedRun(name, member, config, identity.signature(identity.asked(config))))
    study = runs[0].config.study
    return Experiment(name, study.title, study.claims, runs)


def load_scale_experiments(scale: Scale, *, seeds: int | None = None, only: str | None = None) -> list[Experiment]:
    """The experiments of a scale, or the one named by `only`, which may stand outside the scale."""
    names = [only] if only else scale.experiments
    with composer():
        return [load_experiment(name, seeds) for name in names]


def on_selection(run: PlannedRun, rate: float) -> PlannedRun:
    """The same run with a given learning rate, scored on the selection slice of the training split."""
    config = replace(
        run.config,
        dataset=replace(run.config.dataset, evaluate_on="selection"),
        optim=replace(run.config.optim, lr=rate),
    )
    return replace(run, config=config, signature=identity.signature(identity.asked(config)))
