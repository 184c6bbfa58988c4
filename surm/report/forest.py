"""Forest plots: the difference of two methods on each task and on the mean of the tasks, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from scipy.stats import norm

from surm.report.drawing import Picture, tidy
from surm.report.gather import NOT_RUN, Comparison, Method, contrast
from surm.report.inference import Difference, OverTasks
from surm.report.plan import Plan
from surm.report.rules import POWER_FOR
from surm.report.statistics import LEVEL
from surm.report.table import Cell, Column, Table
from surm.report.verdict import MARGIN, format_difference, in_a_word

CLAIMED = 5.0  # points, the gain that the paper speaks of
COLORS = {"larger": "#009E73", "smaller": "#D55E00", "equivalent": "#0072B2"}  # by the first word of what was found
OPEN = "0.5"  # of what is too wide to say
MEAN = "mean of the tasks"
LABEL = 44  # characters, the longest label in one line
ADAPTER = ", Houlsby adapter"
COLUMNS = {"P(better)": 0.25, "P(within 1)": 0.75}  # beside the plot -> where in its column


@dataclass(frozen=True)
class Row:
    """One line: a task, or the mean over all.

    error: the difference and the distribution of its error; None where there is none yet, and `reason` says why.
    better, within: the probabilities of a difference above 0 and of one within a point.
    """

    label: str
    error: Difference | None
    reason: str = NOT_RUN
    better: float | None = None
    within: float | None = None

    @property
    def word(self) -> str:
        return in_a_word(self.error) if self.error else self.reason

    @property
    def ends(self) -> str:
        """The difference with its 95 % interval, in points."""
        if self.error is None:
            return self.reason
        low, high = self.error.interval()
        return f"{self.error.value:+z.1f} [{low:+z.1f}, {high:+z.1f}]"


@dataclass(frozen=True)
class Block:
    """The lines of one pair of methods; `beyond` is the probability of a gain of `CLAIMED` on a further task."""

    title: str
    rows: Sequence[Row]
    beyond: float | None = None

    @property
    def has_run(self) -> bool:
        return any(row.error is not None for row in self.rows)

    def lines(self) -> list[tuple[str, Row | None]]:
        """Labels of the plot's lines with their rows; a title above has none, a row alone goes by the title."""
        if len(self.rows) == 1:
            label = self.title.replace(" minus ", "\nminus ") if len(self.title) > LABEL else self.title
            return [(label, self.rows[0])]
        return [(self.title, None), *((row.label, row) for row in self.rows)]


def blocks(tasks: Sequence[Comparison], contrasts: Sequence[tuple[str, str]]) -> list[Block]:
    """The rows of each pair (method, minus): its tasks, then the mean over them once all have run.

    A task's probabilities are those of its error, with nothing assumed of the difference beforehand; those of the last
    row are of the mean over tasks of this kind (`OverTasks`).
    """
    return [_block(tasks, method, minus) for method, minus in contrasts]


def _block(tasks: Sequence[Comparison], method: str, minus: str) -> Block:
    planned = [task for task in tasks if {method, minus} <= set(task.rows)]
    pairs = [(task, [one for name in (method, minus) if (one := task.method(name))]) for task in planned]
    names = [task.title if len(tasks) > 1 else task.dataset for task, _ in pairs]
    rows = [
        _row(name, [methods]) if len(methods) == 2 else Row(name, None)
        for name, (_, methods) in zip(names, pairs, strict=True)
    ]
    title = _title(method, minus)
    errors = [row.error for row in rows if row.error]
    if len(rows) < 2:
        return Block(title, rows)
    if len(errors) < len(rows):
        return Block(title, [*rows, Row(MEAN, None, f"{len(errors)} of {len(rows)} tasks")])
    sizes = tuple(error.half_width(LEVEL) / float(norm.ppf((1 + LEVEL) / 2)) or 1e-9 for error in errors)
    model = OverTasks(tuple(error.value for error in errors), sizes)
    mean = _row(MEAN, [methods for _, methods in pairs])
    better = model.probability(lambda mu: mu > 0)
    within = model.probability(lambda mu: abs(mu) < MARGIN)
    return Block(title, [*rows, Row(MEAN, mean.error, mean.reason, better, within)], model.new_task_above(CLAIMED))


def _title(method: str, minus: str) -> str:
    """Both methods; what they share at the end is said once."""
    if method.endswith(ADAPTER) and minus.endswith(ADAPTER):
        return f"{method.removesuffix(ADAPTER)} minus {minus.removesuffix(ADAPTER)}{ADAPTER}s"
    return f"{method} minus {minus}"


def _row(label: str, columns: Sequence[Sequence[Method]]) -> Row:
    estimate = contrast(columns, [1, -1])
    if estimate is None or estimate.error is None:
        reason = "no common seed" if estimate is None else f"{format_difference(estimate)}, {estimate.reason}"
        return Row(label, None, reason)
    error = estimate.error
    return Row(label, error, "", error.p_below(), error.p_below(-MARGIN) - error.p_below(MARGIN))


