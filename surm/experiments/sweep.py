"""A list of runs, done by a launcher until nothing is left; several processes may share the work.

The state of a sweep is its records and claims. So it does not matter where a run goes on, whether the process that
started it still lives, or how many sweeps share the work.
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from surm.experiments.cli import console
from surm.experiments.plan import Planned, TrainingRun
from surm.records.record import Record
from surm.records.storage import check_output
from surm.shared.errors import LaunchError

POLL = 2.0  # seconds between two looks at what others do


class Sweep:
    """The runs of one call, of which other processes, on this machine or others, may do some.

    A run that has failed is tried again by the next call; within one call, and for the calls that share the sweep with
    it, once.
    """

    def __init__(self, runs: Sequence[Planned]) -> None:
        self.runs = list({run.signature: run for run in runs}.values())
        self._tried_before = {run.signature: stamp(run) for run in self.runs}
        self._finished: set[str] = set()  # for good, so that their records are read once

    def open(self) -> list[Planned]:
        """The runs that this call may start: missing, interrupted, or failed before it began."""
        return [run for run in self.runs if self.is_open(run)]

    def is_open(self, run: Planned) -> bool:
        """Whether this call may start a run."""
        status = self.status(run)
        if status == "failed":
            return stamp(run) == self._tried_before[run.signature]
        return status in ("missing", "interrupted")

    def status(self, run: Planned) -> str:
        """`run.status()`."""
        if run.signature in self._finished:
            return "finished"
        status = run.status()
        if status == "finished":
            self._finished.add(run.signature)
        return status

    def held(self) -> list[Planned]:
        """The runs that other processes work on now."""
        return [run for run in self.runs if self.status(run) == "running"]

    def unfinished(self) -> list[Planned]:
        """The runs without a finished record."""
        return [run for run in self.runs if self.status(run) != "finished"]

    def finish(self, launch: Callable[[], None], say: Callable[[str], None] = print) -> int:
        """Launch until nothing is left that a launch could change, and wait for the runs of others.

        Where another process dies, its runs become open, and are launched here.

        Args:
            launch: starts the open runs, and returns when none of them goes on.
            say: prints one line.

        Returns:
            The number of runs without a finished record.
        """
        while left := self.open():
            launch()
            self._wait_for_others(say)
            if self.open() == left:  # a launcher that starts nothing would go on for ever
                break
        self._wait_for_others(say)
        return len(self.unfinished())

    def _wait_for_others(self, say: Callable[[str], None]) -> None:
        told: set[str] = set()
        while held := self.held():
            if self.open():
                return
            for run in held:
                holder = run.holder()
                if holder and run.signature not in told:
                    told.add(run.signature)
                    say(f"waiting for run {run.signature}: {holder} works on it.")
            time.sleep(POLL)


def stamp(run: Planned) -> int | None:
    """When a run's record was written last, in nanoseconds; None without a record."""
    return modified(run.folder.record)


def modified(path: Path) -> int | None:
    """When a file was written last, in nanoseconds; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


class Launcher(ABC):
    """Where the runs of a sweep go on."""

    @abstractmethod
    def launch(self, sweep: Sweep) -> None:
        """Start the open runs of a sweep, and return when none of them goes on.

        Raises:
            LaunchError: nothing more can be started.
        """

    def show_finished(self, runs: Sequence[Planned], total: int) -> None:
        """Say which runs were finished before."""
        console.print(f"{len(runs)} of {total} runs are finished already.")


def run_all(runs: Sequence[Planned], launcher: Launcher) -> int:
    """Run what is missing; a failed run does not stop the others.

    Other processes may share the work: what they have claimed is waited for.

    Returns:
        The number of runs that are not finished.
    """
    sweep = Sweep(runs)
    for folder in {run.output_dir for run in sweep.runs}:
        check_output(folder)
    if finished := [run for run in sweep.runs if sweep.status(run) == "finished"]:
        launcher.show_finished(finished, len(sweep.runs))
    try:
        left = sweep.finish(lambda: launcher.launch(sweep), console.print)
    except LaunchError as failure:
        print(f"Error: {failure}", file=sys.stderr)
        left = len(sweep.unfinished())
    if left:
        tables = {run.table.name for run in sweep.unfinished()}
        table = tables.pop() if len(tables) == 1 else None
        listed = f"`make status ONLY={table}` lists them" if table else "the lines above name them"
        console.print(f"{left} of {len(sweep.runs)} runs are not finished: {listed}.")
    return left


def run_shared(runs: Sequence[TrainingRun], launcher: Launcher) -> list[Record | None]:
    """Run what is missing, which other processes may share; the records of all, None for a run that failed."""
    sweep = Sweep(runs)
    for folder in {run.output_dir for run in sweep.runs}:
        check_output(folder)
    sweep.finish(lambda: launcher.launch(sweep), console.print)
    return [run.finished_record() for run in runs]
