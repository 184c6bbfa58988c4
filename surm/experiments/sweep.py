"""A sweep that several processes may share: the records and claims say what is left, whoever works on it."""

import time
from collections.abc import Callable, Sequence

from surm.experiments.plan import Planned

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
    try:
        return run.record_path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
