"""Figures of methods on tasks: scores, learning curves and cost."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from surm.methods.names import style_of
from surm.report.drawing import (
    Picture,
    draw_band,
    draw_mark,
    grid_of_panels,
    legend_below,
    line_of,
    marks,
    name_lines,
    tidy,
)
from surm.report.gather import Comparison, Method

LINES = ("-", "--", ":", "-.")  # of the members of a family
FULL = "full fine-tuning"
MEBIBYTE = 2**20
WIDEST = 3  # panels in one line
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
        figure, panels = grid_of_panels(len(tasks), size=(5.8, 4.8), widest=2)
        for axes, task in zip(panels, tasks, strict=True):
            _draw_scores(axes, task)
        legend_below(figure, columns=2 * min(len(tasks), 2))
        return figure

    return Picture(
        "accuracy_over_parameters",
        "Score over trainable parameters",
        "Mean over seeds and one standard deviation, over parameters without the head. Methods of one count stand side "
        "by side in a shaded strip; filled marks are structured matrices, open ones what they are compared with.",
        lambda: _scores_in_words(tasks),
        draw,
        file,
    )


def _draw_scores(axes: Axes, task: Comparison) -> None:
    """Methods of one count stand side by side in a shaded strip; those that train the head alone left of a break.

    Members of a family (ranks, numbers of terms) are joined by a line.
    """
    axes.set_title(task.title, fontsize=11)
    if not task.finished:
        axes.text(0.5, 0.5, "no finished run", ha="center", va="center", transform=axes.transAxes)
        return
    xs = _draw_strips(axes, task.finished)
    families: dict[str, list[Method]] = defaultdict(list)
    for method in task.finished:
        families[method.family].append(method)
    for members in families.values():
        _draw_family(axes, members, xs)
    _limit(axes, task.finished)
    _draw_baselines(axes, task)
    axes.set(xlabel="trainable parameters, without head", ylabel=f"{task.metric} (%)")
    tidy(axes)


class Strips(NamedTuple):
    """Where the methods of one experiment stand on a log axis of trainable parameters."""

    xs: dict[str, float]  # method -> x
    shared: dict[int, tuple[float, float, float]]  # count of several methods -> centre and edges of its strip
    limits: tuple[float, float]
    head_only: float | None  # x of the methods that train the head alone

    def powers(self) -> list[int]:
        """Exponents of the ticks, powers of ten."""
        low, high = self.limits
        smallest = low * 2 if self.head_only is None else self.head_only * 12
        return [power for power in range(12) if smallest / 3 < 10**power < high]


def strips(methods: Sequence[Method]) -> Strips:
    """Methods of one count stand side by side; those that train the head alone stand left of a break in the axis."""
    counts: dict[int, list[Method]] = defaultdict(list)
    for method in sorted(methods, key=lambda method: method.trainable_parameters):
        counts[method.trainable_parameters].append(method)
    smallest = min((count for count in counts if count > 0), default=1)
    head_only = smallest / 12
    low, high = (head_only if 0 in counts else smallest) / 2, max(*counts, 10) * 2
    step = _step(counts, widest=(high / low) ** 0.022)
    xs: dict[str, float] = {}
    shared: dict[int, tuple[float, float, float]] = {}
    for count, group in counts.items():
        center = count or head_only
        offsets = np.arange(len(group)) - (len(group) - 1) / 2
        xs |= {method.name: center * step**offset for method, offset in zip(group, offsets, strict=True)}
        if len(group) > 1:
            edge = step ** (len(group) / 2)
            shared[count] = center, center / edge, center * edge
    return Strips(xs, shared, (low, high), head_only if 0 in counts else None)


def _draw_strips(axes: Axes, methods: Sequence[Method]) -> dict[str, float]:
    """Set up the log axis and shade the strips; return each method's x."""
    layout = strips(methods)
    axes.set(xscale="log", xlim=layout.limits)
    for count, (center, left, right) in layout.shared.items():
        axes.axvspan(left, right, color="0.94", zorder=0, linewidth=0)
        axes.annotate(
            f"{count:,} each",
            (center, 0),
            (0, 4),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            fontsize=8,
            color="0.35",
            ha="center",
            va="bottom",
            rotation=90,
        )
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
    return layout.xs


