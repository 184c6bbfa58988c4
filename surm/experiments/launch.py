"""Sweeps by Hydra's launchers: the jobs of `hydra.main -m`, on this machine or others, without those that are done.

The state of a sweep is its records and claims. So it does not matter where a job runs, whether the process that started
it still lives, or how many sweeps share the work.
"""

import os
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import joblib
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from surm.config.command import MULTIRUN, entry_of
from surm.config.compose import TRAIN, Entry, Member, register_schema, typed
from surm.config.machine import workers
from surm.config.run import Run
from surm.config.schema import RunConfig
from surm.experiments.cli import command, console
from surm.experiments.plan import Experiment, Planned, PlannedPart, PlannedRun, plan_study
from surm.experiments.runner import run_member, run_study
from surm.experiments.sweep import Sweep, stamp
from surm.shared.errors import LaunchError
from surm.shared.paths import CONFIG_DIRECTORY, REPOSITORY
from surm.studies.entry import APPROXIMATE, ApproximateConfig
from surm.training.device import own_gpu

register_schema()  # a worker loads its job from here, and Hydra then gives it this process's schemas

INTERRUPTED = 130  # exit code


# --- in the process that was asked for a sweep -----------------------------------------------------------------------


def sweep(arguments: Sequence[str], members: Sequence[Member[Any]], entry: Entry[Any]) -> int:
    """Run the members of a checked command, by the launcher that it names, until none is left that can be.

    Args:
        arguments: the script's command line.
        members: what `check_command` made of it.
        entry: the script.

    Returns:
        The number of runs that are not finished.
    """
    runs = [_runs(member.config) for member in members]
    shared = Sweep([run for several in runs for run in several])
    launcher = Launcher(arguments, entry)

    def jobs() -> list[list[str]]:
        """What members with something to do are told."""
        given: set[str] = set()  # several members are one run where no placement matters to a method
        found = []
        for member, several in zip(members, runs, strict=True):
            if new := {run.signature for run in several if shared.is_open(run)} - given:
                given |= new
                found.append(member.overrides)
        return found

    def launch() -> None:
        before: object = None
        while (told := jobs()) and (now := (told, [*map(_checkpoint_time, shared.runs)])) != before:
            before = now
            try:
                return launcher.launch(told)
            except LaunchError as failure:
                if launcher.name == "submitit_slurm":  # its other jobs are in the queue: not to be put there twice
                    raise
                print(f"Error: {failure}", file=sys.stderr)  # again, as long as each time brings the runs further
        return None

    before = len(shared.runs) - len(shared.unfinished())
    if before:
        console.print(f"{before} of {len(shared.runs)} runs are finished already.")
    try:
        left = shared.finish(launch, console.print)
    except LaunchError as failure:
        print(f"Error: {failure}", file=sys.stderr)
        left = len(shared.unfinished())
    if left:
        table = members[0].config.table.name
        listed = f"`make status ONLY={table}` lists them" if table else "the lines above name them"
        console.print(f"{left} of {len(shared.runs)} runs are not finished: {listed}.")
    return left


def _runs(config: RunConfig | ApproximateConfig) -> Sequence[Planned]:
    if isinstance(config, ApproximateConfig):
        return plan_study(config, config.table.name or config.study.name)
    return [PlannedRun(config.table.name or "", Run.of(config))]


def _checkpoint_time(run: Planned) -> int | None:
    try:
        return run.task.folder.checkpoint.stat().st_mtime_ns
    except FileNotFoundError:
        return None


class Launcher:
    """The launcher that a command names, as Hydra configures it; the first launch makes the folder of the sweep."""

    def __init__(self, arguments: Sequence[str], entry: Entry[Any]) -> None:
        self.overrides = [argument for argument in arguments if argument not in MULTIRUN]
        self.entry = entry
        self.job: TaskFunction = study_job if entry is APPROXIMATE else run_job
        self.started = 0

    @cached_property
    def config(self) -> DictConfig:
        """Composed once, as `hydra.main -m` does it, so that all launches of a call have one folder."""
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIG_DIRECTORY), job_name=Path(self.entry.script).stem, version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            self.loader = hydra.config_loader
            config = hydra.compose_config(
                self.entry.name, self.overrides, RunMode.MULTIRUN, with_log_configuration=True
            )
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "multirun.yaml")
        return config

    @property
    def name(self) -> str:
        return str(self.config.hydra.runtime.choices["hydra/launcher"])

    def launch(self, jobs: Sequence[list[str]]) -> None:
        """Start jobs, given by their overrides, and wait for them.

        What a job raises is shown; the others go on.

        Raises:
            LaunchError: a worker was killed, or the cluster takes no such job.
        """
        config, name = self.config, self.name
        at_once = config.hydra.sweeper.max_batch_size or len(jobs)
        if name == "submitit_local":
            at_once = config.hydra.sweeper.max_batch_size or workers()
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, joblib.cpu_count() // at_once)))
        if name != "basic":
            os.environ["TTY_COMPATIBLE"] = "0"  # several progress bars would write over each other
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        context = HydraContext(self.loader, Callbacks(config))
        plugin = Plugins.instance().instantiate_launcher(context, self.job, config)
        told = [
            [override for override in job if not override.lstrip("+~").startswith(("hydra.", "hydra/"))] for job in jobs
        ]
        for first in range(0, len(told), at_once):
            batch = told[first : first + at_once]
            try:
                ended = plugin.launch(batch, initial_job_idx=self.started)
            except Exception as error:  # each launcher has types of its own
                if name == "basic":
                    raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
                raise LaunchError(
                    f"hydra/launcher={name} stopped: {reason}; its settings are given as hydra.launcher.<name>=..., "
                    "see docs/launchers.md."
                ) from None
            self.started += len(batch)
            for job in ended:
                if job.status is JobStatus.FAILED:
                    traceback.print_exception(job._return_value)