def pictures(tasks: Sequence[Comparison], plan: Plan) -> list[Picture]:
    """The forest plot of a plan that compares pairs of methods; none for any other."""
    return [picture(tasks, plan.contrasts, plan.title)] if plan.contrasts else []


def paragraphs(tasks: Sequence[Comparison], plan: Plan) -> list[str]:
    """The rows of that plot as a table in Markdown, and how to read them."""
    if not plan.contrasts:
        return []
    found = blocks(tasks, plan.contrasts)
    return [table(found).markdown(), *notes(found)]


def table(found: Sequence[Block]) -> Table:
    """The rows of all pairs with their probabilities, and the power of each single task."""
    columns = [Column("difference"), Column("task")]
    columns += [Column(text, number=True) for text in ("points [95 % interval]", "P(better)", "P(within 1)")]
    columns += [Column(f"power for {POWER_FOR:g} points", number=True), Column("in a word")]
    body = []
    for block in found:
        for place, row in enumerate(block.rows):
            power = f"{100 * row.error.power(POWER_FOR):.0f} %" if row.error and row.label != MEAN else ""
            cells = [block.title if place == 0 else "", row.label, row.ends, _percent(row.better)]
            body.append([Cell(text) for text in [*cells, _percent(row.within), power, row.word if row.error else ""]])
    return Table("Differences by task", columns, body)


def notes(found: Sequence[Block]) -> list[str]:
    """What the probabilities are of, and the chance of the paper's gain on a further task."""
    lines = [
        "P(better) and P(within 1) of a task follow from its interval; those of the mean are of tasks of this kind, of "
        "which these are a sample (normal, standard deviation between tasks half-normal of 1 point). Intervals do not "
        "cover the choice of the rate, of the split and of the tasks.\n"
    ]
    chances = [f"{block.title} {_percent(block.beyond)}" for block in found if block.beyond is not None]
    return lines + ([f"P(a gain of {CLAIMED:g} on a further task): {'; '.join(chances)}.\n"] if chances else [])


def picture(tasks: Sequence[Comparison], contrasts: Sequence[tuple[str, str]], title: str) -> Picture:
    """The forest plot of a table; beside pairs that have run, one that has not on any task is one line."""
    found = blocks(tasks, contrasts)
    if any(block.has_run for block in found):
        found = [block if block.has_run else Block(block.title, [Row("all tasks", None)]) for block in found]
    return Picture(
        "forest",
        "Differences by task",
        f"Difference in points with its 95 % interval; band: within {MARGIN:g} point; dashed: the {CLAIMED:g} points "
        "that the paper speaks of. Colours: larger, smaller, equivalent within 1, grey where it is too wide to say.",
        lambda: " ".join(
            f"{block.title}: " + "; ".join(f"{row.label} {row.ends}" for row in block.rows) + "." for block in found
        ),
        lambda: _draw(found, title),
    )


def _draw(found: Sequence[Block], title: str) -> Figure:
    lines = sum(len(block.lines()) for block in found)
    figure = Figure(figsize=(8.2, 1.2 + 0.27 * lines), dpi=160, layout="constrained")
    axes, aside = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1.3])
    aside.set_axis_off()
    aside.set_xlim(0, 1)
    axes.axvspan(-MARGIN, MARGIN, color="0.94", zorder=0)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.axvline(CLAIMED, color="0.35", linestyle="--", linewidth=1.0)
    ends = [-2.5, CLAIMED + 0.8]
    labels: list[str] = []
    beside = axes.get_yaxis_transform()
    for text, x in COLUMNS.items():
        aside.text(x, -0.9, text, ha="center", va="center", fontsize=8)
    for block in found:
        for label, row in block.lines():
            line = len(labels)
            labels.append(label if row else "")
            if row is None:
                axes.text(0.0, line, label, transform=beside, ha="left", va="center", fontsize=8.5, weight="bold")
                continue
            if row.error is None:
                axes.text(0.5, line, row.reason, transform=beside, ha="center", va="center", fontsize=8, color="0.35")
                continue
            low, high = row.error.interval()
            ends += [low - 0.3, high + 0.3]
            color, mean = COLORS.get(row.word.split()[0], OPEN), row.label == MEAN
            axes.hlines(line, low, high, color=color, linewidth=2.4 if mean else 1.4)
            axes.plot([row.error.value], [line], "D" if mean else "o", color=color, markersize=7 if mean else 5)
            for value, x in zip((row.better, row.within), COLUMNS.values(), strict=True):
                aside.text(x, line, _percent(value), ha="center", va="center", fontsize=8)
    axes.set(xlim=(min(ends), max(ends)), xlabel="difference (points)")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -1.3)
    axes.set_title(title, fontsize=10, loc="left")
    tidy(axes)
    axes.grid(visible=False)
    return figure


def _percent(value: float | None) -> str:
    if value is None:
        return ""
    return "> 99 %" if value > 0.99 else "< 1 %" if value < 0.01 else f"{100 * value:.0f} %"
