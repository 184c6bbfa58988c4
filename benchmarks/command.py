"""The command line of `scripts/benchmark.py`."""

import argparse
import importlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig

from benchmarks import table
from benchmarks.calls import count_calls
from benchmarks.layers import EVERY_PLAIN, SHOWN_PLAIN, Layer, configured, layers, measure_layers, peft_layer
from benchmarks.result import FLOOR, LORA, Cell, worse_than_plain
from benchmarks.steps import METHODS, MODELS, measure_steps
from surm.records.provenance import where
from surm.records.storage import check_output, write_json
from surm.shared.errors import ConfigError
from surm.shared.options import Parser, count
from surm.shared.paths import REPOSITORY
from surm.shared.registry import look_up
from surm.structures.backends import BACKENDS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
QUICK: dict[str, list[Any]] = {"width": [768], "tokens": [2048], "dtype": ["float32"]}
FULL: dict[str, list[Any]] = {
    "width": [384, 768, 1024, 4096],
    "tokens": [1, 64, 2048, 16_384],
    "dtype": ["float32", "bfloat16"],
}
CALLED = (
    FLOOR,
    LORA,
    "C3A one block",
    "circulant",
    "Kronecker",
    "one-factor Toeplitz",
    "symmetric Toeplitz pair",
    "ldr 1 term",
)
QUICK_SECONDS = 90.0  # of rounds, in a command that promises 2 minutes


def options() -> argparse.ArgumentParser:
    parser = Parser()
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--quick", action="store_true", help="width 768, 2,048 tokens, float32, in 2 minutes (the default)"
    )
    mode.add_argument("--full", action="store_true", help="four widths, four numbers of tokens, float32 and bfloat16")
    mode.add_argument("--steps", action="store_true", help="whole training steps of the built-in models")
    mode.add_argument("--calibrate", action="store_true", help="what the cost model needs to know of this machine")
    mode.add_argument("--calls", action="store_true", help="what a layer's step calls, on a GPU with kernels launched")
    mode.add_argument("--draw", type=Path, metavar="FILE", help="the table and the picture of a result that is stored")
    parser.add_argument("--width", type=count(65_536), nargs="+", help="of the layers")
    parser.add_argument("--tokens", type=count(10_000_000), nargs="+", help="rows of the layers' input")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", help="of the layers and their input")
    parser.add_argument("--model", choices=(*MODELS, "tiny_vit", "tiny_bert"), nargs="+", default=list(MODELS))
    parser.add_argument("--batch", type=count(100_000), nargs="+", default=[32, 64], help="examples of a whole step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=count(1024), help="by default torch's own number")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="of this project's structures")
    parser.add_argument("--rounds", type=count(1_000_000), default=15, help="that are counted")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to measure beside the reference")
    parser.add_argument("--peft", action="append", default=[], metavar="MODULE:CLASS", help="a configuration of PEFT's")
    parser.add_argument("--kwargs", action="append", default=[], metavar="JSON", help="its arguments")
    parser.add_argument(
        "--save", type=_name, metavar="NAME", help="write results/benchmark/NAME.json, not below outputs/benchmark"
    )
    return parser


def run(arguments: argparse.Namespace) -> Iterator[Any]:
    """Measure and store what is asked for; yields what is to be printed, as it is known.

    Raises:
        ConfigError: one sentence, before anything is measured.
    """
    if arguments.draw:
        return _show(arguments.draw)
    device = _device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.calls:
        return _calls(arguments, device)
    name = next((mode for mode in ("full", "steps", "calibrate") if getattr(arguments, mode)), "quick")
    path = REPOSITORY / "results" if arguments.save else Path("outputs")
    path = path / "benchmark" / f"{arguments.save or name}.json"
    check_output(path.parent)
    if arguments.calibrate:
        return _calibrate(device, path)
    cells = _steps(arguments, device) if arguments.steps else _layers(arguments, device)
    return _measure(cells, arguments, device, path)


def _name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"{text} is not possible: give a name of letters, digits, and _ . - between them"
        )
    return text


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        offered = "cpu and cuda" if torch.cuda.is_available() else "cpu"
        raise ConfigError(f"--device {name}: this machine offers {offered}.")
    return torch.device(name)


# --- layers and steps -------------------------------------------------------------------------------------------------


def _layers(arguments: argparse.Namespace, device: torch.device) -> Iterator[Cell]:
    sizes = FULL if arguments.full else QUICK
    widths: list[int] = arguments.width or sizes["width"]
    tokens: list[int] = arguments.tokens or sizes["tokens"]
    dtypes: list[str] = arguments.dtype or sizes["dtype"]
    known = layers(arguments.backend)
    added = _added(arguments, widths)
    only = [known[FLOOR], *(_named(known, name) for name in arguments.only or () if name != FLOOR)]

    def chosen(width: int, rows: int) -> list[Layer]:
        if arguments.only:
            return only
        every = arguments.full and rows * width**2 <= EVERY_PLAIN
        return [layer for layer in known.values() if every or layer.kind != "plain" or layer.name in SHOWN_PLAIN]

    places = [(dtype, width, rows) for dtype in dtypes for width in widths for rows in tokens]
    seconds = QUICK_SECONDS if len(places) == 1 and not arguments.full else None
    return (
        measure_layers(
            [*chosen(width, rows), *added],
            width,
            rows,
            DTYPES[dtype],
            device,
            rounds=arguments.rounds,
            seconds=seconds,
        )
        for dtype, width, rows in places
    )


