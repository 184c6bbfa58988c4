"""Report of `family_fit`: the share of a target that each family of one matrix holds at an equal budget."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from surm.methods.names import Style, style_of
from surm.records.record import Record
from surm.report.drawing import Picture, draw_mark, grid_of_panels, name_lines
from surm.report.studies.rows import study_rows
from surm.report.table import Formats

COLUMNS: Formats = {
    "target": ("target", ""),
    "fit": ("fit", ""),
    "parameters": ("parameters", ",.0f"),
    "mean": ("mean share", ".4f"),
    "sd": ("sd", ".4f"),
    "n": ("n", ".0f"),
}
TARGETS = {
    "gaussian": "Gaussian",
    "rank_one": "random, of rank 1",
    "circulant": "random circulant",
    "blocks": "block-diagonal, 4 blocks",
    "singular": "in the weight's top 13 singular directions",
    "rows": "row scaling of the weight",
}
FITS = {
    "low_rank": "LoRA r=1",
    "circulant": "circulant",
    "block_low_rank": "MELoRA r=1, 4 blocks",
    "lora_xs_13": "LoRA-XS r=13",
    "lora_xs_14": "LoRA-XS r=14",
    "lora_mini_r2": "LoRA-Mini r=2, a=48, b=48",
    "lora_mini_r4": "LoRA-Mini r=4, a=24, b=24",
    "diagonal": "diagonal",
    "row_scaling": "row scaling of the weight",
}
SIZE = 96
FREEDOMS = {"circulant": SIZE, "lora_xs_13": 13**2, "lora_xs_14": 14**2, "diagonal": SIZE, "row_scaling": SIZE}
"""Dimensions of the linear families, which hold that many of the d^2 parts of a Gaussian target."""
_REFERENCE = "low_rank"

Array = NDArray[np.float64]


def table(records: Sequence[Record]) -> pd.DataFrame:
    """Mean share of every target that every family holds."""
    rows = study_rows(records)
    for column, names in (("target", TARGETS), ("fit", FITS)):
        rows[column] = pd.Categorical(rows[column], list(names)).rename_categories(names)
    groups = rows.groupby(["target", "fit", "parameters"], observed=True)["share"]
    return groups.agg(mean="mean", sd="std", n="count").reset_index()[list(COLUMNS)]


def effects(records: Sequence[Record]) -> dict[str, list[float]]:
    """The share that a family holds of a target, minus that of LoRA r=1."""
    shares = _shares(records)
    return {
        f"{FITS[fit]} minus {FITS[_REFERENCE]}, {TARGETS[target]}": (
            shares[target, fit] - shares[target, _REFERENCE]
        ).tolist()
        for target in TARGETS
        for fit in FITS
        if fit != _REFERENCE
    }


def notes(records: Sequence[Record]) -> list[str]:
    """What was measured, what theory expects of it, and what follows."""
    shares = _shares(records)
    of_gaussian = {fit: shares["gaussian", fit].mean() for fit in FITS}
    linear = "; ".join(
        f"{FITS[fit]} {of_gaussian[fit]:.4f} of {freedoms / SIZE**2:.4f}" for fit, freedoms in FREEDOMS.items()
    )
    return [
        "Share: 1 - ||T - N||^2 / ||T||^2 for a 96 x 96 target T and the nearest member N of the family, by a closed "
        "form each, so that no optimiser stands between the families. Budget: the 192 parameters of LoRA r=1, or the "
        "nearest below and above; diagonals and row scalings have 96. Weight and targets have entries N(0, 1) where "
        "nothing else is said.",
        f"A linear family of dimension q holds q / d^2 of a Gaussian target in the mean, measured and expected: "
        f"{linear}. One component of low rank holds about 4 / d = {4 / SIZE:.4f} with 2d parameters (LoRA r=1 "
        f"{of_gaussian['low_rank']:.4f}, MELoRA {of_gaussian['block_low_rank']:.4f}), twice as much a parameter.",
        "So of a target without structure more blocks, thus a higher rank, hold no more: what a family gains it gains "
        f"where the target is of its kind, as MELoRA {shares['blocks', 'block_low_rank'].mean():.3f} of blocks against "
        f"{shares['blocks', 'low_rank'].mean():.3f} by LoRA r=1.",
        "What this does not show: which of these targets the updates of fine-tuning are like.",
    ]


def pictures(records: Sequence[Record]) -> list[Picture]:
    """The share that every family holds, a panel for each target."""
    shares = _shares(records)
    parameters = study_rows(records).groupby("fit")["parameters"].first()

    def draw() -> Figure:
        figure, all_axes = grid_of_panels(len(TARGETS), size=(3.6, 3.2), widest=3, sharey=True)
        for axes, (target, title) in zip(all_axes, TARGETS.items(), strict=True):
            for line, fit in enumerate(FITS):
                values, style = shares[target, fit], _style(fit)
                axes.plot(values, np.full(len(values), line), "|", color=style.color, markersize=9, alpha=0.5)
                draw_mark(axes, line, float(values.mean()), style)
            axes.set_xscale("log")
            axes.set_xlim(0.005, 1.3)
            axes.set_title(title, fontsize=9)
            name_lines(axes, [f"{FITS[fit]} ({parameters[fit]})" for fit in FITS])
        for axes in all_axes[-3:]:
            axes.set_xlabel("share of the target")
        return figure

    def words() -> str:
        return " ".join(
            f"{TARGETS[target]}, {name}: {values.mean():.3f}, draws from {values.min():.3f} to {values.max():.3f}."
            for target in TARGETS
            for fit, name in FITS.items()
            for values in [shares[target, fit]]
        )

    caption = (
        "Share of the squared norm of a target that the nearest member of each family holds, with the family's number "
        "of parameters: mean of the draws (mark) and each draw (stroke), on a logarithmic axis."
    )
    return [Picture("shares", "Share of a target by family", caption, words, draw)]


def _shares(records: Sequence[Record]) -> Mapping[tuple[str, str], Array]:
    """Shares by target and fit, one for each draw."""
    groups = study_rows(records).groupby(["target", "fit"])["share"]
    return {(str(target), str(fit)): share.to_numpy() for (target, fit), share in groups}


def _style(fit: str) -> Style:
    name = fit.removesuffix("_13").removesuffix("_14").removesuffix("_r2").removesuffix("_r4")
    return style_of(name)
