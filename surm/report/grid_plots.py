"""Interactive figures of a grid: the methods' scores on each task, or over the fraction of the training split."""

from collections import defaultdict
from collections.abc import Sequence

from surm.report.experiments import Column
from surm.report.figures import style_of
from surm.report.grid_figures import FULL, curves, full_on_all_data
from surm.report.plots import (
    Panel,
    Plot,
    Trace,
    accuracy_over_parameters,
    cost,
    estimates,
    in_words,
    learning_curves,
    look,
    mark,
    names_axis,
)


def plots(columns: Sequence[Column], rows: Sequence[str]) -> list[Plot]:
    """All figures of a grid with finished runs."""
    finished = [column for column in columns if column.experiment.finished]
    experiments = [(column.label, column.experiment) for column in finished]
    scores = _curves if len({column.fraction for column in columns}) > 1 else _dots
    return [
        scores(finished, rows),
        accuracy_over_parameters(experiments),
        learning_curves(experiments),
        cost(experiments),
    ]


def _dots(columns: Sequence[Column], rows: Sequence[str]) -> Plot:
    panels, words = [], []
    for column in columns:
        traces = []
        for row in rows:
            method = column.experiment.method(row)
            if method:
                mean = method.mean
                spread = None if mean.low is None or mean.high is None else (mean.low, mean.high)
                traces.append(mark(style_of(method.family), row, mean.value, row, in_words(method), spread))
        words.append(f"{column.label}: {'; '.join(trace['text'][0] for trace in traces)}.")
        x = {"title": {"text": f"{column.experiment.finished[0].metric} (%)"}}
        panels.append(Panel(column.label, x, names_axis(rows), traces))
    caption = "Mean over seeds with its 95 % interval; a line without a mark has no finished run."
    height = 90 + 26 * len(rows)
    return Plot("scores", "Scores by task", caption, " ".join(words), panels, columns=3, height=height, rows=rows)


def _curves(columns: Sequence[Column], rows: Sequence[str]) -> Plot:
    """Scores over the fraction of the training split (log axis); the level of full fine-tuning on all data."""
    of_task: dict[tuple[str, str], list[Column]] = defaultdict(list)
    for column in sorted(columns, key=lambda column: column.fraction):
        of_task[column.model, column.dataset].append(column)
    several = len({model for model, _ in of_task}) > 1
    panels, words = [], []
    for (model, dataset), group in of_task.items():
        title = f"{dataset}, {model}" if several else dataset
        percent = [100 * column.fraction for column in group]
        x = {
            "title": {"text": "share of the training split (%)"},
            "type": "log",
            "tickvals": percent,
            "ticktext": [f"{value:g}" for value in percent],
        }
        y = {"title": {"text": f"{group[0].experiment.finished[0].metric} (%)"}}
        panels.append(Panel(title, x, y, [*_curve_traces(group, rows), *_level(group)]))
        for column in group:
            scores = [in_words(method) for row in rows if (method := column.experiment.method(row))]
            words.append(f"{title}, {100 * column.fraction:g} % of the training split: {'; '.join(scores)}.")
    caption = (
        "Mean over seeds with its 95 % interval over the share of the training split (logarithmic; methods at one "
        f"share stand side by side); the dashed line is {FULL} on all data."
    )
    return Plot("low_data", "Scores over the share of the training data", caption, " ".join(words), panels)


def _curve_traces(group: Sequence[Column], rows: Sequence[str]) -> list[Trace]:
    return [
        {
            "name": row,
            "mode": "lines+markers",
            "x": [100 * fraction * shift for fraction, _ in found],
            **estimates([method for _, method in found]),
            "text": [f"{in_words(method)}<br>{100 * fraction:g} % of the data" for fraction, method in found],
            "hovertemplate": "%{text}<extra></extra>",
            **look(style_of(found[0][1].family), line),
        }
        for row, found, line, shift in curves(group, rows)
    ]


def _level(group: Sequence[Column]) -> list[Trace]:
    """A horizontal line from the least fraction to all data."""
    whole = full_on_all_data(group)
    if whole is None:
        return []
    ends = [100 * group[0].fraction, 100.0]
    return [
        {
            "name": f"{FULL} on all data",
            "mode": "lines",
            "x": ends,
            "y": [whole.mean.value] * 2,
            "hoverinfo": "skip",
            "line": {"color": style_of("full").color, "width": 1, "dash": "dash"},
        }
    ]
