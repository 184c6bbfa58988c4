"""A benchmark as tables, for a terminal and in Markdown, and as a picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.result import TARGET_PLACE, Cell, Row, against_rivals, judge
from surm.methods.names import BLACK, BLUE, GREY, VERMILION, Style
from surm.report.drawing import legend_below, marks, save, tidy
from surm.report.table import markdown

NUMBERS = ("trained", "time", "quartiles", "peak memory")
MOST_PANELS = 4  # cells in one picture
CLOSE = 0.05  # an axis goes at least so far from 1, so that smaller differences look as small as they are
LINEAR = 5  # ratios up to this one stand on a linear axis, others on a logarithmic one
KINDS = {
    "ours": Style("structures of this project", BLUE, "o", filled=True),
    "peft": Style("PEFT", BLACK, "o"),
    "full": Style("full fine-tuning", BLACK, "D"),
    "paper": Style("the paper's formulas as written", VERMILION, "s"),
    "plain": Style("plain dense matrix", GREY, "^"),
}


def text_table(cell: Cell) -> Table:
    """Ratios to the reference; rows of ours say whether they reach their targets, where there are any."""
    header, rows = _lines(cell)
    table = Table(title=cell.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in header:
        table.add_column(heading, justify="right" if heading in NUMBERS else "left", no_wrap=heading != "target")
    for line in rows:
        table.add_row(*line)
    table.caption = f"relative to {cell.reference}; time: median of {cell.rounds} rounds"
    table.caption_justify = "left"
    # A terminal that is too narrow wraps, and cuts nothing off.
    table.width = Console(width=1000).measure(table).maximum
    return table


def markdown_tables(cells: Sequence[Cell]) -> str:
    """The same as a Markdown page."""
    return "\n".join(
        f"## {cell.title}\n\n{markdown(header, rows, right=[heading in NUMBERS for heading in header])}\n"
        f"Relative to {cell.reference}; time: median of {cell.rounds} rounds.\n"
        + "".join(f"* {note}\n" for note in notes(cell))
        for cell in cells
        for header, rows in [_lines(cell)]
    )


def _lines(cell: Cell) -> tuple[list[str], list[list[str]]]:
    verdicts = [judge(cell, row) for row in cell.rows]
    target = ["target"] if any(verdicts) else []
    rows = [[*_cells(row), *([verdict] if target else [])] for row, verdict in zip(cell.rows, verdicts, strict=True)]
    return ["variant", *NUMBERS, *target], rows


def _cells(row: Row) -> Iterator[str]:
    yield _full_name(row)
    if row.time is None or row.memory is None:
        yield from ("", "", "not possible", "")
        return
    yield f"{row.trained:,}"
    yield f"{row.time.median:.2f}"
    yield f"{row.time.low:.2f} to {row.time.high:.2f}"
    yield f"{row.memory:.2f}"


def _full_name(row: Row) -> str:
    return {"paper": "paper: ", "peft": "PEFT "}.get(row.kind, "") + row.name


def notes(cell: Cell) -> list[str]:
    """What the table does not say by itself."""
    return [*(f"{row.name}: {row.reason}" for row in cell.rows if row.reason), *against_rivals(cell)]


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draw time with its quartiles and peak memory: a line of panels for each cell.

    Of more than four cells, the one that has the targets, or the first.
    """
    if len(cells) > MOST_PANELS:
        cells = [cell for cell in cells if TARGET_PLACE.items() <= cell.place.items()][:1] or cells[:1]
    heights = [1.2 + 0.24 * len(cell.measured) for cell in cells]
    figure = Figure(figsize=(10.8, sum(heights) + 0.6), dpi=160, layout="constrained")
    panels = figure.subplots(len(cells), 2, sharey="row", squeeze=False, height_ratios=heights)
    for (left, right), cell in zip(panels, cells, strict=True):
        rows = [row for row in reversed(list(cell.measured.values())) if row.name != cell.reference]
        _draw(left, rows, [(row.time.median, row.time.low, row.time.high) for row in rows if row.time])
        _draw(right, rows, [(row.memory, row.memory, row.memory) for row in rows if row.memory is not None])
        left.set_title(cell.title, fontsize=10, loc="left")
        left.set_xlabel(f"time, relative to {cell.reference}")
        right.set_xlabel(f"peak memory, relative to {cell.reference}")
    legend_below(figure, columns=3)
    save(figure, path)


def _draw(axes: Axes, rows: Sequence[Row], values: Sequence[tuple[float, float, float]]) -> None:
    axes.axvline(1, color="0.5", linewidth=1.0, zorder=0)
    for place, (row, (median, low, high)) in enumerate(zip(rows, values, strict=True)):
        style = KINDS[row.kind]
        axes.plot([low, high], [place, place], color=style.color, linewidth=1.4)
        axes.plot(median, place, color=style.color, linestyle="", label=style.label, **marks(style))
    if max(high for _, _, high in values) > LINEAR:
        axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 1 - CLOSE), max(high, 1 + CLOSE))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(rows)), [_full_name(row) for row in rows], fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    tidy(axes)
