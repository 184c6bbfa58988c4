"""Interactive figures as data for Plotly, drawn by the page: score over parameters, learning curves, cost."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from surm.methods.names import family_name
from surm.report.experiments import Experiment, Method
from surm.report.figures import Style, curves, metric_of, strips, style_of, with_lines
from surm.report.tables import MEBIBYTE

Trace = dict[str, Any]
Axis = dict[str, Any]

GREY = "#7F7F7F"
STRIP = "#EEEEEE"  # the page has another shade of these two, and of black, for a dark background
LOG: Axis = {"type": "log", "tickformat": "~g"}
_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "D": "diamond",
    "d": "diamond-tall",
    "p": "pentagon",
    "h": "hexagon",
    "H": "hexagon2",
    "8": "octagon",
    "*": "star",
    "X": "x",
    "P": "cross",
}
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_UNITS = ("", "k", "M", "G")


@dataclass(frozen=True)
class Panel:
    """One pair of axes: title, settings of Plotly's axes, and what is drawn; shapes are in coordinates of the axes."""

    title: str
    x: Axis
    y: Axis
    traces: Sequence[Trace]
    shapes: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Plot:
    """A figure of one or several panels, which the page sets side by side or below each other, as wide as it is.

    `alt` says the numbers in words. `rows` are names on the y axis that all panels share: printed once a line.
    """

    kind: str
    title: str
    caption: str
    alt: str
    panels: Sequence[Panel]
    columns: int = 2
    height: int = 340  # pixels of one panel
    rows: Sequence[str] = ()


def accuracy_over_parameters(panels: Sequence[tuple[str, Experiment]]) -> Plot:
    """Mean score with 95 % interval over trainable parameters (log axis), a panel for each titled experiment."""
    return Plot(
        "accuracy_over_parameters",
        "Score over trainable parameters",
        "Mean over seeds with its 95 % interval, over parameters without the head. Methods of one count stand side by "
        "side in a shaded strip; filled marks are structured matrices, open ones what they are compared with.",
        " ".join(_scores_in_words(title, experiment) for title, experiment in panels),
        [_score_panel(title, experiment) for title, experiment in panels],
        height=420 if len(panels) == 1 else 340,
    )


def learning_curves(panels: Sequence[tuple[str, Experiment]]) -> Plot:
    """Training loss (log axis) and reported score over epochs: mean of the seeds, band of their range."""
    drawn = [panel for title, experiment in panels for panel in _curve_panels(title, experiment)]
    return Plot(
        "learning_curves",
        "Learning curves",
        "Training loss (logarithmic) and score on the reported split by epoch: mean of the seeds, band of their range.",
        " ".join(_curves_in_words(title, experiment) for title, experiment in panels),
        drawn,
    )


def cost(panels: Sequence[tuple[str, Experiment]]) -> Plot:
    """Seconds per step, peak memory and trainable parameters of every method, one mark for each experiment."""
    names = list(dict.fromkeys(method.name for _, experiment in panels for method in _finished(experiment)))
    drawn, words = [], []
    for title, measure, axis in _COSTS:
        traces = []
        for task, experiment in panels:
            for method in _finished(experiment):
                value = measure(method)
                if value:  # not measured; and a logarithmic axis has no 0
                    text = f"{method.name}{_on(task)}: {value:,.4g} {title}"
                    words.append(text)
                    traces.append(mark(style_of(method.family), method.name, value, method.name, text))
        drawn.append(Panel(title, dict(axis), names_axis(names), traces))
    return Plot(
        "cost",
        "Cost",
        "Mean seconds per step and peak memory over seeds, and trained parameters (logarithmic; none: the head alone).",
        "; ".join(words) + ".",
        drawn,
        columns=3,
        height=100 + 24 * len(names),
        rows=names,
    )


def _seconds(method: Method) -> float | None:
    seconds = [run.happened["seconds_per_step"] for run in method.finished if run.happened.get("seconds_per_step")]
    return fmean(seconds) if seconds else None


def _memory(method: Method) -> float | None:
    peaks = [run.happened["peak_memory_bytes"] for run in method.finished if run.happened.get("peak_memory_bytes")]
    return max(peaks) / MEBIBYTE if peaks else None


_COSTS: tuple[tuple[str, Callable[[Method], float | None], Axis], ...] = (
    ("seconds per step", _seconds, {"rangemode": "tozero"}),
    ("MiB of peak memory", _memory, {"rangemode": "tozero"}),
    ("trained parameters", lambda method: method.trainable_parameters, LOG | {"tickformat": "~s"}),
)


# --- panels -----------------------------------------------------------------------------------------------------------


def _score_panel(title: str, experiment: Experiment) -> Panel:
    methods = _finished(experiment)
    found = strips(methods)
    families: dict[str, list[Method]] = defaultdict(list)
    for method in sorted(methods, key=lambda method: method.trainable_parameters):
        families[method.family].append(method)
    traces = [_family_trace(members, found.places) for members in families.values()]
    ticks = {10.0**power: _short(10**power) for power in found.powers()}
    ticks |= {} if found.head_only is None else {found.head_only: "0<br>(head)"}
    x = {
        "title": {"text": "trainable parameters, without head"},
        "type": "log",
        "range": [float(np.log10(limit)) for limit in found.limits],
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "showgrid": False,
    }
    shapes = [
        {"type": "rect", "x0": left, "x1": right, "y0": 0, "y1": 1, "fillcolor": STRIP, "line": {"width": 0}}
        for _, left, right in found.shared.values()
    ]
    return Panel(title, x, {"title": {"text": f"{metric_of(experiment)} (%)"}}, traces, shapes)


