"""What happened in a run: its history, the time and memory of its steps, its answers; the record's `happened` block."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from surm.data import Answers
from surm.records.record import write_predictions
from surm.records.recorded import RunFolder
from surm.training.checkpoint import Progress
from surm.training.memory import measure_peak
from surm.training.setup import Setup


class Outcome:
    """Filled by the training loop; `progress` is what a resumed run takes over from the processes before it.

    Args:
        setup: of the run.
        device: where it computes.
    """

    def __init__(self, setup: Setup, device: torch.device) -> None:
        self.setup, self.device = setup, device
        self.progress = Progress()
        self.step_seconds: list[float] = []
        self._running: list[tuple[int, float]] = []  # steps that the device may not have ended, host's seconds of each
        self.peak_memory_bytes: int | None = None
        self.answers = Answers()

    @contextmanager
    def measured(self, step: int) -> Iterator[None]:
        """Around a step (from 1): measures its seconds and, of a process's second step, its memory."""
        begun = time.perf_counter()
        # By the second step the optimiser's state exists.
        second = len(self.step_seconds) + len(self._running) == 1
        with measure_peak(self.setup.module, self.setup.optimizer, self.device) if second else nullcontext() as peak:
            yield
        if peak is not None:
            self.peak_memory_bytes = peak.bytes
        self._running.append((step, time.perf_counter() - begun))
        if self.device.type == "cpu":
            self._ended(0.0, counts=not second)  # the memory's measurement takes longer than the step

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for the device: the steps since the last one have ended, and share the time evenly."""
        begun = time.perf_counter()
        yield
        self._ended(time.perf_counter() - begun)

    def _ended(self, waited: float, *, counts: bool = True) -> None:
        running, self._running = self._running, []
        if not running:
            return
        each = (waited + sum(seconds for _, seconds in running)) / len(running)
        self.step_seconds += [each] * len(running)
        for step, _ in running if counts else ():
            epoch = (step - 1) // self.setup.steps_per_epoch
            epochs = self.progress.epoch_seconds
            epochs += [[0.0, 0] for _ in range(epoch + 1 - len(epochs))]
            epochs[epoch] = [epochs[epoch][0] + each, epochs[epoch][1] + 1]

    def note(self, **values: Any) -> dict[str, Any]:
        """Add a row to the history, with the step and the epoch so far; returns it."""
        epoch = round(self.progress.step / self.setup.steps_per_epoch, 4)
        row = {"step": self.progress.step, "epoch": epoch, **values}
        self.progress.history.append(row)
        return row

    def evaluations(self) -> list[dict[str, Any]]:
        """The history's rows with an evaluation."""
        return [row for row in self.progress.history if "evaluation" in row]

    def last_metric(self) -> dict[str, float]:
        """The primary metric of the last evaluation, by its name, if there was one."""
        metric = self.setup.task.primary_metric
        evaluations = self.evaluations()
        return {metric: evaluations[-1]["evaluation"][metric]} if evaluations else {}

    def happened(self) -> dict[str, Any]:
        """The `happened` block of the record."""
        task, method, evaluations = self.setup.task, self.setup.method, self.evaluations()
        metric = task.primary_metric
        best = max(evaluations, key=lambda row: row["evaluation"][metric], default=None)
        trainable, head = method.count()
        peak = method.count_at_peak()
        return {
            "metrics": {k: v for k, v in evaluations[-1]["evaluation"].items() if k != "loss"} if evaluations else {},
            "primary_metric": metric,
            "best_epoch_metrics": best["evaluation"] | {"epoch": best["epoch"]} if best else {},
            "evaluation_examples": len(self.answers.labels) or self.setup.evaluation_examples,
            "baselines": task.baselines,
            "trainable_parameters": trainable,
            **({"peak_trainable_parameters": peak} if peak != trainable else {}),
            "head_parameters": head,
            "total_parameters": self.setup.total_parameters,
            "history": self.progress.history,
            "resumed_from_steps": self.progress.resumed_from_steps,
            "steps": self.progress.step,
            "seconds_per_step": statistics.median(self.step_seconds) if self.step_seconds else None,
            "seconds_per_step_by_epoch": [s / steps if steps else None for s, steps in self.progress.epoch_seconds],
            "seconds": self.progress.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def save_predictions(self, folder: RunFolder, *, losses: bool) -> None:
        """Write each evaluation example's label and prediction, and its loss."""
        answers = self.answers
        write_predictions(folder.predictions, answers.labels, answers.predictions, answers.losses if losses else None)
