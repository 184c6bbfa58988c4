"""Pictures of a grid: the methods' scores on each task, or their scores over the fraction of the training split."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from surm.report.experiments import Column, Method
from surm.report.figures import LINES, legend_below, marks, save, style_of, tidy

FULL = "full fine-tuning"
_WIDEST = 4  # panels in one line
STEP = 1.02  # factor between the methods at one fraction, so that their intervals stand side by side


def draw(columns: Sequence[Column], rows: Sequence[str], title: str, label: str, path: Path) -> None:
    """Draw the scores of `rows` with their 95 % intervals: over fractions where these differ, else one dot plot a task.

    Args:
        columns: the tasks.
        rows: names of the methods, from top to bottom.
        title: above the panels.
        label: printed on the picture if it ends in "not evidence".
        path: of the picture.
    """
    panels: list[list[Column]] = [[column] for column in columns if column.experiment.finished]
    curves = len({column.fraction for column in columns}) > 1
    if curves:
        of_task: dict[tuple[str, str], list[Column]] = defaultdict(list)
        for (column,) in panels:
            of_task[column.model, column.dataset].append(column)
        panels = [sorted(group, key=lambda column: column.fraction) for group in of_task.values()]
    several = len({column.model for column in columns}) > 1
    down = math.ceil(len(panels) / _WIDEST)
    across = math.ceil(len(panels) / down)
    height = 3.6 if curves else 0.9 + 0.24 * len(rows)
    figure = Figure(figsize=(3.2 * across + 1.6, height * down + 0.6), dpi=160, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=not curves)
    for axes, group in zip(grid.flat, panels, strict=False):
        if curves:
            axes.set_title(f"{group[0].dataset}, {group[0].model}" if several else group[0].dataset, fontsize=9)
            _draw_curves(axes, group, rows)
        else:
            axes.set_title(group[0].label, fontsize=9)
            _draw_dots(axes, group[0], rows)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=11)
    if curves:
        legend_below(figure, columns=across + 1)
    if label.endswith("not evidence"):
        figure.text(0.01, 0.99, label, color="#D55E00", fontsize=10, weight="bold", va="top")
    save(figure, path)


def _draw_dots(axes: Axes, column: Column, rows: Sequence[str]) -> None:
    """One line for each method, named on the left; a method without a finished run has an empty line."""
    for place, row in enumerate(rows):
        method = column.experiment.method(row)
        if method:
            style, mean = style_of(method.family), method.mean
            if mean.low is not None and mean.high is not None:
                axes.hlines(place, mean.low, mean.high, color=style.color, linewidth=1.4)
            axes.plot([mean.value], [place], color=style.color, linestyle="none", zorder=3, **marks(style))
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"{column.experiment.finished[0].metric} (%)")
    tidy(axes)


def curves(
    group: Sequence[Column], rows: Sequence[str]
) -> Iterator[tuple[str, list[tuple[float, Method]], str, float]]:
    """Each row with a finished run: its name, its methods by fraction, its line, and its factor on the axis."""
    drawn: dict[str, int] = defaultdict(int)
    for place, row in enumerate(rows):
        found = [(column.fraction, method) for column in group if (method := column.experiment.method(row))]
        if found:
            family = found[0][1].family
            yield row, found, LINES[drawn[family] % len(LINES)], STEP ** (place - (len(rows) - 1) / 2)
            drawn[family] += 1


def full_on_all_data(group: Sequence[Column]) -> Method | None:
    """Full fine-tuning on the whole training split, the level that curves are compared with."""
    return next((column.experiment.method(FULL) for column in group if column.fraction == 1), None)


def _draw_curves(axes: Axes, group: Sequence[Column], rows: Sequence[str]) -> None:
    """Scores over the fraction of the training split (log axis); the level of full fine-tuning on all data."""
    for row, found, line, shift in curves(group, rows):
        _draw_curve(axes, row, found, line, shift)
    whole = full_on_all_data(group)
    if whole:
        axes.axhline(
            whole.mean.value, color="0.3", linestyle=(0, (6, 3)), linewidth=1.0, label=f"{FULL} on all data", zorder=0
        )
    percent = [100 * column.fraction for column in group]
    axes.set(xscale="log", xlabel="share of the training split (%)")
    axes.set_ylabel(f"{group[0].experiment.finished[0].metric} (%)")
    axes.xaxis.set_major_locator(FixedLocator(percent))
    axes.set_xticklabels([f"{value:g}" for value in percent])
    axes.xaxis.set_minor_locator(NullLocator())
    tidy(axes)


def _draw_curve(axes: Axes, row: str, found: Sequence[tuple[float, Method]], line: str, shift: float) -> None:
    style = style_of(found[0][1].family)
    shares = shift * 100 * np.array([fraction for fraction, _ in found])
    means = [method.mean for _, method in found]
    look: dict[str, Any] = {"color": style.color, "linestyle": line, "linewidth": 1.2, "zorder": 2 + style.filled}
    axes.plot(shares, [mean.value for mean in means], label=row, **look, **marks(style))
    for share, mean in zip(shares, means, strict=True):
        if mean.low is not None and mean.high is not None:
            axes.vlines(share, mean.low, mean.high, color=style.color, linewidth=1.0)
