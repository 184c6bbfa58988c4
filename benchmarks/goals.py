"""What the structures are to reach on a GPU beside LoRA of rank 1 and PEFT's other methods, and what they reach."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.result import FLOOR, LORA, Cell, Row

SINGLE = ("circulant", "Kronecker", "one-factor Toeplitz")
DOUBLE = ("symmetric Toeplitz pair", "ldr 1 term")
C3A = "C3A one block"
RIVALS = (C3A, "LoKr full factors", "OFT block 32", "BOFT block 32", "FourierFT n=1000")
ROWS = (FLOOR, LORA, *RIVALS, *SINGLE, *DOUBLE)
COMPILED = (FLOOR, LORA, *SINGLE, *DOUBLE)  # PEFT's others break the graph, and compile for minutes

WIDTHS = (384, 768, 1024, 4096)
TOKENS = (2048, 16_384)
DTYPES = ("bfloat16", "float32")
EVERYDAY = 768  # of the widths, the one that is measured first
LARGEST = {"width": 4096, "tokens": 16_384, "dtype": "bfloat16", "mode": "graph"}
STEPS = (("builtin_vit", 32), ("builtin_vit", 128), ("builtin_bert", 32))
PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Goal:
    """A number that no row may exceed in any cell.

    limits: of single matrices, and of Toeplitz pairs and ldr; None where there is no goal for these.
    value: of a row of ours in a cell; None where something it needs was not measured.
    applies: whether the goal is about this cell.
    cells: how many there are of these.
    """

    name: str
    limits: tuple[float, float | None]
    value: Callable[[Cell, Row], float | None]
    applies: Callable[[Cell], bool]
    cells: int


@dataclass(frozen=True)
class Finding:
    """What became of a goal for some of the structures: the worst value with its place."""

    goal: str
    rows: str
    limit: float
    worst: float | None
    where: str
    reached: int
    measured: int
    wanted: int

    @property
    def verdict(self) -> str:
        if not self.measured:
            return "not measured"
        some = "" if self.measured == self.wanted else f" ({self.wanted - self.measured} not measured)"
        missed = self.measured - self.reached
        return (f"missed in {missed} of {self.measured}" if missed else f"met in {self.measured}") + some


def _to(other: str) -> Callable[[Cell, Row], float | None]:
    """The row's time relative to the other's in the same rounds."""

    def value(cell: Cell, row: Row) -> float | None:
        time = cell.measured[other].time if other in cell.measured else None
        return None if row.time is None or time is None else row.time.median / time.median

    return value


def _memory(cell: Cell, row: Row) -> float | None:
    lora = cell.measured.get(LORA)
    return None if row.memory is None or lora is None or not lora.memory else row.memory / lora.memory


def _launches(cell: Cell, row: Row) -> float | None:
    floor = cell.measured.get(FLOOR)
    return None if row.kernels is None or floor is None or floor.kernels is None else (
        row.kernels.launches - floor.kernels.launches
    )  # fmt: skip


def _layers(*modes: str) -> Callable[[Cell], bool]:
    return lambda cell: "width" in cell.place and cell.place.get("mode") in modes


def _steps(*modes: str) -> Callable[[Cell], bool]:
    return lambda cell: "model" in cell.place and cell.place.get("mode") in modes


PLACES = len(WIDTHS) * len(TOKENS) * len(DTYPES)
STEP_PLACES = len(STEPS) * len(PRECISIONS)
GOALS = (
    Goal("a layer, eager, to LoRA r=1", (1.02, 1.5), _to(LORA), _layers("eager"), PLACES),
    Goal("kernels beyond the frozen layer's", (10, 38), _launches, _layers("eager"), PLACES),
    Goal("a layer, graph replayed, to LoRA r=1", (1.02, 1.3), _to(LORA), _layers("graph"), PLACES),
    Goal("a layer, compiled, to LoRA r=1", (1.02, 1.3), _to(LORA), _layers("compiled"), PLACES),
    Goal(
        "4096, 16,384 tokens, bfloat16, graph replayed, to the frozen layer",
        (1.6, 2.2),
        _to(FLOOR),
        lambda cell: cell.place.items() >= LARGEST.items(),
        1,
    ),
    Goal("peak memory of a layer, to LoRA r=1", (1.0, 1.0), _memory, _layers("eager"), PLACES),
    *(
        Goal(f"a layer, {words}, to {rival}", (1.0, 1.0 if rival == C3A else None), _to(rival), _layers(mode), PLACES)
        for mode, words in (("eager", "eager"), ("graph", "graph replayed"))
        for rival in RIVALS
    ),
    Goal("a whole step, eager, to LoRA r=1", (1.02, 1.2), _to(LORA), _steps("eager"), STEP_PLACES),
    Goal("a whole step, compiled, to LoRA r=1", (1.02, 1.2), _to(LORA), _steps("compiled"), STEP_PLACES),
    Goal("peak memory of a whole step, to LoRA r=1", (1.0, 1.0), _memory, _steps("eager"), STEP_PLACES),
)


RUNS = "runs of scripts/train.py"
STEP_TO_BARE, SECONDS_TO_RECORD = 1.15, 20.0
TIMES_THE_RUNS = 2.5  # an hour, of four at once


def findings(cells: Iterable[Cell], more: Mapping[str, Any] | None = None) -> Iterator[Finding]:
    """Each goal for single matrices, and for pairs and ldr; then those of whole runs.

    more: what `benchmarks.gpu` stores beside the cells.
    """
    cells = list(cells)
    for goal in GOALS:
        for names, words, limit in zip((SINGLE, DOUBLE), ("single", "pair, ldr"), goal.limits, strict=True):
            found = [
                (value, f"{name}, {cell.title}")
                for cell in cells
                if goal.applies(cell)
                for name in names
                if name in cell.measured and (value := goal.value(cell, cell.measured[name])) is not None
            ]
            if limit is not None:
                yield _finding(goal.name, words, limit, found, goal.cells * len(names))
    train, four = (more or {}).get("train") or [], (more or {}).get("four")
    for name, limit, key in (
        ("a step, to the bare step", STEP_TO_BARE, "ratio"),
        ("seconds from the first step to the record", SECONDS_TO_RECORD, "whole"),
    ):
        found = [(run[key], f"{run['run']}, precision {run['precision']}") for run in train]
        yield _finding(f"{RUNS}: {name}", "single", limit, found, len(PRECISIONS))
    at_once = [(1 / four["times_the_runs_an_hour"], "four seeds")] if four else []
    yield _finding(f"{RUNS}: four at once, to one after the other", "single", 1 / TIMES_THE_RUNS, at_once, 1)


def _finding(goal: str, rows: str, limit: float, found: list[tuple[float, str]], wanted: int) -> Finding:
    worst, where = max(found, default=(None, ""))
    return Finding(goal, rows, limit, worst, where, sum(value <= limit for value, _ in found), len(found), wanted)
