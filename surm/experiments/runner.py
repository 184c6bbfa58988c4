"""Runs in this process, one after the other, with progress bars; what fails as expected stops no other."""

from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from surm.experiments.cli import console
from surm.experiments.plan import Planned
from surm.experiments.sweep import Launcher, Sweep
from surm.records.record import Record
from surm.shared.errors import Claimed, UserError
from surm.shared.processes import lone_launch


class ThisProcess(Launcher):
    """Runs one after the other, with a bar for each and one over all."""

    def launch(self, sweep: Sweep) -> None:
        with _bars() as bars:
            overall = Bar(bars, f"{len(sweep.runs)} runs", total=len(sweep.runs))
            for planned in sweep.open():
                if sweep.is_open(planned):  # other processes may have done it since
                    overall.done = len(sweep.runs) - len(sweep.unfinished())
                    attempt(planned, bars, overall)

    def show_finished(self, runs: Sequence[Planned], total: int) -> None:
        for planned in runs:
            if record := planned.record():
                for line in planned.result_of_before(record):
                    console.print(f"  {line}")


def run_one(planned: Planned) -> None:
    """A run that was asked for by itself: what goes wrong is an error, and a run of another process is not waited for.

    Raises:
        Claimed, RecordError, StorageError, RunError, Interrupted: as `Planned.execute` does.
    """
    if lone_launch():
        console.print("accelerate started one process: without GPUs, add --multi_gpu to have as many as asked for.")
    with _bars() as bars:
        _execute(planned, bars)


def attempt(planned: Planned, bars: Progress | None = None, overall: "Bar | None" = None) -> Record | None:
    """One of several runs: what is expected to go wrong is one sentence, and None.

    Raises:
        Interrupted: the process was asked to stop.
    """
    if bars is None:
        with _bars() as bars:
            return attempt(planned, bars)
    try:
        return _execute(planned, bars, overall)
    except Claimed as elsewhere:
        bars.console.print(f"  left alone: {elsewhere}")
    except UserError as failure:
        bars.console.print(f"  failed: {failure}")
    return None


def _execute(planned: Planned, bars: Progress, overall: "Bar | None" = None) -> Record:
    bar = Bar(bars, over=overall)
    bar.say(f"{planned.describe()}  {planned.signature}")
    for line in planned.notes():
        bar.say(f"  {line}")
    try:
        record = planned.execute(bar)
    finally:
        bar.remove()
    for line in planned.result(record):
        bar.say(f"  {line}")
    return record


class Bar:
    """One progress bar of several; a `Display`."""

    def __init__(self, bars: Progress, text: str = "", *, total: int | None = None, over: "Bar | None" = None) -> None:
        self._bars, self._over = bars, over
        self._task = bars.add_task(text, total=total)
        self.done = 0

    def say(self, line: str) -> None:
        self._bars.console.print(line)

    def show(self, text: str, step: int | None = None, steps: int | None = None) -> None:
        self._bars.update(self._task, description=text, completed=step, total=steps)
        if self._over is not None and step is not None and steps:
            self._bars.update(self._over._task, completed=self._over.done + step / steps)

    def remove(self) -> None:
        self._bars.remove_task(self._task)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
