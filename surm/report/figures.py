"""Figures of the scores of methods on tasks, and the list of those that every table has."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise, takewhile
from math import sqrt
from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from surm.methods.names import style_of
from surm.report.drawing import (
    Picture,
    draw_mark,
    grid_of_panels,
    legend_below,
    line_of,
    marks,
    name_lines,
    tidy,
    with_lines,
)
from surm.report.gather import Comparison, Method
from surm.report.training_figures import cost, learning_curves

FULL = "full fine-tuning"
WIDEST = 3  # panels in one line
TITLE = 56  # characters in a line of a panel's title
APART = 0.027  # of an axis at least from the counts of one strip to the next one's, so that they can be read
FOOT = 0.25  # of an axis that counts need free at the foot of a strip
NEAR = 1.1  # ratio of numbers of parameters up to which methods stand in one strip
STEP = 1.02  # factor between the methods at one fraction, so that they stand side by side


def pictures_of(tasks: Sequence[Comparison], *, file: bool) -> list[Picture]:
    """The figures that every table of methods has; nothing is drawn before it is asked for."""
    return [
        accuracy_over_parameters(tasks, file=file),
        learning_curves(tasks, file=file),
        cost(tasks),
    ]


# --- score over trainable parameters ----------------------------------------------------------------------------------


def accuracy_over_parameters(tasks: Sequence[Comparison], *, file: bool = True) -> Picture:
    """Mean score and its spread over trainable parameters (log axis), one panel for each task."""

    def draw() -> Figure:
        figure, panels = grid_of_panels(len(tasks), size=(5.8 if len(tasks) > 1 else 7.6, 4.8), widest=2)
        for axes, task in zip(panels, tasks, strict=True):
            _draw_scores(axes, task)
        legend_below(figure, columns=2 * min(len(tasks), 2))
        return figure

    return Picture(
        "accuracy_over_parameters",
        "Score over trainable parameters",
        "Mean over seeds and one standard deviation, over parameters without the head. Methods whose counts lie "
        "within 10 % of one another stand side by side in a shaded strip; filled marks are structured matrices, open "
        "ones what they are compared with.",
        lambda: _scores_in_words(tasks),
        draw,
        file,
    )


def _draw_scores(axes: Axes, task: Comparison) -> None:
    """Methods of nearly one count stand side by side in a shaded strip; head-only ones left of a break.

    Members of a family (ranks, numbers of terms) are joined by a line.
    """
    axes.set_title(fill(task.title, TITLE), fontsize=11)
    if not task.finished:
        axes.text(0.5, 0.5, "no finished run", ha="center", va="center", transform=axes.transAxes)
        return
    layout = strips(task.finished)
    _draw_strips(axes, layout)
    families: dict[str, list[Method]] = defaultdict(list)
    for method in task.finished:
        families[method.family].append(method)
    for members in families.values():
        _draw_family(axes, members, layout.xs)
    _limit(axes, task.finished)
    _draw_counts(axes, layout, task.finished)
    _draw_baselines(axes, task)
    axes.set(xlabel="trainable parameters, without head", ylabel=f"{task.metric} (%)")
    tidy(axes)


class Strips(NamedTuple):
    """Where the methods of one experiment stand on a log axis of trainable parameters."""

    xs: dict[str, float]  # method -> x
    shared: dict[str, tuple[float, float, float]]  # counts of several methods -> centre and edges of their strip
    limits: tuple[float, float]
    head_only: float | None  # x of the methods that train the head alone

    def powers(self) -> list[int]:
        """Exponents of the ticks, powers of ten."""
        low, high = self.limits
        smallest = low * 2 if self.head_only is None else self.head_only * 12
        return [power for power in range(12) if smallest / 3 < 10**power < high]


def strips(methods: Sequence[Method]) -> Strips:
    """Methods of nearly one count stand side by side; those that train the head alone left of a break in the axis."""
    ordered = sorted(methods, key=lambda method: method.trainable_parameters)
    groups: list[list[Method]] = []
    for method in ordered:
        if groups and method.trainable_parameters <= NEAR * groups[-1][0].trainable_parameters:
            groups[-1].append(method)
        else:
            groups.append([method])
    smallest = next((method.trainable_parameters for method in ordered if method.trainable_parameters), 1)
    head_only = smallest / 12
    low, high = (
        (smallest if ordered[0].trainable_parameters else head_only) / 2,
        max(ordered[-1].trainable_parameters, 10) * 2,
    )
    centers = [sqrt(group[0].trainable_parameters * group[-1].trainable_parameters) or head_only for group in groups]
    sizes = [(center, len(group)) for center, group in zip(centers, groups, strict=True)]
    step = _step(sizes, widest=(high / low) ** 0.022)
    xs: dict[str, float] = {}
    shared: dict[str, tuple[float, float, float]] = {}
    for center, group in zip(centers, groups, strict=True):
        offsets = np.arange(len(group)) - (len(group) - 1) / 2
        xs |= {method.name: center * step**offset for method, offset in zip(group, offsets, strict=True)}
        if len(group) > 1:
            edge = step ** (len(group) / 2)
            shared[_counts(group)] = center, center / edge, center * edge
    return Strips(xs, shared, (low, high), None if ordered[0].trainable_parameters else head_only)


def _counts(group: Sequence[Method]) -> str:
    low, high = (method.trainable_parameters for method in (group[0], group[-1]))
    return f"{low:,} each" if low == high else f"{low:,} to {high:,}"


def _draw_strips(axes: Axes, layout: Strips) -> None:
    """Set up the log axis and shade the strips."""
    axes.set(xscale="log", xlim=layout.limits)
    for _, left, right in layout.shared.values():
        axes.axvspan(left, right, color="0.94", zorder=0, linewidth=0)
    ticks = {10.0**power: f"$10^{{{power}}}$" for power in layout.powers()}
    if layout.head_only is not None:
        ticks[layout.head_only] = "0\n(head only)"
        axes.text(
            layout.head_only * 12**0.45,
            0,
            "//",
            fontsize=8,
            ha="center",
            va="center",
            transform=axes.get_xaxis_transform(),
            bbox={"color": "white", "pad": 1},
        )
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.set_xticklabels(list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_counts(axes: Axes, layout: Strips, methods: Sequence[Method]) -> None:
    """Write each strip's counts at its foot, or in its longest free stretch where marks stand there."""
    apart = (layout.limits[1] / layout.limits[0]) ** APART
    bottom, top = axes.get_ylim()
    place = 0.0
    for counts, (center, left, right) in layout.shared.items():
        place = max(center, apart * place)
        inside = [method for method in methods if left < layout.xs[method.name] < right]
        marked = sorted((min(_ends([method])), max(_ends([method]))) for method in inside)
        reached = [bottom, *accumulate((high for _, high in marked), max)]
        free = list(zip(reached, [*(low for low, _ in marked), top], strict=True))
        low, high = free[0] if free[0][1] - bottom >= FOOT * (top - bottom) else max(free, key=lambda x: x[1] - x[0])
        at_foot = low == bottom
        axes.annotate(
            counts,
            (place, bottom if at_foot else (low + high) / 2),
            (0, 4 if at_foot else 0),
            textcoords="offset points",
            fontsize=8,
            color="0.35",
            ha="center",
            va="bottom" if at_foot else "center",
            rotation=90,
        )