def launch_experiments(
    experiments: Sequence[Experiment], launcher: str, seeds: int | None, settings: Sequence[str]
) -> int:
    """Start the command of each experiment that is not finished, one after the other, and show it.

    Returns:
        The number of runs that are not finished.
    """
    left = 0
    for experiment in experiments:
        shared = Sweep(experiment.runs)
        if shared.unfinished():
            told = _command(experiment, launcher, seeds, settings)
            console.print(f"\n[bold]python {shlex.join(told)}[/bold]")
            ended = subprocess.run([sys.executable, str(REPOSITORY / told[0]), *told[1:]])
            if ended.returncode == INTERRUPTED:
                sys.exit(INTERRUPTED)
        else:
            console.print(f"{experiment.name}: all {len(shared.runs)} runs are finished already.")
        left += len(shared.unfinished())
    return left


def _command(experiment: Experiment, launcher: str, seeds: int | None, settings: Sequence[str]) -> list[str]:
    """What a user types for one experiment with the same runs."""
    extra: list[str] = []
    if seeds:
        first, numbers = experiment.runs[0], ",".join(map(str, range(seeds)))
        if isinstance(first, PlannedRun):
            extra = [f"seed={numbers}"]
        else:
            assert isinstance(first, PlannedPart)
            extra = [f"study.draws={seeds}" if hasattr(first.config.study, "draws") else f"study.seeds=[{numbers}]"]
    script = entry_of(experiment.name).script
    return [script, "-m", f"experiment={experiment.name}", *extra, *settings, f"hydra/launcher={launcher}"]


# --- in the process where a job runs ---------------------------------------------------------------------------------


def run_job(config: DictConfig) -> None:
    """One run, as a job of a sweep."""
    with _back_into_the_queue():
        _job(config, TRAIN, _run_once)


def study_job(config: DictConfig) -> None:
    """All parts of one study, as a job of a sweep."""
    with _back_into_the_queue():
        _job(config, APPROXIMATE, run_study)


def _job(config: DictConfig, entry: Entry[Any], work: Callable[[Any], None]) -> None:
    """What goes wrong as expected is one sentence: a job that ends its process may end the others of the sweep."""
    hydra = HydraConfig.get()
    elsewhere = hydra.runtime.choices["hydra/launcher"] != "basic"
    if elsewhere:
        os.chdir(hydra.runtime.cwd)  # a cluster starts its workers anywhere
        own_gpu()
    try:
        with command():
            work(typed(config, entry))
    except SystemExit as ended:
        if ended.code == INTERRUPTED and not elsewhere:
            raise  # the sweep with it
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)


def _run_once(config: RunConfig) -> None:
    """A run that another process has tried since this sweep began is not tried again."""
    run = PlannedRun(config.table.name or "", Run.of(config))
    began = Path(HydraConfig.get().sweep.dir, "multirun.yaml").stat().st_mtime_ns
    if run.status() == "failed" and (stamp(run) or 0) > began:
        console.print(f"run {run.signature} has failed since this sweep began: left alone.")
    else:
        run_member(config)


@contextmanager
def _back_into_the_queue() -> Iterator[None]:
    """Before Submitit puts a job that nears its time limit back into the queue, the run writes its checkpoint.

    Submitit's handler of SIGUSR2 does so within whatever the run does at the moment. So the signal is taken as Ctrl-C,
    and handed on to Submitit once the run has stopped.
    """
    requeue = signal.getsignal(signal.SIGUSR2)
    if not callable(requeue):
        yield
        return
    asked = False

    def stop(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGUSR2, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, requeue)
        if asked:
            requeue(signal.SIGUSR2, None)
