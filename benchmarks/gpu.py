"""The command line of `scripts/benchmark_gpu.py`: goals on a GPU, measured part by part within a budget of minutes."""

import argparse
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks import goals, gpu_table
from benchmarks.layers import Layer, layers, measure_layers
from benchmarks.modes import MODES
from benchmarks.result import FLOOR, LORA, Cell
from benchmarks.runs import measure_four, measure_run
from benchmarks.steps import METHODS, measure_steps
from surm.records.provenance import where
from surm.records.storage import check_output, write_json
from surm.shared.errors import ConfigError
from surm.shared.options import Parser, count
from surm.shared.paths import REPOSITORY, RESULTS
from surm.shared.registry import look_up

PARTS = ("tests", "layers", "steps", "train")
DTYPES = {name: getattr(torch, name) for name in goals.DTYPES}
LEFT = 2.0  # seconds below which nothing more is begun
MOST = 6.0  # seconds of rounds of a cell, once there are three
TINY: dict[str, Any] = {"widths": [32], "tokens": [64], "dtypes": ["float32"], "rounds": 1, "only": ["circulant"]}
TINY_STEPS = (("tiny_vit", 4), ("tiny_bert", 4))
PIXELS = 98  # of the vision model's images
# Such as a reference that cannot do it, no memory, or a process that fails: the rest goes on.
EXPECTED = (ConfigError, ValueError, RuntimeError, OSError, subprocess.SubprocessError)
TESTS = {  # in `more`: what pytest is given
    "tests": ["tests/gpu"],
    "kernel_tests": ["tests/structures/gpu", "-m", "not slow"],
}
TRAIN, FOUR = "scripts/train.py, {}", "four runs at once"  # titles
TEST_SECONDS = 150.0  # at most, of each where something else is measured, too
REASON_LINES = 8  # that are kept of why a test failed, the last ones


def options() -> argparse.ArgumentParser:
    parser = Parser()
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="what is measured")
    parser.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES), help="how the steps are run")
    parser.add_argument("--widths", type=count(65_536), nargs="+", default=list(goals.WIDTHS), help="of the layers")
    parser.add_argument("--tokens", type=count(10_000_000), nargs="+", default=list(goals.TOKENS))
    parser.add_argument("--dtypes", choices=goals.DTYPES, nargs="+", default=list(goals.DTYPES))
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of the whole steps")
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
    """Something to be measured and added to the report; `title` names it where there was no time."""

    title: str
    measure: Callable[[Report], None]


Units = Iterator[tuple[int, Unit]]
"""With the turn in which each is measured. Every goal has a cell before the rest follows; what compiles comes late."""


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
        vars(arguments).update(TINY | {"only": arguments.only or TINY["only"]})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = time.monotonic() + 60 * arguments.minutes
    listed = itertools.chain(
        _tests(arguments, device, end),
        _layers(arguments, device, end),
        _steps(arguments, device, end),
        _runs(arguments, device),
    )
    units = [unit for _, unit in sorted(listed, key=lambda item: item[0])]
    return _measure(units, arguments, device, end)


def _measure(units: Sequence[Unit], arguments: argparse.Namespace, device: torch.device, end: float) -> Iterator[str]:
    before = os.getloadavg()
    asked = {key: value for key, value in vars(arguments).items() if not isinstance(value, Path)}
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
            unit.measure(report)
        except (
            ConfigError,
            ValueError,
            RuntimeError,
            OSError,
            subprocess.SubprocessError,
        ) as error:  # such as a reference that cannot do it, or no memory
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
    for name, reason in report.more.get("failed_tests", []):  # last, where nothing scrolls them away
        yield f"failed: {name}\n{reason}"


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