def _step(counts: dict[int, list[Method]], *, widest: float) -> float:
    """Factor between neighbours of one count, small enough that the strips stay apart."""
    sizes = [(count, len(group)) for count, group in counts.items() if count > 0 and len(group) > 1]
    room: list[float] = [(b / a) ** (1.6 / (size_a + size_b)) for (a, size_a), (b, size_b) in pairwise(sizes)]
    return min([widest, *room])


def _draw_family(axes: Axes, members: Sequence[Method], xs: dict[str, float]) -> None:
    """Draw the members with their spread, joined by a line; the legend names them from left to right."""
    style = style_of(members[0].family)
    ordered = sorted(members, key=lambda method: method.trainable_parameters)
    options = ", ".join(method.name.removeprefix(style.label).strip(", ") or "default" for method in ordered)
    axes.plot(
        [xs[method.name] for method in ordered],
        [method.mean for method in ordered],
        color=style.color,
        linewidth=0.8,
        label=ordered[0].name if len(ordered) == 1 else f"{style.label} ({options})",
        zorder=3,
        **marks(style),
    )
    for method in ordered:
        low, high = method.ends
        if low is not None and high is not None:
            axes.vlines(xs[method.name], low, high, color=style.color, linewidth=1.4)


def _limit(axes: Axes, methods: Sequence[Method]) -> None:
    """Fit scores and their spread; a spread longer than the range of the scores runs out of the picture."""
    low, high = min(method.mean for method in methods), max(method.mean for method in methods)
    span = max(high - low, 1.0)
    ends = [end for method in methods for end in (method.mean, *method.ends) if end is not None]
    axes.set_ylim(max(min(ends), low - span) - 0.1 * span, min(max(ends), high + span, 100.0) + 0.05 * span)


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


# --- learning curves --------------------------------------------------------------------------------------------------


def learning_curves(tasks: Sequence[Comparison], *, file: bool = True) -> Picture:
    """Training loss (log axis) and the reported score over epochs: mean of the seeds, band of their range."""

    def draw() -> Figure:
        figure, panels = grid_of_panels(2 * len(tasks), size=(5.4, 4.6), widest=2)
        for task, loss_axes, score_axes in zip(tasks, panels[::2], panels[1::2], strict=True):
            _draw_curves(task, loss_axes, score_axes)
        if len(tasks) == 1:
            figure.suptitle(tasks[0].title, fontsize=11)
        else:
            for axes, task in zip(panels, [task for task in tasks for _ in range(2)], strict=True):
                axes.set_title(task.title, fontsize=11)
        legend_below(figure)
        return figure

    def words() -> str:
        return " ".join(f"{task.title}, at the end: {'; '.join(map(_last_values, task.finished))}." for task in tasks)

    return Picture(
        "learning_curves",
        "Learning curves",
        "Training loss (logarithmic) and score on the reported split by epoch: mean of the seeds, band of their range.",
        words,
        draw,
        file,
    )


def curves(method: Method) -> dict[str, pd.DataFrame]:
    """Training loss and reported score (percent) of a method by epoch: mean, least and greatest of the seeds."""
    frames = [pd.DataFrame(run.happened["history"]).assign(metric=run.metric) for run in method.finished]
    history = pd.concat(frames, ignore_index=True)
    of_quantity = {"loss": history.dropna(subset="loss")} if "loss" in history else {}
    if "evaluation" in history:
        evaluated = history.dropna(subset="evaluation")
        pairs = zip(evaluated["evaluation"], evaluated["metric"], strict=True)
        of_quantity["score"] = evaluated.assign(score=[100 * scores[metric] for scores, metric in pairs])
    return {
        name: rows.groupby("epoch")[name].agg(["mean", "min", "max"]) for name, rows in of_quantity.items() if len(rows)
    }