def _step(sizes: Sequence[tuple[float, int]], *, widest: float) -> float:
    """Factor between neighbours in a strip, small enough that groups stay apart; sizes: their centres and numbers."""
    room: list[float] = [(b / a) ** (1.6 / (size_a + size_b)) for (a, size_a), (b, size_b) in pairwise(sizes)]
    return min([widest, *room])


def _draw_family(axes: Axes, members: Sequence[Method], xs: dict[str, float]) -> None:
    """Draw the members with their spread, joined by a line; the legend names them from left to right."""
    style = style_of(members[0].family)
    ordered = sorted(members, key=lambda method: method.trainable_parameters)
    axes.plot(
        [xs[method.name] for method in ordered],
        [method.mean for method in ordered],
        color=style.color,
        linewidth=0.8,
        label=_family_name([method.name for method in ordered], style.label),
        zorder=3,
        **marks(style),
    )
    for method in ordered:
        low, high = method.ends
        if low is not None and high is not None:
            axes.vlines(xs[method.name], low, high, color=style.color, linewidth=1.4)


def _family_name(names: Sequence[str], family: str) -> str:
    """One name for several members, what they share written once: `LoRA r=1 / r=4 (q, v)`."""
    options = [name.removeprefix(family).strip(", ") or "default" for name in names]
    words = [re.split(r"(?=, | \()", option) for option in options]
    endings = zip(*(own[:0:-1] for own in words), strict=False)
    shared = sum(1 for _ in takewhile(lambda pieces: len(set(pieces)) == 1, endings))
    differ = ["".join(own[: len(own) - shared]) for own in words]
    rest = "".join(words[0][len(words[0]) - shared :])
    return names[0] if len(names) == 1 else f"{family} {' / '.join(differ)}{rest}"


def _limit(axes: Axes, methods: Sequence[Method]) -> None:
    """Fit scores and their spread; a spread longer than the range of the scores runs out of the picture."""
    low, high = min(method.mean for method in methods), max(method.mean for method in methods)
    span = max(high - low, 1.0)
    ends = _ends(methods)
    axes.set_ylim(max(min(ends), low - span) - 0.1 * span, min(max(ends), high + span, 100.0) + 0.05 * span)


