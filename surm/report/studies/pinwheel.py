"""Report of `pinwheel`: a small network with a structured matrix (paper section 4.2, B.1, Figs. 4 and 9, Table 8)."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import exp, log
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from surm.methods.names import style_of
from surm.records.record import Record
from surm.report.drawing import Picture, draw_band, grid_of_panels, legend_below, line_of, tidy
from surm.report.statistics import mean_interval
from surm.report.table import Formats
from surm.shared.paths import PAPER

COLUMNS: Formats = {
    "reading": ("matrix", ""),
    "embedding": ("embedding", ""),
    "method": ("method", ""),
    "parameters": ("trained parameters of the matrix", ",.0f"),
    "loss": ("final training loss", ".3f"),
    "sd": ("sd", ".3f"),
    "n": ("n", ".0f"),
    "late_loss": ("median loss of the last 5 % of epochs", ".3f"),
    "paper": ("paper, by eye off its figures", ".2f"),
    "accuracy": ("training accuracy (%)", ".1f"),
    "cka": ("linear CKA to full", ".3f"),
    "cka_sd": ("sd of CKA", ".3f"),
    "rate": ("learning rate", "g"),
}
READINGS = {"in_place": "in place of the weight", "update": "update of a frozen weight"}
EMBEDDINGS = ("frozen", "trained")
FAMILIES = {  # method -> family whose colour it has, and its line
    "full": ("full", "-"),
    "LoRA r=1": ("lora", "-"),
    "LoRA r=2": ("lora", "--"),
    "LoRA r=4": ("lora", "-."),
    "LoRA r=8": ("lora", ":"),
    "circulant": ("circulant", "-"),
    "symmetric Toeplitz": ("toeplitz", "-"),
    "Toeplitz": ("toeplitz", "--"),
}
FULL, LORA = "full", "LoRA r=1"
STRUCTURES = ("circulant", "symmetric Toeplitz", "Toeplitz")
SHOWN = (FULL, LORA, *STRUCTURES)  # the paper's methods
_CLASS_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_CLASS_MARKERS = ("o", "s", "^", "D", "v")

Array = NDArray[np.float64]


def table(records: Sequence[Record]) -> pd.DataFrame:
    """Final loss, CKA and rate of every method in every setting, over seeds."""
    groups = _rows(records).groupby(["reading", "embedding", "method"], observed=True)
    frame = groups.agg(
        parameters=("parameters", "first"),
        loss=("loss", "mean"),
        sd=("loss", "std"),
        n=("loss", "size"),
        late_loss=("late_loss", "mean"),
        accuracy=("accuracy", lambda values: 100 * values.mean()),
        cka=("cka", "mean"),
        cka_sd=("cka", "std"),
        rate=("rate", "first"),
    ).reset_index()
    paper = yaml.safe_load((PAPER / "pinwheel.yaml").read_text())
    frame["paper"] = [
        paper[embedding].get(method) if reading == "in_place" else None
        for reading, embedding, method in zip(frame["reading"], frame["embedding"], frame["method"], strict=True)
    ]
    frame["reading"] = frame["reading"].cat.rename_categories(READINGS)
    return frame[list(COLUMNS)]


def effects(records: Sequence[Record]) -> dict[str, list[float]]:
    """By seed: log ratios of losses, differences of CKA, and whether a structure is nearer to full than to LoRA r=1.

    Losses are medians of the last 5 % of epochs: at a constant rate the last one alone is noise.
    """
    found: dict[str, list[float]] = {}
    for setting, _, late, cka in _by_setting(records):
        logs = np.log(late)
        found |= {
            f"log loss ratio of {LORA} to {structure}, {setting}": (logs[LORA] - logs[structure]).tolist()
            for structure in STRUCTURES
        }
        found |= {
            f"log loss, distance of {structure} to {LORA} minus distance to full, {setting}": (
                (logs[LORA] - logs[structure]).abs() - (logs[structure] - logs[FULL]).abs()
            ).tolist()
            for structure in STRUCTURES
        }
        found[f"CKA to full, circulant minus {LORA}, {setting}"] = (cka["circulant"] - cka[LORA]).tolist()
    return found


def notes(records: Sequence[Record]) -> list[str]:
    """What was trained, how it started, at which rank LoRA catches up, and what the two readings say together."""
    part = records[0].asked["study"]
    return [
        f"A network 2 -> 64 -> 64 -> 5 whose 64 x 64 matrix, without bias, is followed by {part['activation']}, with "
        f"nothing between embedding and matrix. {5 * part['points']} points, of which {100 * part['noise']:g} % are "
        f"outliers; {part['epochs']:,} epochs of full-batch Adam; the rates come from a search on other seeds with the "
        "same values for every method. Data, embedding, head and weight of a seed are the same for every method.",
        "In place of the weight both factors start at random, scaled to the Frobenius norm of a usual linear layer: a "
        "zero start would stay at ln 5 = 1.609 behind a ReLU. As an update of a frozen random weight the start is "
        "zero. Full is the same network in both.",
        "CKA compares the outputs of the hidden layer, after the activation, on the training points with those of the "
        "full network of the same seed. At a constant rate the loss still jumps from epoch to epoch: the claims are "
        "about the median of the last 5 % of epochs, and its last value stands beside it.",
        "The embedding is affine in two coordinates, so the matrix acts on three dimensions only: in place of the "
        "weight rank 1 keeps one of them, and rank 3 can express whatever full can.",
        *(_catches_up(setting, losses, late) for setting, losses, late, _ in _by_setting(records)),
        *_conclusions(records),
        *_levels(records),
    ]


# --- figures ----------------------------------------------------------------------------------------------------------


def pictures(records: Sequence[Record]) -> list[Picture]:
    """The training loss of every method over epochs, and the classes decided in the plane."""
    return [
        Picture(
            "loss_curves",
            "Training loss",
            "Training loss over epochs (both logarithmic): mean of the seeds, band of their range.",
            lambda: " ".join(
                f"{_setting(reading, embedding)}, {method}: {losses['mean'].iloc[-1]:.3f} after the last epoch."
                for reading, embedding in product(READINGS, EMBEDDINGS)
                for method, losses in _losses(records, reading, embedding)
            ),
            lambda: _draw_losses(records),
        ),
        Picture(
            "decision_regions",
            "Decision regions",
            "The class decided at every point of the plane, and the training points of the first seed.",
            lambda: " ".join(_accuracies(records)),
            lambda: _draw_decisions(records),
        ),
    ]


def _losses(records: Sequence[Record], reading: str, embedding: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each method of a setting with its training loss by epoch: mean, least and greatest of the seeds."""
    curves = [record.happened["curves"] for record in _ordered(records, reading, embedding)]
    for method in FAMILIES if curves else ():
        seeds = np.concatenate([np.array(curve["losses"][method])[:, 1:] for curve in curves])
        columns = {"mean": seeds.mean(axis=0), "min": seeds.min(axis=0), "max": seeds.max(axis=0)}
        yield method, pd.DataFrame(columns, index=curves[0]["epochs"][1:])


