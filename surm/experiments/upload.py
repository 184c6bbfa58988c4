"""The upload of runs to Weights & Biases that ran without it."""

import argparse
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surm.config.command import entry_of
from surm.config.compose import TRAIN, compose_run, composer, groups
from surm.experiments.cli import chosen_experiments, console
from surm.experiments.plan import Experiment, Scale, load_scale, load_scale_experiments
from surm.records.record import Record, read_records
from surm.shared.errors import ConfigError
from surm.training.tracking import marker, start_tracker

RUNS = Path("outputs/runs")  # of this machine, where there may be none yet


def tracking_options(settings: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of `tracking=wandb` with those of the settings that change them, and the other settings.

    Raises:
        ConfigError: a setting of tracking that does not exist.
    """
    own = [setting for setting in settings if setting.startswith("tracking.")]
    with composer():
        options = vars(compose_run(["tracking=wandb", *own]).tracking)
    return options, [setting for setting in settings if setting not in own]


def pending(records: Iterable[Record], mode: str, directory: Path) -> list[Record]:
    """The finished runs that W&B does not hold yet, each once; interrupted and failed ones may still change."""

    def held(signature: str) -> bool:
        return any(marker(directory, signature, known).exists() for known in ("online", mode))

    finished = {record.signature: record for record in records if record.finished}
    return [record for signature, record in finished.items() if not held(signature)]


def sync(
    records: Iterable[Record],
    tracking: Mapping[str, Any],
    *,
    groups: Mapping[str, Sequence[str]],
    directory: Path,
) -> list[str]:
    """Upload finished runs from their records, each signature once; an upload that broke goes on where it broke.

    Args:
        records: a trained adapter lies beside a run's own record.
        tracking: as for `start_tracker`.
        groups: signature -> experiments that the run belongs to; the first is its group, all are tags.
        directory: as for `start_tracker`; delete `<signature>.<mode>` there to upload a run again.

    Returns:
        The signatures uploaded now.

    Raises:
        TrackingError: as `start_tracker` does.
    """
    uploaded = []
    for record in pending(records, tracking["mode"], directory):
        signature, happened = record.signature, record.happened
        if tracking["mode"] == "offline":  # nothing goes on there: what broke is written anew
            for broken in directory.glob(f"wandb/offline-run-*-{signature}"):
                shutil.rmtree(broken)
        names = groups.get(signature, ())
        tracker = start_tracker(
            tracking,
            signature=signature,
            group=names[0] if names else None,
            config=record.asked,
            tags=names,
            directory=directory,
        )
        for step, row in _by_step(happened["history"]):
            tracker.log(row, step)
        if (folder := record.path.parent).name == signature:  # published records have no folder of their own
            tracker.log_adapter(folder, happened["metrics"])
        tracker.finish(happened, record.status)
        if marker(directory, signature, tracking["mode"]).exists():
            uploaded.append(signature)
    return uploaded


def _by_step(history: Iterable[Mapping[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """One row a step, in order: an upload that breaks leaves whole rows, and goes on with the next one."""
    rows: dict[int, dict[str, Any]] = {}
    for row in history:
        rows.setdefault(row["step"], {}).update({name: value for name, value in row.items() if name != "step"})
    return sorted(rows.items())


def wandb_sync(arguments: argparse.Namespace) -> None:
    """Upload the finished runs that W&B has not seen; `--only` those of one experiment.

    Raises:
        ConfigError: a folder of records that is not there.
    """
    for folder in arguments.records:
        if folder != RUNS and not folder.is_dir():
            raise ConfigError(f"RECORDS={folder}: there is no such folder; give one of records, such as results/runs.")
    options, arguments.set = tracking_options(arguments.set)
    chosen = chosen_experiments(arguments)
    planned = {run.signature for experiment in chosen for run in experiment.runs}
    finished = [
        record
        for record in read_records(*arguments.records).values()
        if record.finished and not record.is_study and (not arguments.only or record.signature in planned)
    ]
    directory = Path("outputs/wandb")
    left = pending(finished, options["mode"], directory)
    uploaded = sync(left, options, groups=experiments_of(left, chosen), directory=directory)
    console.print(f"{len(uploaded)} of {len(finished)} finished runs were uploaded now.")


def experiments_of(records: Iterable[Record], chosen: Iterable[Experiment]) -> dict[str, list[str]]:
    """Signature -> experiments that plan the run: the chosen ones first, then others until each has one.

    Nothing but a search plans the runs on the selection slice.
    """
    names: dict[str, list[str]] = {}
    reported = {record.signature for record in records if record.asked["dataset"]["evaluate_on"] == "test"}

    def note(experiment: Experiment) -> None:
        for planned in experiment.runs:
            names.setdefault(planned.signature, []).append(experiment.name)

    for experiment in chosen:
        note(experiment)
    for name in dict.fromkeys([*load_scale("published").experiments, *groups()["experiment"]]):
        if not reported <= names.keys() and entry_of(name) is TRAIN:
            note(load_scale_experiments(Scale(name, [name]))[0])
    return names