def _ends(methods: Sequence[Method]) -> list[float]:
    """Scores and the ends of their spreads, where they have any."""
    return [end for method in methods for end in (method.mean, *method.ends) if end is not None]


def _draw_baselines(axes: Axes, task: Comparison) -> None:
    """Scores that need no training, where the picture reaches them; the legend names them, equal ones together."""
    names: dict[float, list[str]] = defaultdict(list)
    for name, value in task.baselines.items():
        names[value].append(name)
    low, high = axes.get_ylim()
    for value, equal in names.items():
        if low < value < high:
            label = f"{', '.join(equal)} ({value:.2f} %)"
            axes.axhline(value, color="0.5", linestyle=":", linewidth=1.0, zorder=0, label=label)


# --- scores of a grid -------------------------------------------------------------------------------------------------


def scores(tasks: Sequence[Comparison], rows: Sequence[str], title: str) -> Picture:
    """Scores of `rows` with their spread: a panel for each task, or curves over fractions of the data."""
    if len({task.fraction for task in tasks}) > 1:
        return _low_data(tasks, rows, title)

    def draw() -> Figure:
        size = 3.2, 0.9 + 0.24 * len(rows)
        figure, panels = grid_of_panels(len(tasks), size=size, widest=WIDEST, sharey=True, more=(1.6, 0.6))
        for axes, task in zip(panels, tasks, strict=True):
            for line, name in enumerate(rows):
                if method := task.method(name):
                    draw_mark(axes, line, method.mean, style_of(method.family), method.ends)
            axes.set_title(task.title, fontsize=9)
            axes.set_xlabel(f"{task.metric} (%)")
            name_lines(axes, rows)
        figure.suptitle(title, fontsize=11)
        return figure

    return Picture(
        "scores",
        "Scores by task",
        "Mean over seeds and one standard deviation; a line without a mark has no finished run.",
        lambda: _scores_in_words(tasks),
        draw,
    )


def _low_data(tasks: Sequence[Comparison], rows: Sequence[str], title: str) -> Picture:
    """Scores over the fraction of the training split (log axis); the level of full fine-tuning on all data."""
    groups: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: task.fraction):
        groups[task.model, task.dataset].append(task)
    several = len({model for model, _ in groups}) > 1

    def draw() -> Figure:
        figure, panels = grid_of_panels(len(groups), size=(3.6, 3.6), widest=WIDEST, more=(0, 0.6))
        for axes, ((model, dataset), group) in zip(panels, groups.items(), strict=True):
            axes.set_title(f"{dataset}, {model}" if several else dataset, fontsize=9)
            _draw_fractions(axes, group, rows)
        figure.suptitle(title, fontsize=11)
        legend_below(figure, columns=min(len(groups), WIDEST) + 1)
        return figure

    return Picture(
        "scores",
        "Scores over the share of the training data",
        "Mean over seeds and one standard deviation over the share of the training split (logarithmic; methods at one "
        f"share stand side by side); the dashed line is {FULL} on all data.",
        lambda: _scores_in_words([task for group in groups.values() for task in group]),
        draw,
    )


def _draw_fractions(axes: Axes, group: Sequence[Comparison], rows: Sequence[str]) -> None:
    known = {method.name: method for task in group for method in task.finished}
    for method, line in with_lines([known[name] for name in rows if name in known]):
        shift = STEP ** (rows.index(method.name) - (len(rows) - 1) / 2)
        points = [(shift * 100 * task.fraction, there) for task in group if (there := task.method(method.name))]
        style = style_of(method.family)
        look = line_of(style, line) | {"linewidth": 1.2, "zorder": 2 + style.filled}
        axes.plot([x for x, _ in points], [there.mean for _, there in points], label=method.name, **look)
        for x, there in points:
            low, high = there.ends
            if low is not None and high is not None:
                axes.vlines(x, low, high, color=style.color, linewidth=1.0)
    whole = next((task.method(FULL) for task in group if task.fraction == 1), None)
    if whole:
        label = f"{FULL} on all data"
        axes.axhline(whole.mean, color="0.3", linestyle=(0, (6, 3)), linewidth=1.0, label=label, zorder=0)
    percent = [100 * task.fraction for task in group]
    axes.set(xscale="log", xlabel="share of the training split (%)", ylabel=f"{group[0].metric} (%)")
    axes.xaxis.set_major_locator(FixedLocator(percent))
    axes.set_xticklabels([f"{value:g}" for value in percent])
    axes.xaxis.set_minor_locator(NullLocator())
    tidy(axes)


# --- scores in words --------------------------------------------------------------------------------------------------


def _scores_in_words(tasks: Sequence[Comparison]) -> str:
    return " ".join(
        f"{task.title}: {'; '.join(f'{method.name} {method}' for method in task.finished)}." for task in tasks
    )
