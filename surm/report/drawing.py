"""What all figures share: panels, marks, lines, legends; and a figure with its words."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from surm.methods.names import Style
from surm.report.gather import Method

LINES = ("-", "--", ":", "-.")  # of the members of a family
LEGEND = 0.95  # of a figure's width at most; the rest is for a page whose font is wider
LEGEND_HEIGHT = 0.2  # of a figure's height, which its size allows for


@dataclass(frozen=True)
class Picture:
    """One figure: drawn once, written as a PNG file and embedded in the page as SVG.

    kind: part of its file's name.
    title, caption: printed above it on the page.
    words: what it shows in words, for readers who cannot see it.
    draw: draws it.
    file: also written as a PNG file and shown in the Markdown report.
    """

    kind: str
    title: str
    caption: str
    words: Callable[[], str]
    draw: Callable[[], Figure]
    file: bool = True

    def figure(self, label: str = "") -> Figure:
        """The figure, with a label of numbers that are no evidence."""
        figure = self.draw()
        if label:
            figure.text(0.01, 0.99, label, color="#D55E00", fontsize=10, weight="bold", va="top")
        return figure

    def write(self, path: Path, label: str = "") -> None:
        """Write a PNG whose bytes do not name the version of the library."""
        save(self.figure(label), path)


def grid_of_panels(
    number: int, *, size: tuple[float, float], widest: int, more: tuple[float, float] = (0, 0), **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most `widest` in a line; `size` is of a panel, `more` what stands beside them."""
    down = math.ceil(number / widest)
    across = math.ceil(number / down)
    shape = size[0] * across + more[0], size[1] * down + more[1]
    figure = Figure(figsize=shape, dpi=160, layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False, **options).flat)
    for axes in panels[number:]:
        axes.set_visible(False)
    return figure, panels[:number]


def marks(style: Style) -> dict[str, Any]:
    """Keywords of `Axes.plot` for the marker of a style."""
    return {
        "marker": style.marker,
        "markersize": 6,
        "markerfacecolor": style.color if style.filled else "white",
        "markeredgewidth": 1.4,
    }


def line_of(style: Style, line: str = "-") -> dict[str, Any]:
    """Keywords of `Axes.plot` for the line and the marker of a style."""
    return {"color": style.color, "linestyle": line, "linewidth": 1.4} | marks(style)


def draw_band(axes: Axes, frame: pd.DataFrame, look: Mapping[str, Any], *, alpha: float = 0.08, **more: Any) -> None:
    """Draw the column "mean" over the index, and the band from "min" to "max" behind it."""
    axes.fill_between(frame.index, frame["min"], frame["max"], color=look["color"], alpha=alpha, linewidth=0)
    axes.plot(frame.index, frame["mean"], **look, **more)


def draw_mark(
    axes: Axes, line: int, value: float, style: Style, ends: tuple[float | None, float | None] = (None, None)
) -> None:
    """Draw a value and the ends of its interval, if it has one, on a line of `name_lines`."""
    low, high = ends
    if low is not None and high is not None:
        axes.hlines(line, low, high, color=style.color, linewidth=1.4)
    axes.plot([value], [line], color=style.color, linestyle="none", zorder=3, **marks(style))


def name_lines(axes: Axes, names: Sequence[str]) -> None:
    """One line for each name, from top to bottom, named on the left."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    tidy(axes)


def tidy(axes: Axes) -> None:
    """Leave the left and the lower spine, and a light grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, *, columns: int | None = None) -> None:
    """Add one legend below the panels, each label once; by default two columns a panel, at most four, or as fit.

    A long one makes the figure higher, not the panels lower.
    """
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for number in range(columns or min(2 * len(figure.axes), 4), 0, -1) if entries else ():
        legend = figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=number,
            fontsize=9,
            frameon=False,
        )
        without_mathematics(legend)
        box = legend.get_window_extent()
        if number == 1 or box.width <= LEGEND * figure.bbox.width:
            more = max(0.0, box.height - LEGEND_HEIGHT * figure.bbox.height)
            figure.set_figheight(figure.get_figheight() + more / figure.dpi)
            return
        legend.remove()


_TICK = re.compile(r"\$(10\^\{-?\d+\}|\\mathdefault\{.*\})\$")


def without_mathematics(artist: Artist) -> None:
    """Print every text of a figure, or of a part, as it is, a `$` too; ticks that are powers of ten stay formulas."""
    for text in artist.findobj(Text):
        if "$" in text.get_text() and not _TICK.fullmatch(text.get_text()):
            text.set_parse_math(False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG whose bytes do not name the version of the library, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    without_mathematics(figure)
    figure.savefig(path, metadata={"Software": None})


def with_lines(methods: Sequence[Method]) -> Iterator[tuple[Method, str]]:
    """Each method, and a line style that tells the members of a family apart."""
    drawn: dict[str, int] = defaultdict(int)
    for method in methods:
        yield method, LINES[drawn[method.family] % len(LINES)]
        drawn[method.family] += 1
