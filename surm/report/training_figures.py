"""Figures of training: learning curves and cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from surm.methods.names import style_of
from surm.report.drawing import (
    Picture,
    draw_band,
    draw_mark,
    grid_of_panels,
    legend_below,
    line_of,
    name_lines,
    tidy,
    with_lines,
)
from surm.report.gather import Comparison, Method

MEBIBYTE = 2**20

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
    return {name: _mean_and_range(rows, name) for name, rows in of_quantity.items() if len(rows)}


def _mean_and_range(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    frame = rows.groupby("epoch")[name].agg(["mean", "min", "max"])
    # The sum of losses near the largest float overflows, while their mean is within their range.
    return frame.assign(mean=frame["mean"].clip(frame["min"], frame["max"]))


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
    score_axes.sharex(loss_axes)  # scores of a single epoch have no range of their own
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
        figure = Figure(figsize=(10.8, 1.4 + 0.24 * len(names)), dpi=160, layout="constrained")
        for axes, (title, measure) in zip(figure.subplots(1, len(COSTS), sharey=True), COSTS.items(), strict=True):
            for _, method, value in measured(measure):
                draw_mark(axes, names.index(method.name), value, style_of(method.family))
            axes.set_title(title, fontsize=9, loc="left")
            if title == TRAINED:
                axes.set_xscale("log")
            else:
                axes.set_xlim(0, 1.05 * max((value for _, _, value in measured(measure)), default=1.0))
            name_lines(axes, names)
        return figure

    return Picture(
        "cost",
        "Cost",
        "Seconds per step (the fastest seed's), peak memory (the largest) and trained parameters (logarithmic; none: "
        "the head alone).",
        lambda: "; ".join(
            f"{method.name}, {task.title}: {value:,.4g} {title}"
            for title, measure in COSTS.items()
            for task, method, value in measured(measure)
        ),
        draw,
        file=False,
    )


def seconds_per_step(method: Method) -> float | None:
    """The fastest seed's, as what else a machine does only adds to a time.

    A run of a single step has none, as the first step of a process is not measured.
    """
    seconds = [run.happened["seconds_per_step"] for run in method.finished if run.happened.get("seconds_per_step")]
    return min(seconds, default=None)


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
