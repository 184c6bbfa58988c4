"""Report of `pinwheel`: a small network with a structured matrix (paper section 4.2, B.1, Figs. 4 and 9, Table 8)."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from surm.records.record import Record
from surm.report.figures import legend_below, marks, save, style_of, tidy
from surm.report.plots import LOG, Panel, Plot, Trace, band
from surm.report.statistics import mean_interval

COLUMNS: dict[str, tuple[str, str]] = {
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
# Read by eye off the log axes of the plots behind Figs. 4 and 9, near the last epoch; the text gives no number.
PAPER = {
    "frozen": {FULL: 0.20, LORA: 0.90, "circulant": 0.27, "symmetric Toeplitz": 0.28, "Toeplitz": 0.26},
    "trained": {FULL: 0.15, LORA: 0.95, "circulant": 0.15, "symmetric Toeplitz": 0.17, "Toeplitz": 0.16},
}
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
    frame["paper"] = [
        PAPER[embedding].get(method) if reading == "in_place" else None
        for reading, embedding, method in zip(frame["reading"], frame["embedding"], frame["method"], strict=True)
    ]
    frame["reading"] = frame["reading"].cat.rename_categories(READINGS)
    return frame[list(COLUMNS)]


def effects(records: Sequence[Record]) -> dict[str, list[float]]:
    """By seed: log ratios of losses, differences of CKA, and whether a structure is nearer to full than to LoRA r=1."""
    found: dict[str, list[float]] = {}
    for setting, losses, _, cka in _by_setting(records):
        logs = np.log(losses)
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
        "about its last value, and the median of the last 5 % of epochs stands beside it.",
        "The embedding is affine in two coordinates, so the matrix acts on three dimensions only: in place of the "
        "weight rank 1 keeps one of them, and rank 3 can express whatever full can.",
        *(_catches_up(setting, losses, late) for setting, losses, late, _ in _by_setting(records)),
        *_conclusions(records),
    ]


# --- figures ----------------------------------------------------------------------------------------------------------


def loss_curves(records: Sequence[Record], path: Path) -> None:
    """Draw the training loss of every method over epochs, mean and range of the seeds, a panel for each setting."""
    figure = Figure(figsize=(11.6, 8.6), dpi=160, layout="constrained")
    panels = figure.subplots(len(EMBEDDINGS), len(READINGS), sharex=True, sharey=True)
    for axes, (embedding, reading) in zip(panels.flat, product(EMBEDDINGS, READINGS), strict=True):
        axes.set(title=f"{READINGS[reading]}, embedding {embedding}", xscale="log", yscale="log")
        curves = [record.happened["curves"] for record in _ordered(records, reading, embedding)]
        for place, (method, (family, line)) in enumerate(FAMILIES.items() if curves else ()):
            epochs = np.array(curves[0]["epochs"][1:])
            losses = np.concatenate([np.array(curve["losses"][method])[:, 1:] for curve in curves])
            style = style_of(family)
            axes.fill_between(
                epochs, losses.min(axis=0), losses.max(axis=0), color=style.color, alpha=0.08, linewidth=0
            )
            look = {"color": style.color, "linestyle": line, "linewidth": 1.4, "zorder": 2 + style.filled}
            axes.plot(epochs, losses.mean(axis=0), label=method, markevery=(place, 10), **look, **marks(style))
        tidy(axes)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    for axes in panels[:, 0]:
        axes.set_ylabel("training loss")
    legend_below(figure)
    save(figure, path)


def decision_regions(records: Sequence[Record], path: Path) -> None:
    """Draw the class decided at every place and the training points of the first seed, the paper's methods only."""
    settings = list(product(READINGS, EMBEDDINGS))
    figure = Figure(figsize=(2.5 * len(SHOWN), 2.7 * len(settings)), dpi=110, layout="constrained")
    panels = figure.subplots(len(settings), len(SHOWN), sharex=True, sharey=True)
    for row, (reading, embedding) in zip(panels, settings, strict=True):
        for axes, method in zip(row, SHOWN, strict=True):
            for record in _ordered(records, reading, embedding)[:1]:
                _draw_regions(axes, record.happened["regions"], method)
            axes.set(xticks=[], yticks=[], aspect="equal")
        row[0].set_ylabel(f"{READINGS[reading]},\nembedding {embedding}", fontsize=9)
    for axes, method in zip(panels[0], SHOWN, strict=True):
        axes.set_title(method, fontsize=10)
    save(figure, path)


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
        axes.plot(x, y, marker, color=color, markersize=2.2, markeredgewidth=0.3, markeredgecolor="white")


FIGURES: dict[str, Callable[[Sequence[Record], Path], None]] = {
    "loss_curves": loss_curves,
    "decision_regions": decision_regions,
}


def plots(records: Sequence[Record]) -> list[Plot]:
    """The training loss of every method over epochs, mean and range of the seeds, a panel for each setting."""
    panels, words = [], []
    for reading, embedding in product(READINGS, EMBEDDINGS):
        curves = [record.happened["curves"] for record in _ordered(records, reading, embedding)]
        if not curves:
            continue
        traces: list[Trace] = []
        epochs = curves[0]["epochs"][1:]
        for method, (family, line) in FAMILIES.items():
            losses = np.concatenate([np.array(curve["losses"][method])[:, 1:] for curve in curves])
            ranges = [found.tolist() for found in (losses.mean(axis=0), losses.min(axis=0), losses.max(axis=0))]
            traces += band(style_of(family), method, epochs, *ranges, line=line)
            words.append(f"{_setting(reading, embedding)}, {method}: {ranges[0][-1]:.3f} after the last epoch.")
        x, y = ({"title": {"text": text}, **LOG} for text in ("epoch", "training loss"))
        panels.append(Panel(_setting(reading, embedding), x, y, traces))
    caption = "Training loss over epochs (both logarithmic): mean of the seeds, band of their range."
    return [Plot("loss_curves", "Training loss", caption, " ".join(words), panels)]


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
    for column, order in (("reading", READINGS), ("embedding", EMBEDDINGS), ("method", FAMILIES)):
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
    gaps = {setting: (losses[LORA] / losses["circulant"]).apply(log) for setting, losses, *_ in _by_setting(records)}
    for embedding in EMBEDDINGS:
        place, update = (gaps.get(_setting(reading, embedding)) for reading in READINGS)
        if place is not None and update is not None:
            yield (
                f"With the embedding {embedding}, {LORA} ends at {_factor(place)} times the loss of circulant in place "
                f"of the weight and at {_factor(update)} times as an update of a frozen weight (geometric mean, 95 % "
                f"interval over seeds): {_conclusion(place, update)}."
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
