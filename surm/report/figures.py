"""Pictures of an experiment: score over trainable parameters, and learning curves."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from surm.methods.names import family_name
from surm.report.experiments import Experiment, Method


class Style(NamedTuple):
    color: str
    marker: str
    filled: bool


# The Okabe-Ito palette and Tol's wine, safe for colour-blind readers; no two methods share both marker and filling, so
# that colour is never needed. Filled: structured matrices; open: what they are compared with.
_STYLES: dict[str, Style] = {
    "linear_probe": Style("#7F7F7F", "s", filled=False),
    "bitfit": Style("#7F7F7F", "^", filled=False),
    "lora": Style("#000000", "o", filled=False),
    "full": Style("#000000", "D", filled=False),
    "bottleneck": Style("#882255", "p", filled=False),
    "lora_fa": Style("#000000", "d", filled=False),
    "attention_tuning": Style("#7F7F7F", "X", filled=False),
    "layernorm_tuning": Style("#7F7F7F", "P", filled=False),
    "peft_adalora": Style("#882255", "<", filled=False),
    "peft_dora": Style("#882255", ">", filled=False),
    "peft_vera": Style("#882255", "*", filled=False),
    "peft_c3a": Style("#882255", "h", filled=False),
    "peft_lokr": Style("#882255", "8", filled=False),
    "peft_boft": Style("#882255", "H", filled=False),
    "circulant": Style("#0072B2", "o", filled=True),
    "toeplitz": Style("#D55E00", "s", filled=True),
    "kronecker": Style("#009E73", "^", filled=True),
    "ldr": Style("#CC79A7", "D", filled=True),
    "skew_circulant": Style("#56B4E9", "v", filled=True),
    "low_rank": Style("#E69F00", "P", filled=True),
    "circulant+skew_circulant": Style("#56B4E9", "X", filled=True),
}
_OTHER = Style("#7F7F7F", "v", filled=False)
LINES = ("-", "--", ":", "-.")
_PARAMETERS = "trainable parameters, without head"


def figure_path(output: Path, name: str, kind: str) -> Path:
    """Where a figure lies: `<output>/figures/<name>_<kind>.png`."""
    return output / "figures" / f"{name}_{kind}.png"


def accuracy_over_parameters(panels: Sequence[Experiment], path: Path) -> None:
    """Draw mean score with 95 % interval over trainable parameters (log axis), one panel for each experiment.

    Methods with one and the same count stand side by side in a shaded strip; those that train the head alone stand
    left of a break in the axis. Members of a family (ranks, numbers of terms) are joined by a line.
    """
    figure = Figure(figsize=(5.8 * len(panels), 4.8), dpi=160, layout="constrained")
    for axes, experiment in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_scores(axes, experiment)
    _finish(figure, panels, path)


def learning_curves(experiment: Experiment, path: Path) -> None:
    """Draw training loss (log axis) and the reported score over epochs: mean of the seeds, band of their range."""
    figure = Figure(figsize=(10.8, 4.6), dpi=160, layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    for place, (method, line) in enumerate(with_lines(experiment)):
        style, found = style_of(method.family), curves(method)
        look: dict[str, Any] = {
            "color": style.color,
            "linestyle": line,
            "linewidth": 1.4,
            "label": method.name,
            "zorder": 2 + style.filled,
        } | marks(style)
        if "loss" in found:
            _draw_band(loss_axes, found["loss"], **look, markevery=(0.02 * place, 0.16))
        if "score" in found:
            _draw_band(score_axes, found["score"], **look)
    loss_axes.set(yscale="log", xlabel="epoch", ylabel="training loss")
    score_axes.set(xlabel="epoch", ylabel=f"{metric_of(experiment)} (%)")
    for axes in (loss_axes, score_axes):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes)
    figure.suptitle(experiment.plan.title, fontsize=11)
    _finish(figure, [experiment], path)


def curves(method: Method) -> dict[str, pd.DataFrame]:
    """Training loss and reported score (percent) of a method by epoch: mean, least and greatest of the seeds."""
    history = pd.concat([pd.DataFrame(run.happened["history"]) for run in method.finished], ignore_index=True)
    found = {"loss": history.dropna(subset="loss")} if "loss" in history else {}
    if "evaluation" in history:
        evaluated = history.dropna(subset="evaluation")
        metric = method.finished[0].metric
        found["score"] = evaluated.assign(score=[100 * entry[metric] for entry in evaluated["evaluation"]])
    return {name: rows.groupby("epoch")[name].agg(["mean", "min", "max"]) for name, rows in found.items()}


# --- parts of the first picture ---------------------------------------------------------------------------------------


def _draw_scores(axes: Axes, experiment: Experiment) -> None:
    axes.set_title(experiment.plan.title, fontsize=11)
    methods = [method for method in experiment.methods if method.finished]
    if not methods:
        axes.text(0.5, 0.5, "no finished run", ha="center", va="center", transform=axes.transAxes)
        return
    places = _draw_strips(axes, methods)
    families: dict[str, list[Method]] = defaultdict(list)
    for method in methods:
        families[method.family].append(method)
    for members in families.values():
        _draw_family(axes, members, places)
    _limit(axes, methods)
    _draw_baselines(axes, experiment)
    axes.set(xlabel=_PARAMETERS, ylabel=f"{metric_of(experiment)} (%)")
    tidy(axes)


class Strips(NamedTuple):
    """Where the methods of one experiment stand on a log axis of trainable parameters."""

    places: dict[str, float]  # method -> x
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
    places: dict[str, float] = {}
    shared: dict[int, tuple[float, float, float]] = {}
    for count, group in counts.items():
        center = count or head_only
        offsets = np.arange(len(group)) - (len(group) - 1) / 2
        places |= {method.name: center * step**offset for method, offset in zip(group, offsets, strict=True)}
        if len(group) > 1:
            edge = step ** (len(group) / 2)
            shared[count] = center, center / edge, center * edge
    return Strips(places, shared, (low, high), head_only if 0 in counts else None)


def _draw_strips(axes: Axes, methods: Sequence[Method]) -> dict[str, float]:
    """Set up the log axis and shade the strips; return each method's place on it."""
    found = strips(methods)
    axes.set(xscale="log", xlim=found.limits)
    for count, (center, left, right) in found.shared.items():
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
    ticks = {10.0**power: f"$10^{{{power}}}$" for power in found.powers()}
    if found.head_only is not None:
        ticks[found.head_only] = "0\n(head only)"
        axes.text(
            found.head_only * 12**0.45,
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
    return found.places


def _step(counts: dict[int, list[Method]], *, widest: float) -> float:
    """Factor between neighbours of one count, small enough that the strips stay apart."""
    sizes = [(count, len(group)) for count, group in counts.items() if count > 0 and len(group) > 1]
    room: list[float] = [(b / a) ** (1.6 / (size_a + size_b)) for (a, size_a), (b, size_b) in pairwise(sizes)]
    return min([widest, *room])


def _draw_family(axes: Axes, members: Sequence[Method], places: dict[str, float]) -> None:
    """Draw the members with their intervals, joined by a line; the legend names them from left to right."""
    style = style_of(members[0].family)
    ordered = sorted(members, key=lambda method: method.trainable_parameters)
    name = family_name(ordered[0].family)
    options = ", ".join(method.name.removeprefix(name).strip(", ") or "default" for method in ordered)
    axes.plot(
        [places[method.name] for method in ordered],
        [method.mean.value for method in ordered],
        color=style.color,
        linewidth=0.8,
        label=ordered[0].name if len(ordered) == 1 else f"{name} ({options})",
        zorder=3,
        **marks(style),
    )
    for method in ordered:
        if method.mean.low is not None and method.mean.high is not None:
            axes.vlines(places[method.name], method.mean.low, method.mean.high, color=style.color, linewidth=1.4)


def _limit(axes: Axes, methods: Sequence[Method]) -> None:
    """Fit scores and intervals; an interval longer than the range of the scores runs out of the picture."""
    means = [method.mean for method in methods]
    low, high = min(mean.value for mean in means), max(mean.value for mean in means)
    span = max(high - low, 1.0)
    ends = [end for mean in means for end in (mean.value, mean.low, mean.high) if end is not None]
    axes.set_ylim(max(min(ends), low - span) - 0.1 * span, min(max(*ends), high + span, 100.0) + 0.05 * span)


def _draw_baselines(axes: Axes, experiment: Experiment) -> None:
    """Scores that need no training, where the picture reaches them; the legend names them, equal ones together."""
    names: dict[float, list[str]] = defaultdict(list)
    for name, value in experiment.finished[0].happened.get("baselines", {}).items():
        names[100 * value].append(name)
    low, high = axes.get_ylim()
    for value, equal in names.items():
        if low < value < high:
            label = f"{', '.join(equal)} ({value:.2f} %)"
            axes.axhline(value, color="0.5", linestyle=":", linewidth=1.0, zorder=0, label=label)


# --- shared by all pictures ------------------------------------------------------------------------------------------


def style_of(family: str) -> Style:
    """Colour and marker of a method's family, the same in every picture."""
    return _STYLES.get(family, _OTHER)


def marks(style: Style) -> dict[str, Any]:
    """Keywords of `Axes.plot` for the marker of a style."""
    return {
        "marker": style.marker,
        "markersize": 6,
        "markerfacecolor": style.color if style.filled else "white",
        "markeredgewidth": 1.4,
    }


def with_lines(experiment: Experiment) -> Iterable[tuple[Method, str]]:
    """Each method with finished runs, and a line style that tells the members of a family apart."""
    drawn: dict[str, int] = defaultdict(int)
    for method in experiment.methods:
        if method.finished:
            yield method, LINES[drawn[method.family] % len(LINES)]
            drawn[method.family] += 1


def _draw_band(axes: Axes, by_epoch: pd.DataFrame, **look: Any) -> None:
    axes.fill_between(by_epoch.index, by_epoch["min"], by_epoch["max"], color=look["color"], alpha=0.08, linewidth=0)
    axes.plot(by_epoch.index, by_epoch["mean"], **look)


def metric_of(experiment: Experiment) -> str:
    """Name of the reported metric."""
    return experiment.finished[0].metric if experiment.finished else "score"


def tidy(axes: Axes) -> None:
    """Leave the left and the lower spine, and a light grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _finish(figure: Figure, experiments: Sequence[Experiment], path: Path) -> None:
    """Add one legend below the panels and the label of numbers that are no evidence, then save."""
    legend_below(figure)
    if labels := {experiment.label for experiment in experiments if not experiment.is_evidence}:
        figure.text(0.01, 0.99, ", ".join(sorted(labels)), color="#D55E00", fontsize=10, weight="bold", va="top")
    save(figure, path)


def legend_below(figure: Figure, *, columns: int | None = None) -> None:
    """Add one legend below the panels, each label once; by default two columns a panel."""
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if entries:
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=columns or 2 * len(figure.axes),
            fontsize=9,
            frameon=False,
        )


def save(figure: Figure, path: Path) -> None:
    """Write a picture whose bytes do not name the version of the library, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