def _family_trace(members: Sequence[Method], places: Mapping[str, float]) -> Trace:
    """The members of a family (ranks, numbers of terms), joined by a line."""
    style, name = style_of(members[0].family), family_name(members[0].family)
    options = ", ".join(method.name.removeprefix(name).strip(", ") or "default" for method in members)
    return {
        "name": members[0].name if len(members) == 1 else f"{name} ({options})",
        "mode": "lines+markers",
        "x": [places[method.name] for method in members],
        **estimates(members),
        "text": [f"{in_words(method)}<br>{method.trainable_parameters:,} parameters" for method in members],
        "hovertemplate": "%{text}<extra></extra>",
        **look(style),
    }


def _curve_panels(title: str, experiment: Experiment) -> list[Panel]:
    labels = {"loss": "training loss", "score": f"{metric_of(experiment)} (%)"}
    traces: dict[str, list[Trace]] = {"loss": [], "score": []}
    for method, line in with_lines(experiment):
        for quantity, frame in curves(method).items():
            columns = [frame[column].tolist() for column in ("mean", "min", "max")]
            traces[quantity] += band(style_of(method.family), method.name, frame.index.tolist(), *columns, line=line)
    return [
        Panel(
            f"{labels[quantity]}{_on(title)}",
            {"title": {"text": "epoch"}},
            {"title": {"text": labels[quantity]}} | (LOG if quantity == "loss" else {}),
            traces[quantity],
        )
        for quantity in labels
    ]


# --- shared with the figures of grids and studies ---------------------------------------------------------------------


def look(style: Style, line: str = "-", *, size: int = 9) -> dict[str, Any]:
    """Colour, mark and line of a trace."""
    symbol = _SYMBOLS[style.marker] + ("" if style.filled else "-open")
    edge = {} if style.filled else {"line": {"width": 2}}
    return {
        "marker": {"color": style.color, "symbol": symbol, "size": size, **edge},
        "line": {"color": style.color, "width": 1.6, "dash": _DASHES[line]},
    }


def mark(style: Style, name: str, x: float, y: str, text: str, spread: tuple[float, float] | None = None) -> Trace:
    """One mark on the line of a name; `spread` are the ends of its interval."""
    bar = {"error_x": _bar([x], [spread])} if spread else {}
    return {
        "name": name,
        "mode": "markers",
        "x": [x],
        "y": [y],
        "text": [text],
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
        **bar,
        **look(style),
    }


def band(
    style: Style,
    name: str,
    x: Sequence[float],
    mean: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    line: str = "-",
    marks: int = 12,
) -> list[Trace]:
    """A line with at most so many marks, and the band of a range behind it."""
    appearance = look(style, line, size=8)
    marker = appearance["marker"] | ({"maxdisplayed": marks} if len(x) > marks else {})
    shade = {
        "name": name,
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "mode": "lines",
        "fill": "toself",
        "fillcolor": f"{style.color}1F",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [
        shade,
        {
            "name": name,
            "x": list(x),
            "y": list(mean),
            "mode": "lines+markers",
            "hovertemplate": f"{name}: %{{y:.4~g}}<extra></extra>",
            "line": appearance["line"],
            "marker": marker,
        },
    ]


def estimates(methods: Sequence[Method]) -> dict[str, Any]:
    """Means as y, with bars for those that have an interval."""
    means = [method.mean for method in methods]
    spreads = [None if mean.low is None or mean.high is None else (mean.low, mean.high) for mean in means]
    values = [mean.value for mean in means]
    return {"y": values, "error_y": _bar(values, spreads)}


def _bar(values: Sequence[float], spreads: Sequence[tuple[float, float] | None]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [spread[1] - value if spread else 0 for value, spread in zip(values, spreads, strict=True)],
        "arrayminus": [value - spread[0] if spread else 0 for value, spread in zip(values, spreads, strict=True)],
        "thickness": 1.6,
        "width": 0,
    }


def names_axis(names: Sequence[str]) -> Axis:
    """An axis with a line for each name, from top to bottom."""
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(names),
        "range": [len(names) - 0.5, -0.5],
        "automargin": True,
    }


def in_words(method: Method) -> str:
    """Name, mean and interval of a method."""
    mean = method.mean
    interval = f"[{mean.low:.2f}, {mean.high:.2f}]" if mean.low is not None else f"({mean.reason})"
    return f"{method.name} {mean.value:.2f} % {interval}"


def _scores_in_words(title: str, experiment: Experiment) -> str:
    return f"{title or 'Scores'}: {'; '.join(in_words(method) for method in _finished(experiment))}."


def _curves_in_words(title: str, experiment: Experiment) -> str:
    ends = [
        f"{method.name} " + ", ".join(f"{name} {frame['mean'].iloc[-1]:.4g}" for name, frame in curves(method).items())
        for method in _finished(experiment)
    ]
    return f"{title or 'Means'}, at the end: {'; '.join(ends)}."


def _finished(experiment: Experiment) -> list[Method]:
    return [method for method in experiment.methods if method.finished]


def _on(task: str) -> str:
    return f", {task}" if task else ""


def _short(count: int) -> str:
    """A power of ten with a unit: 10k, 1M."""
    group = min((len(str(count)) - 1) // 3, len(_UNITS) - 1)
    return f"{count // 1000**group}{_UNITS[group]}"
