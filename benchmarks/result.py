"""What a benchmark found, and what it was to find."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

FLOOR = "frozen layer"
RIVALS = ("C3A", "LoKr")  # how the names begin of what ours are to be twice as fast as
LORA = "LoRA r=1"
PLAIN = "plain dense: "  # the structure's name follows


class Quartiles(NamedTuple):
    """Median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        return cls(*(float(value) for value in np.quantile(values, (0.5, 0.25, 0.75))))


class Kernels(NamedTuple):
    """What a step starts on a GPU: how long its kernels compute, and how many there are."""

    seconds: float
    launches: int


@dataclass(frozen=True)
class Row:
    """One variant: its ratios to the reference of the cell, or the reason why there are none.

    `kind` is "floor", "full", "peft", "paper" (its formulas as written), "plain" (a dense matrix) or "ours".
    `kernels` are counted on a GPU alone.
    """

    name: str
    kind: str
    trained: int
    time: Quartiles | None = None
    memory: float | None = None
    reason: str = ""
    kernels: Kernels | None = None


@dataclass(frozen=True)
class Cell:
    """All variants at one size, measured side by side.

    `place` says at which: width, tokens and dtype of a layer, or model, dataset and batch size of a whole step; on a
    GPU also the mode, "eager", "graph" (a CUDA graph replayed) or "compiled" (by `torch.compile`).
    `floor_seconds` and `floor_bytes` are those of one step of the reference, for information.
    """

    place: dict[str, Any]
    reference: str
    rounds: int
    repeats: int
    floor_seconds: float
    floor_bytes: int
    rows: list[Row]

    @property
    def title(self) -> str:
        more = "".join(f", {self.place[key]}" for key in ("precision", "mode") if key in self.place)
        if "model" in self.place:
            return "{model} on {dataset}, {batch_size} examples a step, {device}".format(**self.place) + more
        return "{width} x {width}, {tokens:,} tokens, {dtype}, {device}".format(**self.place) + more

    @property
    def measured(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows if row.time is not None}

    def to_json(self) -> dict[str, Any]:
        rows = [
            asdict(row) | {"time": row.time and row.time._asdict(), "kernels": row.kernels and row.kernels._asdict()}
            for row in self.rows
        ]
        return asdict(self) | {"rows": rows}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        rows = [
            Row(
                **{
                    **row,
                    "time": row["time"] and Quartiles(**row["time"]),
                    "kernels": Kernels(**row["kernels"]) if row.get("kernels") else None,
                }
            )
            for row in stored["rows"]
        ]
        return cls(**{**stored, "rows": rows})


# --- what was to be reached -------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """Highest ratios allowed: of one layer to the frozen layer, and of a whole step to LoRA r=1."""

    time: float
    memory: float
    step: float


TARGETS = {
    "circulant": Target(1.12, 1.35, 1.02),
    "skew-circulant": Target(1.15, 1.35, 1.02),
    "Kronecker": Target(1.15, 1.35, 1.02),
    "one-factor Toeplitz": Target(1.20, 1.40, 1.03),
    "symmetric one-factor Toeplitz": Target(1.20, 1.40, 1.03),
    "symmetric Toeplitz pair": Target(1.70, 1.80, 1.15),
    "ldr 1 term": Target(1.70, 1.80, 1.15),
    "ldr 4 terms": Target(2.10, 2.20, 1.25),
}
STEP_MEMORY = 1.01  # of LoRA's, for every structure
TARGET_PLACE = {"width": 768, "tokens": 2048, "dtype": "float32"}
BELOW_LORA = ("circulant",)  # also no slower than LoRA r=1
TWICE_AS_FAST = ("circulant", "Kronecker", "one-factor Toeplitz")


def limits(cell: Cell, row: Row) -> tuple[float, float] | None:
    """Highest ratios of time and memory that the row may have; None where there is no target."""
    target = TARGETS.get(row.name) if row.kind == "ours" else None
    if target is None:
        return None
    if "model" in cell.place:
        return (target.step, STEP_MEMORY) if cell.place["model"].startswith("builtin_") else None
    if any(cell.place[key] != value for key, value in TARGET_PLACE.items()):
        return None
    lora = cell.measured.get(LORA)
    below = lora.time.median if row.name in BELOW_LORA and lora is not None and lora.time is not None else target.time
    return min(target.time, below), target.memory


def judge(cell: Cell, row: Row) -> str:
    """Whether the row's medians reach the target, by how much they miss it; nothing where there is no target."""
    allowed = limits(cell, row)
    if allowed is None or row.time is None or row.memory is None:
        return ""
    found = zip(("time", "memory"), (row.time.median, row.memory), allowed, strict=True)
    missed = [f"{name} missed by {100 * (value / most - 1):.1f} %" for name, value, most in found if value > most]
    return ", ".join(missed) or "met"


def against_rivals(cell: Cell) -> Iterator[str]:
    """How much faster than the faster of C3A and LoKr the structures are that are to be twice as fast."""
    rivals = [row.time.median for row in cell.measured.values() if row.time and row.name.startswith(RIVALS)]
    for name in TWICE_AS_FAST:
        row = cell.measured.get(name)
        if rivals and row is not None and row.time is not None and limits(cell, row) is not None:
            factor = min(rivals) / row.time.median
            yield f"{name}: {factor:.2f} times as fast as the faster of C3A and LoKr, {_reached(factor, 2)}."


def _reached(value: float, least: float) -> str:
    return f"at least {least} is the target: {'met' if value >= least else 'missed'}"


def worse_than_plain(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Every row of ours whose lower quartile of time lies above the upper quartile of the plain dense way.

    That is the row's own dense matrix where it was measured, else the circulant's, the cheapest to form.
    """
    found = []
    for cell in cells:
        measured = cell.measured
        for row in measured.values():
            plain = measured.get(PLAIN + row.name) or measured.get(PLAIN + "circulant")
            if row.kind == "ours" and row.time and plain is not None and plain.time and row.time.low > plain.time.high:
                times = {"time": row.time._asdict(), "plain_time": plain.time._asdict()}
                found.append({"place": cell.place, "row": row.name, "plain": plain.name, **times})
    return found
