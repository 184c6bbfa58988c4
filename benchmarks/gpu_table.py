"""The benchmark on a GPU as Markdown and as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.goals import RIVALS, findings
from benchmarks.modes import MODES
from benchmarks.result import FLOOR, LORA, Cell, Row
from surm.methods.names import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION, WINE, Style
from surm.report.drawing import legend_below, line_of, save, tidy
from surm.report.table import markdown

STYLES = {
    FLOOR: Style(FLOOR, GREY, "s"),
    "full fine-tuning": Style("full fine-tuning", BLACK, "D"),
    **{
        name: Style(name, WINE, marker) for name, marker in zip(RIVALS, "h8p<*", strict=True)
    },
    "circulant": Style("circulant", BLUE, "o", filled=True),
    "Kronecker": Style("Kronecker", GREEN, "^", filled=True),
    "one-factor Toeplitz": Style("one-factor Toeplitz", VERMILION, "s", filled=True),
    "symmetric Toeplitz pair": Style("symmetric Toeplitz pair", ORANGE, "P", filled=True),
    "ldr 1 term": Style("ldr 1 term", PINK, "D", filled=True),
}  # fmt: skip
OTHER = Style("others", SKY, "v")
TESTS = {"tests": "tests/gpu", "kernel_tests": "tests/structures/gpu"}  # where the tests of a key of `more` stand
MODE_WORDS = {"eager": "eager", "graph": "graph replayed", "compiled": "compiled"}


def page(cells: Sequence[Cell], more: Mapping[str, Any]) -> str:
    """Goals first, then every cell: milliseconds of a step, what its kernels take, and ratios to LoRA of rank 1.

    more: what `benchmarks.gpu` stores beside the cells: tests, runs of `scripts/train.py`, what is missing.
    """
    train, missing = more.get("train") or [], more.get("missing") or []
    parts = [f"# One training step on {more.get('gpu') or 'no GPU'}\n", _goals(cells, more)]
    parts.append("## Tests\n\n" + "".join(f"* `{place}`: {_counts(more.get(key))}\n" for key, place in TESTS.items()))
    parts.append("".join(f"* failed: {name}\n" for name, _ in more.get("failed_tests") or []))
    if train:
        parts.append(_runs(train))
    if four := more.get("four"):
        parts.append(f"Four runs at once: {four['times_the_runs_an_hour']:.2f} times the runs an hour of one.\n")
    for kind, title in (("width", "One frozen layer"), ("model", "Whole steps")):
        chosen = [cell for cell in cells if kind in cell.place]
        if chosen:
            parts.append(f"## {title}\n\n{_times(chosen)}")
    notes = dict.fromkeys(
        f"{row.name}, {cell.title}: {row.reason}" for cell in cells for row in cell.rows if row.reason
    )
    lines = [*notes, *(f"{where}: not measured, {reason}" for where, reason in missing)]
    if lines:
        parts.append("## Not measured\n\n" + "".join(f"* {line}\n" for line in lines))
    return "\n".join(parts)


def _counts(tests: Mapping[str, int] | None) -> str:
    return ", ".join(f"{number} {what}" for what, number in tests.items()) if tests else "not run"


def _goals(cells: Sequence[Cell], more: Mapping[str, Any]) -> str:
    header = ["goal", "matrices", "at most", "worst", "at", "verdict"]
    rows = [
        [
            found.goal,
            found.rows,
            f"{found.limit:g}",
            "" if found.worst is None else f"{found.worst:.3g}",
            found.where,
            found.verdict,
        ]
        for found in findings(cells, more)
    ]
    return f"## Goals\n\n{markdown(header, rows, right=[False, False, True, True, False, False])}\n"


def _runs(train: Sequence[Mapping[str, Any]]) -> str:
    header = ["run", "precision", "seconds a step", "bare step", "ratio", "first step to record, s"]
    rows = [[str(run.get(key, "")) for key in ("run", "precision", "step", "bare", "ratio", "whole")] for run in train]
    return f"## Runs of `scripts/train.py`\n\n{markdown(header, rows, right=[False, False] + [True] * 4)}\n"


def _times(cells: Sequence[Cell]) -> str:
    names = list(dict.fromkeys(row.name for cell in cells for row in cell.rows))
    tables = []
    for mode in MODES:
        of_mode = [cell for cell in cells if cell.place.get("mode") == mode]
        if not of_mode:
            continue
        shown = [name for name in names if any(name in cell.measured for cell in of_mode)]
        tables.append(_one(f"{MODE_WORDS[mode]}, ms", shown, of_mode, _milliseconds))
        tables.append(_one(f"{MODE_WORDS[mode]}, relative to {LORA}", shown, of_mode, _ratio))
        if any(row.kernels for cell in of_mode for row in cell.rows):
            tables.append(_one("kernels' own time, ms / number", shown, of_mode, _kernels))
        if any(row.memory is not None for cell in of_mode for row in cell.rows):
            tables.append(_one(f"peak memory, relative to {LORA}", shown, of_mode, _memory))
    return "\n".join(tables)


def _one(caption: str, names: Sequence[str], cells: Iterable[Cell], text: Any) -> str:
    rows = [
        [_place(cell), *(text(cell, cell.measured[name]) if name in cell.measured else "" for name in names)]
        for cell in cells
    ]
    return f"### {caption}\n\n{markdown(['', *names], rows, right=[False, *[True] * len(names)])}\n"


def _place(cell: Cell) -> str:
    """The cell without its mode and device."""
    place = cell.place
    if "model" in place:
        return f"{place['model']}, {place['batch_size']}, {place['precision']}"
    return f"{place['width']}, {place['tokens']:,}, {place['dtype']}"


def _milliseconds(cell: Cell, row: Row) -> str:
    return "" if row.time is None else f"{1000 * cell.floor_seconds * row.time.median:.3g}"


def _ratio(cell: Cell, row: Row) -> str:
    return "" if row.time is None else f"{row.time.median:.2f}"


def _kernels(cell: Cell, row: Row) -> str:
    return "" if row.kernels is None else f"{1000 * row.kernels.seconds:.3g} / {row.kernels.launches}"


def _memory(cell: Cell, row: Row) -> str:
    return "" if row.memory is None else f"{row.memory:.3f}"


def draw(cells: Sequence[Cell], path: Path) -> None:
    """A panel for each mode of layers and of whole steps: time of a step relative to LoRA's, cell by cell."""
    groups = [
        ([cell for cell in cells if kind in cell.place and cell.place.get("mode") == mode], title, mode)
        for kind, title in (("width", "one layer"), ("model", "a whole step"))
        for mode in MODES
    ]
    groups = [group for group in groups if group[0]]
    figure = Figure(figsize=(10.8, 3.6 * len(groups) + 0.8), dpi=160, layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, (chosen, title, mode) in zip(panels, groups, strict=True):
        axes.axhline(1, color="0.5", linewidth=1.0, zorder=0)
        for name in dict.fromkeys(row.name for cell in chosen for row in cell.rows if row.name != LORA):
            points = [
                (number, time.median)
                for number, cell in enumerate(chosen)
                if name in cell.measured and (time := cell.measured[name].time) is not None
            ]
            style = STYLES.get(name, OTHER)
            if points:
                axes.plot(*zip(*points, strict=True), label=style.label, **line_of(style, ":"))
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(f"time, relative to {LORA}", fontsize=8)
        axes.set_title(f"{title}, {MODE_WORDS[mode]}", fontsize=10, loc="left")
        names = [_place(cell) for cell in chosen]
        axes.set_xticks(range(len(chosen)), names, fontsize=7, rotation=25, ha="right")
        tidy(axes)
    legend_below(figure, columns=4)
    save(figure, path)