def _draw_curves(task: Comparison, loss_axes: Axes, score_axes: Axes) -> None:
    for number, (method, line) in enumerate(with_lines(task.finished)):
        style, by_quantity = style_of(method.family), curves(method)
        look = {"label": method.name, "zorder": 2 + style.filled} | line_of(style, line)
        if "loss" in by_quantity:
            draw_band(loss_axes, by_quantity["loss"], look, markevery=(0.02 * number, 0.16))
        if "score" in by_quantity:
            draw_band(score_axes, by_quantity["score"], look)
    loss_axes.set(yscale="log", xlabel="epoch", ylabel="training loss")
    score_axes.set(xlabel="epoch", ylabel=f"{task.metric} (%)")
    for axes in (loss_axes, score_axes):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes)


def _last_values(method: Method) -> str:
    ends = (f"{name} {frame['mean'].iloc[-1]:.4g}" for name, frame in curves(method).items())
    return f"{method.name} {', '.join(ends)}"


# --- cost -------------------------------------------------------------------------------------------------------------


def cost(tasks: Sequence[Comparison]) -> Picture:
    """Seconds per step, peak memory and trainable parameters of every method, one mark for each task."""
    names = list(dict.fromkeys(method.name for task in tasks for method in task.finished))

    def measured(measure: Callable[[Method], float | None]) -> Iterator[tuple[Comparison, Method, float]]:
        for task in tasks:
            for method in task.finished:
                if value := measure(method):  # not measured; and a logarithmic axis has no 0
                    yield task, method, value

    def draw() -> Figure:
        figure = Figure(figsize=(10.8, 1.1 + 0.24 * len(names)), dpi=160, layout="constrained")
        for axes, (title, measure) in zip(figure.subplots(1, len(COSTS), sharey=True), COSTS.items(), strict=True):
            for _, method, value in measured(measure):
                draw_mark(axes, names.index(method.name), value, style_of(method.family))
            axes.set_title(title, fontsize=9, loc="left")
            axes.set(**({"xscale": "log"} if title == TRAINED else {"xlim": (0, None)}))
            name_lines(axes, names)
        return figure

    return Picture(
        "cost",
        "Cost",
        "Mean seconds per step and peak memory over seeds, and trained parameters (logarithmic; none: the head alone).",
        lambda: "; ".join(
            f"{method.name}, {task.title}: {value:,.4g} {title}"
            for title, measure in COSTS.items()
            for task, method, value in measured(measure)
        ),
        draw,
        file=False,
    )


def seconds_per_step(method: Method) -> float | None:
    """Mean over seeds; a run of a single step has none, as the first step of a process is not measured."""
    seconds = [run.happened["seconds_per_step"] for run in method.finished if run.happened.get("seconds_per_step")]
    return fmean(seconds) if seconds else None


def peak_memory(method: Method) -> float | None:
    """Most memory of a seed, in MiB."""
    peaks = [run.happened["peak_memory_bytes"] for run in method.finished if run.happened.get("peak_memory_bytes")]
    return max(peaks) / MEBIBYTE if peaks else None


TRAINED = "trained parameters"
COSTS: Mapping[str, Callable[[Method], float | None]] = {
    "seconds per step": seconds_per_step,
    "MiB of peak memory": peak_memory,
    TRAINED: lambda method: method.trainable_parameters,
}


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


# --- shared by these figures ---------------------------------------------------------------------------------------


def with_lines(methods: Sequence[Method]) -> Iterator[tuple[Method, str]]:
    """Each method, and a line style that tells the members of a family apart."""
    drawn: dict[str, int] = defaultdict(int)
    for method in methods:
        yield method, LINES[drawn[method.family] % len(LINES)]
        drawn[method.family] += 1


def _scores_in_words(tasks: Sequence[Comparison]) -> str:
    return " ".join(
        f"{task.title}: {'; '.join(f'{method.name} {method}' for method in task.finished)}." for task in tasks
    )