def _accuracies(records: Sequence[Record]) -> Iterator[str]:
    """Of the shown methods, the share of the training points in regions of their own class."""
    for (reading, embedding, method), rows in _rows(records).groupby(["reading", "embedding", "method"], observed=True):
        if method in SHOWN:
            setting, accuracy = _setting(str(reading), str(embedding)), 100 * rows["accuracy"].iloc[0]
            yield f"{setting}, {method}: {accuracy:.1f} % of the training points in regions of their class."


def _draw_losses(records: Sequence[Record]) -> Figure:
    settings = list(product(EMBEDDINGS, READINGS))
    figure, panels = grid_of_panels(len(settings), size=(5.4, 4.3), widest=2, sharex=True, sharey=True)
    for axes, (embedding, reading) in zip(panels, settings, strict=True):
        axes.set(title=_setting(reading, embedding), xscale="log", yscale="log")
        for number, (method, losses) in enumerate(_losses(records, reading, embedding)):
            family, line = FAMILIES[method]
            look = line_of(style_of(family), line) | {"label": method, "zorder": 2 + style_of(family).filled}
            draw_band(axes, losses, look, markevery=(number, 10))
        tidy(axes)
    for axes in panels[-2:]:
        axes.set_xlabel("epoch")
    for axes in panels[::2]:
        axes.set_ylabel("training loss")
    legend_below(figure)
    return figure