def _layers(arguments: argparse.Namespace, device: torch.device, end: float) -> Units:
    if "layers" not in arguments.part:
        return
    known = layers(boft=True)
    try:
        only = [look_up(known, name, "row").name for name in arguments.only or ()]
    except ValueError as error:
        raise ConfigError(f"--only: {error}") from None
    sizes = list(itertools.product(arguments.widths, arguments.tokens, arguments.dtypes))
    for modes in (("eager", "graph"), ("compiled",)):
        for (width, tokens, dtype), mode in itertools.product(sizes, [m for m in modes if m in arguments.mode]):
            listed = goals.COMPILED if mode == "compiled" else goals.ROWS
            chosen = [_in_time(known[name], end) for name in listed if not only or name in (FLOOR, LORA, *only)]

            def measured(
                report: Report,
                width: int = width,
                tokens: int = tokens,
                dtype: str = dtype,
                mode: str = mode,
                chosen: Any = chosen,
            ) -> None:
                if mode == "graph" and device.type == "cpu":
                    raise ValueError("a graph needs CUDA")
                report.add(
                    measure_layers(
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
                )

            place = {"width": width, "tokens": tokens, "dtype": dtype, "mode": mode}
            first = width == goals.EVERYDAY or place == goals.LARGEST
            turn = (5 if first else 7) if mode == "compiled" else (1 if first else 6)
            yield turn, Unit(f"{width} x {width}, {tokens:,} tokens, {dtype}, {device.type}, {mode}", measured)


# --- whole steps ------------------------------------------------------------------------------------------------------


def _steps(arguments: argparse.Namespace, device: torch.device, end: float) -> Units:
    if "steps" not in arguments.part:
        return
    places = TINY_STEPS if arguments.tiny else goals.STEPS
    names = [name for name in goals.COMPILED if name in METHODS and (not arguments.only or name in arguments.only)]
    for turn, mode in ((2, "eager"), (4, "compiled")):
        for (model, batch), precision in itertools.product(places, goals.PRECISIONS if mode in arguments.mode else ()):
            if arguments.models and model not in arguments.models:
                continue

            def measured(
                report: Report, model: str = model, batch: int = batch, precision: str = precision, mode: str = mode
            ) -> None:
                report.add(
                    measure_steps(
                        model,
                        batch,
                        device,
                        rounds=arguments.rounds,
                        only=names,
                        image_size=None if arguments.tiny else PIXELS,
                        precision=precision,
                        mode=mode,
                        seconds=MOST,
                        end=end,
                    )
                )

            title = f"{model}, {batch} examples a step, {device.type}, {precision}, {mode}"
            yield turn, Unit(title, measured)


# --- tests and runs, each in processes of its own ---------------------------------------------------------------------


def _tests(arguments: argparse.Namespace, device: torch.device, end: float) -> Units:
    if "tests" in arguments.part:
        longest = math.inf if arguments.part == ["tests"] else TEST_SECONDS
        for turn, (key, asked) in zip((0, 8), TESTS.items(), strict=True):

            def measured(report: Report, key: str = key) -> None:
                run_tests(report, key, min(end, time.monotonic() + longest))

            yield turn, Unit(asked[0], measured)


def run_tests(report: Report, key: str, end: float) -> None:
    """Number of passed, failed and skipped tests, and which failed and why, by pytest's own report.

    Raises:
        ValueError: they did not end in time.
    """
    left = max(LEFT, end - time.monotonic())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tests.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={file}", *TESTS[key]]
        try:
            subprocess.run(command, cwd=REPOSITORY, timeout=left, capture_output=True, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"they did not end within {left:.0f} seconds") from None
        if not file.exists():
            raise ValueError("pytest did not start")
        [suite] = ElementTree.parse(file).getroot().iter("testsuite")
    number = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    bad = number["failures"] + number["errors"]
    report.more[key] = {
        "passed": number["tests"] - bad - number["skipped"],
        "failed": bad,
        "skipped": number["skipped"],
    }
    report.more.setdefault("failed_tests", []).extend(_failures(suite))


def _failures(suite: ElementTree.Element) -> Iterator[list[str]]:
    """Name of each failed test with its parameters, and the end of its traceback without the machine's folders."""
    for case in suite.iter("testcase"):
        for found in (*case.iter("failure"), *case.iter("error")):
            lines = (found.text or found.get("message") or "").strip().splitlines()[-REASON_LINES:]
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            yield [name, "\n".join(lines).replace(f"{REPOSITORY}/", "")]


def _runs(arguments: argparse.Namespace, device: torch.device) -> Units:
    if "train" not in arguments.part:
        return
    for precision in goals.PRECISIONS:

        def measured(report: Report, precision: str = precision) -> None:
            measure_run(report.more, arguments.tiny, device, precision)

        yield 3, Unit(TRAIN.format(precision), measured)
    yield 3, Unit(FOUR, lambda report: measure_four(report.more, arguments.tiny, device))


# --- results of several calls -----------------------------------------------------------------------------------------


def _merge(paths: Sequence[Path], output: Path) -> Iterator[str]:
    more: dict[str, Any] = {}
    cells: list[Cell] = []
    missing: list[list[str]] = []
    for path in paths:
        try:
            stored = json.loads(path.read_text())
            cells += [Cell.from_json(cell) for cell in stored.pop("cells")]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"--merge {path}: that is no result of this benchmark.") from None
        missing += stored.pop("missing", [])
        more |= stored
    report = Report(output, more)
    for cell in cells:
        report.add(cell)
    measured = {cell.title.replace(f" on {cell.place.get('dataset')}", "") for cell in cells}
    measured |= {asked[0] for key, asked in TESTS.items() if key in more}
    measured |= {TRAIN.format(run["precision"]) for run in more.get("train", [])} | (
        {FOUR} if "four" in more else set()
    )
    more["missing"] = [list(entry) for entry in dict.fromkeys(map(tuple, missing)) if entry[0] not in measured]
    report.store()
    return report.draw()
