"""The command line of `scripts/benchmark_gpu.py`: goals on a GPU, measured part by part within a budget of minutes."""

import argparse
import gc
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import goals, gpu_table
from benchmarks.layers import Layer, layers, measure_layers
from benchmarks.modes import MODES
from benchmarks.result import FLOOR, LORA, Cell
from surm.records.provenance import where
from surm.records.storage import check_output, write_json
from surm.shared.errors import ConfigError
from surm.shared.options import Parser, count
from surm.shared.paths import RESULTS
from surm.shared.registry import look_up

PARTS = ("layers",)
DTYPES = {name: getattr(torch, name) for name in goals.DTYPES}
LEFT = 2.0  # seconds below which nothing more is begun
MOST = 6.0  # seconds of rounds of a cell, once there are three
TINY = {"widths": [32], "tokens": [64], "rounds": 1}


def options() -> argparse.ArgumentParser:
    parser = Parser()
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="what is measured")
    parser.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES), help="how the steps are run")
    parser.add_argument("--widths", type=count(65_536), nargs="+", default=list(goals.WIDTHS), help="of the layers")
    parser.add_argument("--tokens", type=count(10_000_000), nargs="+", default=list(goals.TOKENS))
    parser.add_argument("--dtypes", choices=goals.DTYPES, nargs="+", default=list(goals.DTYPES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"rows to measure beside {LORA}")
    parser.add_argument("--rounds", type=count(1000), default=9, help="that are counted")
    parser.add_argument("--minutes", type=count(600), default=8, help="after which nothing more is begun")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal of all of it on a CPU")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "benchmark" / "gpu.json", metavar="FILE", help="the numbers; table "
        "and picture stand beside it",
    )  # fmt: skip
    parser.add_argument(
        "--merge", type=Path, nargs="+", metavar="FILE", help="of stored results make one: a later cell counts"
    )
    return parser


@dataclass
class Report:
    """What is known so far; `store` writes it after every cell, so that a command that is cut off loses nothing."""

    path: Path
    more: dict[str, Any]
    cells: dict[str, Cell] = field(default_factory=dict)

    def add(self, cell: Cell) -> None:
        self.cells[cell.title] = cell

    def missing(self, title: str, reason: str) -> None:
        self.more.setdefault("missing", []).append([title, reason])

    def store(self) -> None:
        write_json(self.path, self.more | {"cells": [cell.to_json() for cell in self.cells.values()]})

    def draw(self) -> Iterator[str]:
        cells = list(self.cells.values())
        table, picture = self.path.with_suffix(".md"), self.path.with_suffix(".png")
        table.write_text(gpu_table.page(cells, self.more))
        if cells:
            gpu_table.draw(cells, picture)
        yield gpu_table.page(cells, self.more)
        yield f"Numbers: {self.path}; table: {table}; picture: {picture}"


@dataclass(frozen=True)
class Unit:
    """A cell to be measured: `measure` does it, and `title` names it where there was no time."""

    title: str
    measure: Callable[[], Cell]


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Measure and store what is asked for; yields what is to be printed, as it is known.

    Raises:
        ConfigError: one sentence, before anything is measured.
    """
    check_output(arguments.output.parent)
    if arguments.merge:
        return _merge(arguments.merge, arguments.output)
    if not (arguments.tiny or torch.cuda.is_available()):
        raise ConfigError("this machine has no GPU that CUDA sees; --tiny rehearses everything on the CPU.")
    if arguments.tiny:
        vars(arguments).update(TINY)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = time.monotonic() + 60 * arguments.minutes
    units = list(_layers(arguments, device, end))
    return _measure(units, arguments, device, end)


def _measure(units: Sequence[Unit], arguments: argparse.Namespace, device: torch.device, end: float) -> Iterator[str]:
    before = os.getloadavg()
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    report = Report(arguments.output, {"where": where(device.type, {}), "gpu": name, "asked": asked})
    _without_extension()
    gc.collect()
    gc.freeze()  # what is loaded by now stays: collecting between rounds is then quick
    for unit in units:
        if end - time.monotonic() < LEFT:
            report.missing(unit.title, "no time was left")
            continue
        begun = time.monotonic()
        try:
            report.add(unit.measure())
        except (ValueError, RuntimeError) as error:  # such as a reference that cannot do it, or no memory
            report.missing(unit.title, (str(error) or type(error).__name__).splitlines()[0])
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        torch._dynamo.reset()
        report.more["where"]["load"] = {"before": before, "after": os.getloadavg()}
        report.store()
        yield f"{unit.title}: {time.monotonic() - begun:.1f} s"
    gc.unfreeze()
    report.store()
    yield from report.draw()


def _without_extension() -> None:
    """Let BOFT do without the extension that PEFT compiles for it in every process, and tries again for every layer."""
    from peft.tuners.boft import layer

    layer.get_fbd_cuda = lambda: None


def _in_time(layer: Layer, end: float) -> Layer:
    """The layer, which is a row without numbers where its turn comes too late: compiling takes seconds a row."""

    def build(base: Any) -> Any:
        if time.monotonic() > end and layer.name != LORA:
            raise TimeoutError("no time was left")
        return layer.build(base)

    return replace(layer, build=build)


# --- layers -----------------------------------------------------------------------------------------------------------


def _layers(arguments: argparse.Namespace, device: torch.device, end: float) -> Iterator[Unit]:
    if "layers" not in arguments.part:
        return
    known = layers(boft=True)
    try:
        only = [look_up(known, name, "row").name for name in arguments.only or ()]
    except ValueError as error:
        raise ConfigError(f"--only: {error}") from None
    sizes = list(itertools.product(arguments.widths, arguments.tokens, arguments.dtypes))
    for modes in (("eager", "graph"), ("compiled",)):  # compiling takes minutes, and comes last
        for (width, tokens, dtype), mode in itertools.product(sizes, [m for m in modes if m in arguments.mode]):
            listed = goals.COMPILED if mode == "compiled" else goals.ROWS
            chosen = [_in_time(known[name], end) for name in listed if not only or name in (FLOOR, LORA, *only)]

            def measured(
                width: int = width, tokens: int = tokens, dtype: str = dtype, mode: str = mode, chosen: Any = chosen
            ) -> Cell:
                if mode == "graph" and device.type == "cpu":
                    raise ValueError("a graph needs CUDA")
                return measure_layers(
                    chosen,
                    width,
                    tokens,
                    DTYPES[dtype],
                    device,
                    rounds=arguments.rounds,
                    seconds=MOST,
                    mode=mode,
                    reference=LORA,
                )

            yield Unit(f"{width} x {width}, {tokens:,} tokens, {dtype}, {mode}", measured)


# --- results of several calls -----------------------------------------------------------------------------------------


def _merge(paths: Sequence[Path], output: Path) -> Iterator[str]:
    more: dict[str, Any] = {}
    cells: list[Cell] = []
    for path in paths:
        try:
            stored = json.loads(path.read_text())
            cells += [Cell.from_json(cell) for cell in stored.pop("cells")]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"--merge {path}: that is no result of this benchmark.") from None
        more |= stored
    report = Report(output, more)
    for cell in cells:
        report.add(cell)
    measured = {cell.title.replace(f", {cell.place['device']}", "") for cell in cells}
    more["missing"] = [entry for entry in more.get("missing", []) if entry[0] not in measured]
    report.store()
    return report.draw()
