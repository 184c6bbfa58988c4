"""Tables of the page: cells that sort by their number and lead to the records behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import stdev
from typing import Any

import pandas as pd
from scipy.stats import t as student_t

from surm.report import tables
from surm.report.base import Section
from surm.report.experiments import Column
from surm.report.figures import metric_of
from surm.report.grid import Grid, average, counts, reason
from surm.report.sections import Comparison, Study
from surm.report.statistics import LEVEL, Estimate


@dataclass(frozen=True)
class Anchors:
    """Where the records of a section begin, and those of each task and method."""

    section: str
    groups: Mapping[tuple[str, str], str]

    def of(self, method: str, task: str = "") -> str:
        """The anchor of a method on a task; of the section, where it has no record."""
        return self.groups.get((task, method), self.section)


@dataclass(frozen=True)
class Cell:
    """What is printed, a second line in small print, the number to sort by, and the anchor that it leads to."""

    text: str = ""
    note: str = ""
    value: float | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, headings with whether they are of numbers, and rows of as many cells."""

    caption: str
    head: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]

    def without_empty_columns(self) -> "Table":
        kept = [place for place, _ in enumerate(self.head) if any(row[place].text for row in self.rows)]
        rows = [[row[place] for place in kept] for row in self.rows]
        return Table(self.caption, [self.head[place] for place in kept], rows)


def table_of(section: Section, anchors: Anchors) -> Table | None:
    """The section's table; None where nothing is finished."""
    if not section.finished:
        return None
    match section:
        case Comparison():
            return _comparison(section, anchors)
        case Grid():
            return _grid(section, anchors)
        case Study():
            return _study(section, anchors)
    raise TypeError(f"no table for {type(section).__name__}")


def _comparison(section: Comparison, anchors: Anchors) -> Table:
    """The columns of `tables.COLUMNS`, each mean and difference with its 95 % interval in one cell beside it."""
    means = {method.name: method.mean for method in section.experiment.methods if method.finished}
    columns = {name: column for name, column in tables.COLUMNS.items() if name not in ("low", "high")}
    head: list[tuple[str, bool]] = []
    for name, (heading, form) in columns.items():
        head.append((heading, bool(form)))
        head += [("95 % interval", True)] if name in ("mean", "difference") else []
    rows = []
    for row in section.frame().to_dict("records"):
        link = anchors.of(row["method"])
        cells = []
        for name, (_, form) in columns.items():
            cells.append(_cell(row[name], form, link))
            if name == "mean":
                cells.append(_interval(means.get(row["method"]), ".2f", link))
            if name == "difference":
                cells.append(_ends(row["low"], row["high"], "+.2f", link))
        rows.append(cells)
    caption = f"{section.plan.title}: {metric_of(section.experiment)} after the last epoch, mean over seeds"
    return Table(caption, head, rows).without_empty_columns()


def _grid(section: Grid, anchors: Anchors) -> Table:
    averaged = len(section.columns) > 1
    rows = []
    for name in section.rows:
        methods = [method for column in section.columns if (method := column.experiment.method(name))]
        most = max((method.trainable_parameters for method in methods), default=None)
        cells = [Cell(name), Cell(counts(methods), value=most, link=anchors.section if methods else "")]
        cells += [_score(column, name, anchors) for column in section.columns]
        if averaged:
            whole = len(methods) == len(section.columns)
            cells.append(_cell(average(methods), ".2f", anchors.section) if whole else Cell())
        rows.append(cells)
    head = [("method", False), ("trainable parameters, without head", True)]
    head += [(column.label, True) for column in section.columns]
    head += [("average", True)] if averaged else []
    caption = f"{section.plan.title}: mean over seeds (%) ± standard deviation [95 % interval] (number of seeds)"
    return Table(caption, head, rows).without_empty_columns()


def _score(column: Column, name: str, anchors: Anchors) -> Cell:
    method = column.experiment.method(name)
    if method is None:
        return Cell(reason(column, name), link=anchors.groups.get((column.label, name), ""))
    mean = method.mean
    scores = [run.score for run in method.finished]
    spread = f"± {stdev(scores):.2f} " if len(scores) > 1 else ""
    interval = f"[{mean.low:.2f}, {mean.high:.2f}] " if mean.low is not None else ""
    return Cell(f"{mean.value:.2f}", f"{spread}{interval}({mean.seeds})", mean.value, anchors.of(name, column.label))


def _study(section: Study, anchors: Anchors) -> Table:
    """The study's own columns; a mean with standard deviation and number of draws gets its 95 % t-interval."""
    frame, link = section.frame(), anchors.section
    columns = section.report.COLUMNS
    head: list[tuple[str, bool]] = []
    for name, (heading, form) in columns.items():
        head.append((heading, bool(form)))
        head += [("95 % interval", True)] if name in _MEANS else []
    rows = []
    for row in frame.to_dict("records"):
        cells = []
        for name, (_, form) in columns.items():
            cells.append(_cell(row[name], form, link))
            if name in _MEANS:
                cells.append(_t_interval(row, name, form, link))
        rows.append(cells)
    return Table(section.plan.title, head, rows).without_empty_columns()


_MEANS = ("mean", "loss")  # of n values whose standard deviation stands in the column `sd`


def _t_interval(row: Mapping[Any, Any], name: str, form: str, link: str) -> Cell:
    if "sd" not in row or pd.isna(row["sd"]) or row["n"] < 2:
        return Cell()
    half = row["sd"] / sqrt(row["n"]) * student_t.ppf((1 + LEVEL) / 2, row["n"] - 1)
    return _ends(row[name] - half, row[name] + half, form, link)


def _interval(estimate: Estimate | None, form: str, link: str) -> Cell:
    return _ends(estimate.low, estimate.high, form, link) if estimate else Cell()


def _ends(low: float | None, high: float | None, form: str, link: str) -> Cell:
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return Cell()
    return Cell(f"[{low:{form}}, {high:{form}}]", value=low, link=link)


def _cell(value: Any, form: str, link: str) -> Cell:
    """A number with its link, or text; a missing value is an empty cell."""
    if pd.isna(value):
        return Cell()
    return Cell(format(value, form), value=float(value), link=link) if form else Cell(str(value))