def _steps(arguments: argparse.Namespace, device: torch.device) -> Iterator[Cell]:
    only = [name for name in arguments.only or METHODS if _named(METHODS, name)]
    if arguments.peft:
        raise ConfigError("--peft adds to the table of layers: leave --steps out.")
    return (
        measure_steps(model, batch, device, rounds=arguments.rounds, only=only, backend=arguments.backend)
        for model in arguments.model
        for batch in arguments.batch
    )


def _named(known: Any, name: str) -> Any:
    try:
        return look_up(known, name, "row")
    except ValueError as error:
        raise ConfigError(f"--only: {error}") from None


def _added(arguments: argparse.Namespace, widths: Sequence[int]) -> list[Layer]:
    """The layers of `--peft`, each with its `--kwargs`."""
    if len(arguments.kwargs) > len(arguments.peft):
        raise ConfigError("--kwargs belongs to a --peft module:ConfigClass before it: give as many of each, in order.")
    texts = [*arguments.kwargs, *["{}"] * (len(arguments.peft) - len(arguments.kwargs))]
    return [_added_layer(path, text, widths) for path, text in zip(arguments.peft, texts, strict=True)]


def _added_layer(path: str, text: str, widths: Sequence[int]) -> Layer:
    module, _, name = path.partition(":")
    try:
        config = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--peft {path}: give module:ConfigClass, such as peft:LoraConfig ({error}).") from None
    if not (isinstance(config, type) and issubclass(config, PeftConfig)):
        raise ConfigError(f"--peft {path}: {name} is no configuration class of PEFT's; give one such as LoraConfig.")
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--kwargs {text}: that is no JSON ({error}); write it as in '{{\"r\": 4}}'.") from None
    if not isinstance(given, dict) or "target_modules" in given:
        raise ConfigError(f"--kwargs {text}: give an object such as '{{\"r\": 4}}', without target_modules.")
    try:
        for width in widths:
            configured(config, given, width)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--kwargs {text}: {name} refuses it ({' '.join(str(error).split())}).") from None
    words = ", ".join(f"{key}={value}" for key, value in given.items())
    return peft_layer(f"{name.removesuffix('Config')} {words}".strip(), config, **given)


def _measure(cells: Iterator[Cell], arguments: argparse.Namespace, device: torch.device, path: Path) -> Iterator[Any]:
    found: list[Cell] = []
    before = os.getloadavg()
    for cell in cells:
        found.append(cell)
        _store(path, found, arguments, device, before)  # after each, so that a long command loses nothing
        yield from _print(cell)
    yield from _closing(found)
    yield from _write(found, path)


def _store(
    path: Path, cells: Sequence[Cell], arguments: argparse.Namespace, device: torch.device, before: Sequence[float]
) -> None:
    write_json(
        path,
        {
            "where": where(device.type, {}) | {"load": {"before": before, "after": os.getloadavg()}},
            "backend": arguments.backend,
            "cells": [cell.to_json() for cell in cells],
            "worse_than_plain": worse_than_plain(cells),
        },
    )


def _print(cell: Cell) -> Iterator[Any]:
    yield table.text_table(cell)
    yield from [*table.notes(cell), ""]


def _closing(cells: Sequence[Cell]) -> Iterator[str]:
    for worse in worse_than_plain(cells):
        place = ", ".join(f"{key} {value}" for key, value in worse["place"].items())
        yield f"{worse['row']} is slower than {worse['plain']} by more than noise at {place}."


# --- the other two ----------------------------------------------------------------------------------------------------


def _show(path: Path) -> Iterator[Any]:
    try:
        cells = [Cell.from_json(cell) for cell in json.loads(path.read_text())["cells"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"--draw {path}: that is no result of this benchmark, such as --save NAME leaves.") from None
    return _draw(cells, path)


def _draw(cells: Sequence[Cell], path: Path) -> Iterator[Any]:
    for cell in cells:
        yield from _print(cell)
    yield from _closing(cells)
    yield from _write(cells, path)


def _write(cells: Sequence[Cell], path: Path) -> Iterator[str]:
    """The table and the picture beside the numbers."""
    page, picture = path.with_suffix(".md"), path.with_suffix(".png")
    page.write_text(table.markdown_tables(cells))
    table.draw(cells, picture)
    yield f"Numbers: {path}; table: {page}; picture: {picture}"


def _calls(arguments: argparse.Namespace, device: torch.device) -> Iterator[Any]:
    known = layers(arguments.backend)
    chosen = [_named(known, name) for name in arguments.only or CALLED]
    for dtype in arguments.dtype or QUICK["dtype"]:
        for width in arguments.width or QUICK["width"]:
            for tokens in arguments.tokens or QUICK["tokens"]:
                yield f"{dtype}, width {width}, {tokens} tokens: calls | operators that compute | kernels of a GPU"
                for found in count_calls(chosen, width, tokens, DTYPES[dtype], device):
                    kernels = "-" if found.kernels is None else found.kernels
                    yield f"{found.name}: {found.calls} | {found.computing} | {kernels}"


def _calibrate(device: torch.device, path: Path) -> Iterator[Any]:
    from benchmarks.calibrate import calibrate  # torch's timers warn, as soon as they are imported, of no GPU

    before = os.getloadavg()
    found = calibrate(device)
    write_json(path, {"where": where(device.type, {}) | {"load": {"before": before, "after": os.getloadavg()}}} | found)
    yield json.dumps(found, indent=1)
    yield f"Numbers: {path}"
