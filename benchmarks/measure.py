"""Time and peak memory of training steps that do the same work in different ways."""

import gc
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.modes import count_kernels
from benchmarks.result import Cell, Quartiles, Row
from surm.shared.errors import ConfigError
from surm.training.memory import measure_added

Step = Callable[[], object]
"""One training step, which leaves no gradients behind: the next one starts with what this one started with."""

WARM_UP = 2  # rounds that are not counted
SHORTEST = 0.005  # seconds: shorter steps are timed several at once
MOST_REPEATS = 50


@dataclass(frozen=True)
class Candidate:
    """A way to do the step; without a `step`, `reason` says why it is not possible."""

    name: str
    kind: str
    trained: int = 0
    step: Step | None = None
    reason: str = ""


def candidate(name: str, kind: str, build: Callable[[], tuple[Step, int]]) -> Candidate:
    """The step and the number of trained parameters that `build` gives, or the reason why it or the step fails.

    Whatever a foreign method raises is its reason: one that cannot do a size is a row of the table like the others.
    """
    try:
        step, trained = build()
        step()
    except Exception as error:
        return Candidate(name, kind, reason=(str(error) or type(error).__name__).splitlines()[0])
    return Candidate(name, kind, trained, step)


def measure(
    place: Mapping[str, Any],
    candidates: Iterable[Candidate],
    reference: str,
    *,
    rounds: int,
    device: torch.device,
    seconds: float | None = None,
    memory: bool = True,
) -> Cell:
    """Time and peak memory of each candidate relative to the reference's.

    In each round every step runs once, in an order of the round's own; a time is divided by the reference's of the same
    round, so that what slows the machine down for a while slows both.

    Args:
        place: what tells the cell from others.
        candidates: those without a step become rows without numbers.
        reference: name of the candidate whose ratios are 1.
        rounds: beside two that are not counted.
        device: where the steps compute.
        seconds: start no further round after so long, once there are three.
        memory: measure the peaks too, and on a GPU count the kernels; not for a replayed graph, which holds its own
            memory and starts what it recorded.
    """
    candidates = list(candidates)
    steps = {each.name: each.step for each in candidates if each.step is not None}
    if reference not in steps:
        raise ValueError("".join(each.reason for each in candidates if each.name == reference))
    repeats = _repeats(steps[reference], device)
    times = _interleaved(steps, rounds, repeats, device, seconds)
    peaks = {name: peak_bytes(step, device) for name, step in steps.items()} if memory else {}
    kernels = {name: count_kernels(step) for name, step in steps.items()} if memory and device.type == "cuda" else {}
    rows = [
        Row(
            each.name,
            each.kind,
            each.trained,
            time=Quartiles.of(np.array(times[each.name]) / np.array(times[reference])) if each.step else None,
            memory=peaks[each.name] / peaks[reference] if each.name in peaks else None,
            reason=each.reason,
            kernels=kernels.get(each.name),
        )
        for each in candidates
    ]
    floor = float(np.median(times[reference])) / repeats
    return Cell(dict(place), reference, len(times[reference]), repeats, floor, peaks.get(reference, 0), rows)


def _interleaved(
    steps: Mapping[str, Step], rounds: int, repeats: int, device: torch.device, seconds: float | None
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = defaultdict(list)
    begun = time.perf_counter()
    for number in range(-WARM_UP, rounds):
        if seconds is not None and number >= 3 and time.perf_counter() - begun > seconds:
            break
        # A shuffled order: with a fixed one, even a rotating one, a step would inherit the caches of one and the same.
        with _no_collection():
            for name in random.Random(number + WARM_UP).sample(list(steps), len(steps)):
                spent = _clock(steps[name], repeats, device)
                if number >= 0:
                    times[name].append(spent)
    return times


def _repeats(step: Step, device: torch.device) -> int:
    """How many steps of this length are timed at once."""
    shortest = min(_clock(step, 1, device) for _ in range(3))
    return max(1, min(MOST_REPEATS, round(SHORTEST / shortest)))


def _clock(step: Step, repeats: int, device: torch.device) -> float:
    """Seconds of so many steps in a row."""
    if device.type == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        first.record()
        for _ in range(repeats):
            step()
        last.record()
        torch.cuda.synchronize(device)
        return float(first.elapsed_time(last)) / 1000
    begun = time.perf_counter()
    for _ in range(repeats):
        step()
    return time.perf_counter() - begun


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage before, not inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def peak_bytes(step: Step, device: torch.device) -> int:
    """Most bytes that a step holds at once beside those that were held before it, see `measure_added`."""
    with measure_added(device) as peak:
        step()
    if peak.bytes is None:
        raise ConfigError(f"device={device}: it does not tell its memory; choose cpu or cuda.")
    return peak.bytes
