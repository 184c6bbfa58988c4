"""Sweeps by Hydra's launchers: runs as jobs on this machine or others, in processes that Hydra starts.

Hydra offers no function for this: its own way is the sweeper of `hydra.main -m`, which starts every job of a command
line, also those that are done. So the launcher is taken from Hydra's internals, composed as its sweeper does, and given
the jobs that are left. `tests/experiments/test_launchers.py` runs every launcher that is installed.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import joblib
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from surm.config.compose import ENTRIES, Entry, Member, is_hydras, one_sentence, register_schema, typed
from surm.config.machine import workers
from surm.experiments.cli import command, console
from surm.experiments.plan import Planned, plan
from surm.experiments.runner import ThisProcess, attempt
from surm.experiments.sweep import Launcher, Sweep, modified, stamp
from surm.shared.errors import ConfigError, LaunchError, first_line
from surm.shared.paths import CONFIG_DIRECTORY
from surm.training.device import own_gpu

# A worker imports this file to find its job, `run_job`. Hydra then gives it the schemas of the process that started it,
# but resolvers such as ${surm.workers:} belong to OmegaConf and do not travel.
register_schema()


def launcher_of(settings: Sequence[str], entry: Entry[Any]) -> Launcher:
    """The launcher that settings name, of which those of Hydra's own count: this process, if they name none.

    Raises:
        ConfigError: settings of a launcher that it does not have, or without a launcher.
    """
    own = [setting for setting in settings if is_hydras(setting)]
    launcher = HydraLauncher(own)
    if launcher.name(entry) != "basic":
        return launcher
    if idle := [setting for setting in own if not setting.startswith("hydra/launcher=")]:
        raise ConfigError(f"{idle[0]}: settings of Hydra's are for its launchers; name one, as hydra/launcher=joblib.")
    return ThisProcess()


# --- in the process that was asked for a sweep ------------------------------------------------------------------------


class HydraLauncher(Launcher):
    """A launcher of Hydra's, as some settings of Hydra's own configure it."""

    def __init__(self, settings: Sequence[str]) -> None:
        self.settings = list(settings)
        self._composed: dict[str, tuple[ConfigLoader, DictConfig]] = {}
        self._started = 0  # Hydra numbers the jobs of a folder

    def name(self, entry: Entry[Any]) -> str:
        return str(self._compose(entry)[1].hydra.runtime.choices["hydra/launcher"])

    def launch(self, sweep: Sweep) -> None:
        # One experiment after the other: a cluster limits how many jobs it takes at once.
        for _, runs in groupby(sweep.open(), lambda run: (run.entry.name, run.table.name)):
            self._launch(sweep, list(runs))

    def _launch(self, sweep: Sweep, runs: Sequence[Planned]) -> None:
        """Start runs, and start what is left of them again as long as each time brings them further."""
        entry, before = runs[0].entry, None
        while left := [run for run in runs if sweep.is_open(run)]:
            state = [(run.signature, modified(run.folder.checkpoint)) for run in left]
            if state == before:
                break
            before = state
            try:
                self._start(list(dict.fromkeys(run.overrides for run in left)), entry)  # a study's parts are one job
                break
            except LaunchError as failure:
                if self.name(entry) == "submitit_slurm":  # its other jobs are in the queue: not to be put there twice
                    raise
                print(f"Error: {failure}", file=sys.stderr)

    def _start(self, jobs: Sequence[Sequence[str]], entry: Entry[Any]) -> None:
        """Start jobs, given by their overrides, and wait for them.

        What a job raises is shown; the others go on.

        Raises:
            LaunchError: a worker was killed, or the cluster takes no such job.
        """
        (loader, config), name = self._compose(entry), self.name(entry)
        self._make_folder(config)
        at_once = config.hydra.sweeper.max_batch_size or len(jobs)
        if name == "submitit_local":  # starts all jobs that it is given at once, and divides no cores among them
            at_once = config.hydra.sweeper.max_batch_size or workers()
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, joblib.cpu_count() // at_once)))
        # Workers inherit these. Several progress bars would write over each other; Ray would report its use, and leave
        # out lines that two runs both print.
        os.environ["TTY_COMPATIBLE"] = "0"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        plugin = Plugins.instance().instantiate_launcher(HydraContext(loader, Callbacks(config)), run_job, config)
        for first in range(0, len(jobs), at_once):
            batch = [list(job) for job in jobs[first : first + at_once]]
            try:
                ended = plugin.launch(batch, initial_job_idx=self._started)
            except Exception as error:  # each launcher has types of its own
                raise LaunchError(
                    f"hydra/launcher={name} stopped: {first_line(error)}; its settings are given as "
                    "hydra.launcher.<name>=..., see docs/launchers.md."
                ) from None
            self._started += len(batch)
            for job in ended:
                if job.status is JobStatus.FAILED:
                    traceback.print_exception(job._return_value)  # `return_value` would raise it

    def _compose(self, entry: Entry[Any]) -> tuple[ConfigLoader, DictConfig]:
        """What `hydra.main -m` composes for its sweeper; once, so that all jobs of a call have one folder."""
        if entry.name not in self._composed:
            register_schema()
            GlobalHydra.instance().clear()
            job = Path(entry.script).stem
            with (
                one_sentence(self.settings),
                initialize_config_dir(str(CONFIG_DIRECTORY), job_name=job, version_base="1.3"),
            ):
                hydra = GlobalHydra.instance().hydra
                assert hydra is not None
                config = hydra.compose_config(entry.name, self.settings, RunMode.MULTIRUN)
                self._composed[entry.name] = hydra.config_loader, config
        return self._composed[entry.name]

    def _make_folder(self, config: DictConfig) -> None:
        """The folder of the sweep; the time of `multirun.yaml` tells its jobs when the sweep began."""
        if not (file := Path(config.hydra.sweep.dir, "multirun.yaml")).exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(config, file)


# --- in the process where a job goes on -------------------------------------------------------------------------------


def run_job(config: DictConfig) -> None:
    """One job: a run, or all parts of a study, as far as they are not done.

    Hydra has composed the configuration here, from the job's overrides: that is all that a launcher hands over.
    """
    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)  # a cluster starts its workers anywhere
    own_gpu()
    entry = next(entry for entry in ENTRIES if entry.name == hydra.job.config_name)
    began = Path(hydra.sweep.dir, "multirun.yaml").stat().st_mtime_ns
    with _back_into_the_queue():
        try:
            with command():
                for run in plan([Member([], typed(config, entry))], entry):
                    _run_open(run, began)
        except SystemExit as ended:  # a job that ends its process may end the others of the sweep
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)


def _run_open(run: Planned, began: int) -> None:
    """A run that another process has done, or tried in vain, since the sweep began is not started again."""
    status = run.status()
    if status == "failed" and (stamp(run) or 0) > began:
        console.print(f"run {run.signature} has failed since this sweep began: left alone.")
    elif status != "finished":
        attempt(run)


@contextmanager
def _back_into_the_queue() -> Iterator[None]:
    """Before Submitit puts a job that nears its time limit back into the queue, the run writes its checkpoint.

    Submitit's handler of SIGUSR2 does so within whatever the run does at the moment. So the signal is taken as Ctrl-C,
    upon which a run stops after its step, and handed on to Submitit once the run has stopped.
    """
    requeue = signal.getsignal(signal.SIGUSR2)
    if not callable(requeue):  # no job of Submitit's on a cluster
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