def _draw_decisions(records: Sequence[Record]) -> Figure:
    """The paper's methods only, a line of panels for each setting."""
    settings = list(product(READINGS, EMBEDDINGS))
    figure = Figure(figsize=(2.2 * len(SHOWN), 2.4 * len(settings)), dpi=110, layout="constrained")
    panels = figure.subplots(len(settings), len(SHOWN), sharex=True, sharey=True)
    for line, (reading, embedding) in zip(panels, settings, strict=True):
        for axes, method in zip(line, SHOWN, strict=True):
            for record in _ordered(records, reading, embedding)[:1]:
                _draw_regions(axes, record.happened["regions"], method)
            axes.set(xticks=[], yticks=[], aspect="equal")
        line[0].set_ylabel(f"{READINGS[reading]},\nembedding {embedding}", fontsize=9)
    for axes, method in zip(panels[0], SHOWN, strict=True):
        axes.set_title(method, fontsize=10)
    return figure


def _draw_regions(axes: Axes, regions: dict[str, Any], method: str) -> None:
    radius = regions["radius"]
    decided = np.array([[int(digit) for digit in row] for row in regions["decisions"][method]])
    axes.imshow(
        decided,
        origin="lower",
        extent=(-radius, radius, -radius, radius),
        cmap=ListedColormap(_CLASS_COLORS),
        vmin=-0.5,
        vmax=len(_CLASS_COLORS) - 0.5,
        alpha=0.35,
        interpolation="nearest",
    )
    points, labels = np.array(regions["points"]), np.array(regions["labels"])
    for label, (color, marker) in enumerate(zip(_CLASS_COLORS, _CLASS_MARKERS, strict=True)):
        x, y = points[labels == label].T
        axes.plot(
            x, y, marker, color=color, markersize=2.2, markeredgewidth=0.3, markeredgecolor="white", rasterized=True
        )


# --- what the records hold --------------------------------------------------------------------------------------------


def _ordered(records: Sequence[Record], reading: str, embedding: str) -> list[Record]:
    """The records of one setting, by their seeds."""
    chosen = [
        record
        for record in records
        if (record.asked["study"]["reading"], record.asked["study"]["embedding"]) == (reading, embedding)
    ]
    return sorted(chosen, key=lambda record: record.asked["study"]["seeds"])


def _rows(records: Sequence[Record]) -> pd.DataFrame:
    """All rows with their setting, in the order of settings, methods and seeds."""
    rows = pd.DataFrame(
        {"reading": reading, "embedding": embedding, **row}
        for reading, embedding in product(READINGS, EMBEDDINGS)
        for record in _ordered(records, reading, embedding)
        for row in record.happened["rows"]
    )
    orders = {"reading": READINGS, "embedding": EMBEDDINGS, "method": FAMILIES}
    for column, order in orders.items():
        rows[column] = pd.Categorical(rows[column], list(order))
    return rows.sort_values(["reading", "embedding", "method", "seed"])


def _by_setting(records: Sequence[Record]) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """Each setting that was run: name, final and late losses, CKA; a row for each seed and a column for each method."""
    for (reading, embedding), rows in _rows(records).groupby(["reading", "embedding"], observed=True):
        losses, late, cka = (
            rows.pivot_table(index="seed", columns="method", values=value, observed=True)
            for value in ("loss", "late_loss", "cka")
        )
        yield _setting(str(reading), str(embedding)), losses, late, cka


def _setting(reading: str, embedding: str) -> str:
    return f"{READINGS[reading]}, embedding {embedding}"


