"""Report of `psd_fit`: positive semidefinite matrices at an equal budget (paper section 4.2, Fig. 1 left)."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from surm.methods.names import style_of
from surm.records.record import Record
from surm.report.drawing import Picture, draw_mark, grid_of_panels, name_lines
from surm.report.studies.rows import study_rows
from surm.report.table import Formats

COLUMNS: Formats = {
    "target": ("target", ""),
    "normalised": ("rows normalised", ""),
    "fit": ("fit", ""),
    "parameters": ("parameters", ",.0f"),
    "mean": ("mean error", ".3f"),
    "sd": ("sd", ".3f"),
    "n": ("n", ".0f"),
}
TARGETS = {"psd": "G G^T", "no_diagonal": "G G^T, diagonal removed", "low_rank": "G G^T of low rank"}
READINGS = {"after": "after the product (not symmetric)", "before": "before the product"}
FITS = {
    "zero": "none (norm of the target)",
    "identity": "multiple of the identity",
    "rank_one": "rank 1, v v^T",
    "kronecker_tied": "tied Kronecker, A kron A^T",
    "kronecker_free": "free Kronecker, A kron B",
    "circulant": "circulant",
    "toeplitz": "symmetric Toeplitz",
}
# The paper's order, from worst to best, in pairs of neighbours; Kronecker stands for either of two.
ORDER = [
    ("rank_one", "kronecker_tied"),
    ("rank_one", "kronecker_free"),
    ("kronecker_tied", "circulant"),
    ("kronecker_free", "circulant"),
    ("circulant", "toeplitz"),
]
_STYLES = {"rank_one": "low_rank", "kronecker_tied": "kronecker", "kronecker_free": "kronecker"}

Array = NDArray[np.float64]


def table(records: Sequence[Record]) -> pd.DataFrame:
    """Mean error of every fit to every target, by target, reading and fit."""
    rows = study_rows(records)
    for column, names in (("target", TARGETS), ("normalised", READINGS), ("fit", FITS)):
        rows[column] = pd.Categorical(rows[column], list(names)).rename_categories(names)
    keys = ["target", "normalised", "fit", "parameters"]
    groups = rows.groupby(keys, observed=True)["error"]
    return groups.agg(mean="mean", sd="std", n="count").reset_index()[list(COLUMNS)]


def effects(records: Sequence[Record]) -> dict[str, list[float]]:
    """Error of one fit minus that of another, the paper's order in both readings: positive where it holds."""
    errors = _errors(records)
    return {
        f"{_short(worse)} minus {_short(better)}, rows normalised {reading}": (
            errors["psd", reading, worse] - errors["psd", reading, better]
        ).tolist()
        for reading in READINGS
        for worse, better in ORDER
    }


def notes(records: Sequence[Record]) -> list[str]:
    """What was measured, what the controls show, and what follows."""
    errors = _errors(records)
    rank = records[0].asked["study"]["low_rank"]
    return [
        "Error: Frobenius norm of the difference, not relative, as in the paper. Every fit is exact: no optimiser "
        "stands between the families. G is 50 x 50 with entries N(0, 1). A is 10 x 5: A kron A^T has the budget of 50 "
        "parameters, A kron B has twice that.",
        *(_control(errors, reading) for reading in READINGS),
        *(
            f"Rows normalised {reading} the product: with the diagonal removed "
            f"{_best(errors, 'no_diagonal', reading)}; at rank {rank} {_best(errors, 'low_rank', reading)}."
            for reading in READINGS
        ),
        "What this proves: the order of the families on matrices with a large, nearly constant diagonal, which "
        "circulant and Toeplitz matrices hold in one parameter and matrices of low rank do not. What it does not "
        "prove: that these families are nearer to positive semidefinite matrices in general, or to the updates of "
        "fine-tuning.",
    ]


def pictures(records: Sequence[Record]) -> list[Picture]:
    """The error of every fit, a panel for each target and reading."""
    errors = _errors(records)
    parameters = study_rows(records).groupby("fit")["parameters"].first()
    shown = [fit for fit in FITS if fit != "zero"]
    panels = list(product(READINGS, TARGETS))

    def draw() -> Figure:
        size = 3.6, 3.2
        figure, all_axes = grid_of_panels(len(panels), size=size, widest=len(TARGETS), sharey=True)
        for axes, (reading, target) in zip(all_axes, panels, strict=True):
            for line, fit in enumerate(shown):
                values, style = errors[target, reading, fit], style_of(_STYLES.get(fit, fit))
                axes.plot(values, np.full(len(values), line), "|", color=style.color, markersize=9, alpha=0.5)
                draw_mark(axes, line, float(values.mean()), style)
            axes.axvline(errors[target, reading, "zero"].mean(), color="0.5", linestyle=":", linewidth=1.2)
            axes.set_title(f"{TARGETS[target]}\nrows normalised {reading} the product", fontsize=9)
            name_lines(axes, [f"{FITS[fit]} ({parameters[fit]})" for fit in shown])
        for axes in all_axes[-len(TARGETS) :]:
            axes.set_xlabel("Frobenius error")
        return figure

    def words() -> str:
        return " ".join(
            f"{TARGETS[target]}, rows normalised {reading}, {name}: {values.mean():.3f}, draws from {values.min():.3f} "
            f"to {values.max():.3f}."
            for reading, target in panels
            for fit, name in FITS.items()
            for values in [errors[target, reading, fit]]
        )

    caption = (
        "Frobenius error of every fit, with its number of parameters: mean of the draws (mark), each draw (stroke) "
        "and the norm of the target (dotted)."
    )
    return [Picture("errors", "Errors by family", caption, words, draw)]


def _errors(records: Sequence[Record]) -> dict[tuple[str, str, str], Array]:
    """Errors by target, reading and fit, one for each draw."""
    groups = study_rows(records).groupby(["target", "normalised", "fit"])["error"]
    return {(str(target), str(reading), str(fit)): error.to_numpy() for (target, reading, fit), error in groups}


def _short(fit: str) -> str:
    return FITS[fit].split(",")[0]


def _control(errors: dict[tuple[str, str, str], Array], reading: str) -> str:
    """How much of what the circulant explains one parameter explains; projections, so that squares add up."""
    total, identity, circulant = (
        np.mean(errors["psd", reading, fit] ** 2) for fit in ("zero", "identity", "circulant")
    )
    return (
        f"Rows normalised {reading} the product: of the squared norm that the circulant explains, a multiple of the "
        f"identity, one parameter, explains {100 * (total - identity) / (total - circulant):.0f} %."
    )


def _best(errors: dict[tuple[str, str, str], Array], target: str, reading: str) -> str:
    """The best fit within the budget, by mean error, against the circulant."""
    within = [fit for fit in FITS if fit != "kronecker_free"]
    best = min(within, key=lambda fit: errors[target, reading, fit].mean())
    values, circulant = errors[target, reading, best], errors[target, reading, "circulant"]
    return (
        f"the best of 50 parameters is {_short(best)} ({values.mean():.2f}; circulant {circulant.mean():.2f}, "
        f"worse in {np.sum(circulant > values)} of {len(values)} draws)"
    )
