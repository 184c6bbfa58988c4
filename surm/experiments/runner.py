"""Runs started here, one after the other, with progress bars; what fails as expected stops no other."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from surm.config.checks import ignored_line
from surm.config.compose import composer
from surm.config.run import Run
from surm.config.schema import RunConfig
from surm.experiments.cli import command, console, describe
from surm.experiments.plan import Experiment, Planned, PlannedPart, PlannedRun, Scale, plan_study
from surm.experiments.sweep import Sweep
from surm.records.record import Record
from surm.shared.errors import Claimed, RecordError, RunError, StorageError
from surm.shared.processes import lone_launch
from surm.studies.entry import ApproximateConfig, compose_study
from surm.studies.run import run_part
from surm.training.run import execute


def run_with_bar(config: RunConfig) -> Record:
    """One run with a bar of its own; prints the result."""
    with command(), _bars() as bars:
        if lone_launch():
            console.print("accelerate started one process: without GPUs, add --multi_gpu to have as many as asked for.")
        return _run(Run.of(config), bars)


def run_study(config: ApproximateConfig) -> None:
    """All parts of one study, then its table, figures and verdicts."""
    with command():
        name, table = config.table.name, config.table
        if name is None:  # not asked for by an experiment file: the study's own title and claims
            name = config.study.name
            with composer():
                table = compose_study([f"experiment=full_{name}"]).table
        parts = plan_study(config, name)
        experiment = Experiment(name, table.title, table.claims, parts)
        failures = run_all(parts)
        from surm.experiments.publish import report  # a run loads no report

        report([experiment], Scale(experiment.name, [experiment.name]), Path(config.output_dir))
    if failures:
        sys.exit(1)


def run_member(config: RunConfig) -> None:
    """One run as a job of a Hydra sweep: what is expected to go wrong is one sentence and stops no other job.

    The record, or its absence, tells whoever started the sweep.

    Raises:
        Interrupted: the sweep was asked to stop.
    """
    with _bars() as bars:
        _attempt(PlannedRun(config.table.name or "", Run.of(config)), bars)


def run_all(runs: Sequence[Planned]) -> int:
    """Run what is missing, one bar over all; a failed run does not stop the others.

    Other processes may share the work: what they have claimed is waited for.

    Returns:
        The number of runs that are not finished.
    """
    sweep = Sweep(runs)
    with _bars() as bars:
        overall = bars.add_task(f"{len(sweep.runs)} runs", total=len(sweep.runs))
        for planned in sweep.runs:
            if sweep.status(planned) == "finished":
                _print_done(planned, bars.console.print)

        def launch() -> None:
            for planned in sweep.open():
                if sweep.is_open(planned):
                    _attempt(planned, bars, overall, len(sweep.runs) - len(sweep.unfinished()))

        left = sweep.finish(launch, bars.console.print)
    if left:
        console.print(f"{left} of {len(sweep.runs)} runs are not finished; the table names them.")
    return left


def run_or_none(planned: PlannedRun) -> Record | None:
    """One run of a search; None when it failed."""
    with _bars() as bars:
        record = planned.record()
        return record if record and record["status"] == "finished" else _attempt(planned, bars)


def _attempt(planned: Planned, bars: Progress, overall: Any = None, number: int = 0) -> Record | None:
    try:
        if isinstance(planned, PlannedPart):
            return _run_part(planned, bars)
        assert isinstance(planned, PlannedRun)
        return _run(planned.task, bars, overall, number)
    except Claimed as elsewhere:
        bars.console.print(f"  left alone: {elsewhere}")
    except (RunError, RecordError, StorageError) as failure:
        bars.console.print(f"  failed: {failure}")
    return None


def _run_part(planned: PlannedPart, bars: Progress) -> Record:
    say = bars.console.print
    say(f"{describe(planned.asked)}  [dim]{planned.signature}[/dim]")
    task = bars.add_task("computing", total=None)
    try:
        record = run_part(planned.task, lambda line: bars.update(task, description=line))
    finally:
        bars.remove_task(task)
    say(f"  {record['happened']['seconds']:.0f} s  {planned.record_path}")
    return record


def _run(run: Run, bars: Progress, overall: Any = None, number: int = 0) -> Record:
    say = bars.console.print
    say(f"{describe(run.asked)}  [dim]{run.signature}[/dim]")
    for line in (ignored_line(run.config), _rate_line(run)):
        if line:
            say(f"  {line}")
    task = bars.add_task("loading", total=None)

    def advance(step: int, steps: int, values: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        bars.update(task, completed=step, total=steps, description=shown)
        if overall is not None:
            bars.update(overall, completed=number + step / steps)

    try:
        record = execute(run, report=advance, say=say)
    finally:
        bars.remove_task(task)
    _print_result(record, run.folder.record, say)
    return record


def _rate_line(run: Run) -> str | None:
    return f"learning rate {run.config.optim.lr:g}: {run.rate_source}" if run.rate_source else None


def _print_done(planned: Planned, say: Any) -> None:
    if isinstance(planned, PlannedPart):
        say(f"  done before: {describe(planned.asked)}  {planned.record_path}")
    else:
        _print_result(planned.record() or {}, planned.record_path, say, "done before: ")


def _print_result(record: Record, path: Path, say: Any, prefix: str = "") -> None:
    happened = record["happened"]
    metric = happened["primary_metric"]
    say(
        f"  {prefix}[bold]{metric} {happened['metrics'][metric]:.4f}[/bold] (n = {happened['evaluation_examples']})  "
        f"trainable {happened['trainable_parameters']:,} + head {happened['head_parameters']:,}  "
        f"{path}"
    )
    others = [f"{name} {value:.4f}" for name, value in happened["metrics"].items() if name != metric]
    if others:
        say(f"  beside it: {', '.join(others)}")
    if happened["baselines"]:
        baselines = ", ".join(f"{name} {value:.4f}" for name, value in happened["baselines"].items())
        say(f"  without a model: {baselines}")


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