# --- sentences --------------------------------------------------------------------------------------------------------


def _catches_up(setting: str, losses: pd.DataFrame, late: pd.DataFrame) -> str:
    return (
        f"{setting[0].upper()}{setting[1:]}: first rank of LoRA whose mean final loss is not above circulant's: "
        f"{_first_rank(losses)}; by the median of the last 5 % of epochs: {_first_rank(late)}."
    )


def _first_rank(losses: pd.DataFrame) -> str:
    means = losses.mean()
    ranks = [method for method in FAMILIES if method.startswith("LoRA")]
    reached = [method for method in ranks if means[method] <= means["circulant"]]
    if not reached:
        return f"none up to {ranks[-1]} ({means[ranks[-1]]:.3f} against {means['circulant']:.3f})"
    return f"{reached[0]} ({means[reached[0]]:.3f} against {means['circulant']:.3f})"


def _conclusions(records: Sequence[Record]) -> Iterator[str]:
    """For each embedding, whether the gap between LoRA r=1 and circulant is there in both readings."""
    gaps = {setting: (late[LORA] / late["circulant"]).apply(log) for setting, _, late, _ in _by_setting(records)}
    for embedding in EMBEDDINGS:
        place, update = (gaps.get(_setting(reading, embedding)) for reading in READINGS)
        if place is not None and update is not None:
            yield (
                f"With the embedding {embedding}, {LORA} ends at {_factor(place)} times the loss of circulant in place "
                f"of the weight and at {_factor(update)} times as an update of a frozen weight (geometric mean, 95 % "
                f"interval over seeds): {_conclusion(place, update)}."
            )


def _levels(records: Sequence[Record]) -> Iterator[str]:
    """Levels beside the paper's, since ratios may agree where levels do not; and where full is not the floor."""
    paper = yaml.safe_load((PAPER / "pinwheel.yaml").read_text())
    of_setting = {setting: late.mean() for setting, _, late, _ in _by_setting(records)}
    for embedding in EMBEDDINGS:
        means, there = of_setting.get(_setting("in_place", embedding)), paper[embedding]
        if means is not None:
            levels = "; ".join(f"{name} {means[name]:.2f} (paper {level:.2f})" for name, level in there.items())
            yield (
                f"Levels in place of the weight, embedding {embedding}: {levels}. {LORA} lies at "
                f"{means[LORA] / means['circulant']:.1f} times circulant, in the paper at "
                f"{there[LORA] / there['circulant']:.1f} times."
            )
    for setting, means in of_setting.items():
        below = [name for name in FAMILIES if name.startswith("LoRA") and means[name] < means[FULL]]
        if below:
            yield (
                f"{setting[0].upper()}{setting[1:]}: full ends at {means[FULL]:.3f}, above {', '.join(below)}, which "
                "it contains. It is not the floor there, and a distance to full is one to a network not fully trained."
            )


def _conclusion(place: "pd.Series[float]", update: "pd.Series[float]") -> str:
    both = (place - update).dropna()
    if len(both) < 2:
        return "one seed decides nothing"
    lows = [mean_interval(gap.tolist())[1] for gap in (place, update, both)]
    place_low, update_low, difference_low = (low for low in lows if low is not None)
    if place_low <= 0:
        return "the gap of the paper's figure is not established in place of the weight"
    if difference_low <= 0:
        return "the two readings do not differ beyond the spread of the seeds"
    if update_low <= 0:
        return (
            "a gap is established in place of the weight only: the figure shows the rank of a layer, not of an update"
        )
    share = 1 - update.mean() / place.mean()
    return f"on the log scale {100 * share:.0f} % of the gap is the rank of a layer, only the rest that of an update"


def _factor(logs: "pd.Series[float]") -> str:
    mean, low, high = mean_interval(logs.tolist())
    return f"{exp(mean):.2f}" if low is None or high is None else f"{exp(mean):.2f} [{exp(low):.2f}, {exp(high):.2f}]"
