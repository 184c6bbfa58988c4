"""Report of `ldr_fit`: matrices fitted by W(G, H) and its special cases (paper section 4.1, appendix A.7, Fig. 5)."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from surm.methods.names import GREY, Style, style_of
from surm.records.record import Record
from surm.report.drawing import Picture, draw_band, grid_of_panels, legend_below, line_of, tidy
from surm.report.studies.rows import study_rows
from surm.report.table import Formats

COLUMNS: Formats = {
    "target": ("target", ""),
    "fit": ("fit", ""),
    "parameters": ("parameters", ",.0f"),
    "mean": ("mean relative error (r terms: from warm starts)", ".4f"),
    "sd": ("sd", ".4f"),
    "n": ("n", ".0f"),
    "cold": ("best cold start", ".4f"),
    "cold_sd": ("sd, cold", ".4f"),
    "descent": ("descent", ".4f"),
    "early": ("descent, stopped early", ".4f"),
    "svd": ("SVD of equal size", ".4f"),
    "svd_sd": ("sd, SVD", ".4f"),
}
TARGETS = {
    "random": "random",
    "near_low_rank": "near low rank",
    **{f"near_low_rank_{rank}": f"near low rank, k = {rank}" for rank in range(1, 101)},
    "low_intrinsic_rank": "low intrinsic rank",
    "low_intrinsic_rank_noise": "low intrinsic rank with noise",
}
SINGLE = {"circulant": "circulant", "toeplitz_symmetric": "symmetric Toeplitz", "toeplitz": "Toeplitz"}
OPTIMISERS = {
    "warm": "warm starts",
    "cold": "best cold start",
    "descent": "descent",
    "early": "descent stopped early",
}
OVER_TERMS = {fit: f"W(G, H), {name}" for fit, name in OPTIMISERS.items()} | {"svd": "SVD of equal size"}
FEW = 4  # the paper's best numbers of terms for the structured targets are 1, 2 and 4


Errors = dict[tuple[str, str], pd.DataFrame]  # by target and fit: a row for each draw, a column for each r (or 0)


def table(records: Sequence[Record]) -> pd.DataFrame:
    """Mean relative error of every fit to every target; what was fitted with r terms stands in one row for each r."""
    errors, parameters = _errors(records), _parameters(records)
    rows = []
    for target in _targets(errors):
        for fit, name in SINGLE.items():
            values = errors[target, fit][0]
            rows.append({"target": TARGETS[target], "fit": name, "parameters": parameters[fit, 0], **_mean(values)})
        for terms in sorted(terms for fit, terms in parameters if fit == "warm"):
            row: dict[str, Any] = {"target": TARGETS[target], "fit": f"W(G, H), r={terms}"}
            row |= {"parameters": parameters["warm", terms], **_mean(errors[target, "warm"][terms])}
            for fit in ("cold", "descent", "early", "svd"):
                values = errors[target, fit][terms]
                row |= {fit: values.mean(), f"{fit}_sd": values.std()}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def effects(records: Sequence[Record]) -> dict[str, list[float]]:
    """Quantities that the paper's sentences are about, in relative error, one value for each draw."""
    errors = _errors(records)
    found: dict[str, list[float]] = {}
    for target in _targets(errors):
        name = TARGETS[target]
        for other in ("toeplitz", "toeplitz_symmetric"):
            difference = errors[target, "circulant"][0] - errors[target, other][0]
            found[f"{name}: circulant minus {SINGLE[other]}"] = difference.tolist()
        for fit in ("warm", "cold", "descent", "early"):
            error = errors[target, fit]
            fewer, few = error.iloc[:, :-1], error.loc[:, :FEW]
            quantities = {
                "largest rise from one r to the next": error.diff(axis=1).max(axis=1),
                "error at the largest r minus the least at smaller r": error.iloc[:, -1] - fewer.min(axis=1),
                f"least error at r <= {FEW} minus the least of all": few.min(axis=1) - error.min(axis=1),
            }
            found |= {f"{name}: {what}, {OPTIMISERS[fit]}": values.tolist() for what, values in quantities.items()}
    return found


def notes(records: Sequence[Record]) -> list[str]:
    """Budgets, how the optimisers compare, and what the sentences of the paper rest on."""
    rows, errors = study_rows(records), _errors(records)
    asked: dict[str, Any] = {key: value for record in records for key, value in record.asked["study"].items()}
    fits = rows[rows["fit"].isin(["warm", "cold"])]
    targets = _targets(errors)
    rise = max(errors[target, "warm"].diff(axis=1).to_numpy()[:, 1:].max(initial=0.0) for target in targets)
    gap = max((errors[target, "warm"] - errors[target, "cold"]).abs().to_numpy().max() for target in targets)
    steps = asked["descent_steps"]
    lines = [
        "Relative Frobenius errors of 100 x 100 matrices. Circulant, Toeplitz and the truncated SVD, which has as many "
        "parameters as W(G, H) in the same row, are exact.",
        f"W(G, H) was fitted by alternating least squares until 25 sweeps gained less than {asked['tolerance']:g} of "
        f"the error: {fits['steps'].median():.0f} sweeps in the median fit, {fits['steps'].max():,.0f} in the longest; "
        f"{fits['converged'].eq(False).sum()} of {len(fits):,} fits were cut off. Warm starts add random terms to the "
        f"fit with fewer (the first to the best cold fit), cold starts ({asked['cold_starts']} for each r) are random; "
        f"the best cold fit and the warm one differ by at most {gap:.4f}.",
        "r terms contain r - 1 terms, so the true optimum cannot rise with r. From warm starts "
        f"{f'the error rises by at most {rise:.1e}' if rise > 0 else 'it does not rise in any draw'}.",
        f"Descent is Adam at the paper's rate of {asked['descent_rate']:g} from entries N(0, 1), {steps[-1]:,} steps, "
        f"and stopped early after {steps[0]:,}: the paper does not say how many it took. r of the least mean error:",
        "\n".join(f"* {TARGETS[target]}: {_best_terms(errors, target)}" for target in targets),
        "Every circulant matrix is a Toeplitz matrix: with exact projections the circulant cannot be nearer to any "
        f"target than the general Toeplitz matrix. Circulant minus Toeplitz: {_by_target(errors, 'toeplitz')}. Against "
        "the symmetric Toeplitz matrix, of as many parameters, it can: circulant minus symmetric Toeplitz: "
        f"{_by_target(errors, 'toeplitz_symmetric')}.",
    ]
    if "descent_starts" in asked:
        lines.append(f"Descent: the mean of {asked['descent_starts']} random starts for each r.")
    if "near_rank" in asked:
        ranks = sorted({record.asked["study"].get("near_rank", asked["near_rank"]) for record in records})
        lines.append(
            f"Near low rank: rank k = {', '.join(map(str, ranks))}, which the paper does not state, and noise of 0.05. "
            "Such a matrix has displacement rank 2k before the noise: W(G, H) needs twice the terms that the SVD needs."
        )
    if "noise" in asked:
        lines.append(f"Low intrinsic rank with noise: entries of sd {asked['noise']:g}; the paper does not state it.")
    return lines


def pictures(records: Sequence[Record]) -> list[Picture]:
    """Relative error over the number of terms, and of the best fits over the number of parameters."""
    errors, parameters = _errors(records), _parameters(records)

    def over_terms(axes: Axes, target: str) -> None:
        for fit, name in OVER_TERMS.items():
            error = errors[target, fit]
            by_terms = pd.DataFrame({"mean": error.mean(), "min": error.min(), "max": error.max()})
            draw_band(axes, by_terms, _look(fit), alpha=0.12, label=name)
        for fit, name in SINGLE.items():
            style, line = _STYLES[fit]
            mean = errors[target, fit][0].mean()
            axes.axhline(mean, label=name, color=style.color, linestyle=line, linewidth=1.4)
        axes.set(xlabel="terms r")
        axes.xaxis.set_major_locator(FixedLocator([1, 5, 10, 15, 20]))

    def over_parameters(axes: Axes, target: str) -> None:
        for fit in ("warm", "svd", *SINGLE):
            mean = errors[target, fit].mean()
            counts = [parameters[fit, terms] for terms in mean.index]
            axes.plot(counts, mean, label=(OVER_TERMS | SINGLE)[fit], **_look(fit))
        axes.set(xscale="log", xlabel="parameters")

    def words(with_terms: Sequence[str]) -> str:
        parts = []
        for target in _targets(errors):
            for fit in with_terms:
                mean = errors[target, fit].mean()
                ends = f"{mean.iloc[0]:.3f} at r=1, {mean.iloc[-1]:.3f} at the largest r"
                parts.append(f"{TARGETS[target]}, {OVER_TERMS[fit]}: {ends}.")
            parts += [
                f"{TARGETS[target]}, {name}: {errors[target, fit][0].mean():.3f}." for fit, name in SINGLE.items()
            ]
        return " ".join(parts)

    return [
        Picture(
            "over_terms",
            "Error over the number of terms",
            "Relative Frobenius error over the number of terms: mean of the draws, band of their range; structures "
            "without terms are horizontal lines.",
            lambda: words(tuple(OVER_TERMS)),
            lambda: _draw(errors, over_terms),
        ),
        Picture(
            "over_parameters",
            "Error over the number of parameters",
            "Relative Frobenius error of the best fits over their number of parameters (logarithmic): mean of the "
            "draws.",
            lambda: words(("warm", "svd")),
            lambda: _draw(errors, over_parameters),
        ),
    ]


# --- errors -----------------------------------------------------------------------------------------------------------


def _errors(records: Sequence[Record]) -> Errors:
    """Relative errors: of cold starts the best, of descent the mean of its starts, first look ("early") and last."""
    rows = study_rows(records)
    rows["terms"] = rows["terms"].fillna(0).astype(int)
    looks = rows.loc[rows["fit"] == "descent", "steps"]
    rows.loc[looks[looks == looks.min()].index, "fit"] = "early"
    rows = rows[(rows["fit"] != "descent") | (rows["steps"] == looks.max())]
    return {
        (str(target), str(fit)): group.pivot_table(
            index="draw", columns="terms", values="error", aggfunc="mean" if fit in ("descent", "early") else "min"
        )
        for (target, fit), group in rows.groupby(["target", "fit"])
    }


def _parameters(records: Sequence[Record]) -> dict[tuple[str, int], int]:
    """Number of parameters by fit and terms."""
    rows = study_rows(records).fillna({"terms": 0})
    return {(fit, int(terms)): int(n) for fit, terms, n in zip(rows.fit, rows.terms, rows.parameters, strict=True)}


def _targets(errors: Errors) -> list[str]:
    return [target for target in TARGETS if (target, "warm") in errors]


def _mean(values: "pd.Series[float]") -> dict[str, Any]:
    return {"mean": values.mean(), "sd": values.std(), "n": len(values)}


def _best_terms(errors: Errors, target: str) -> str:
    return ", ".join(f"{errors[target, fit].mean().idxmin()} ({name})" for fit, name in OPTIMISERS.items())


def _by_target(errors: Errors, other: str) -> str:
    differences = {
        target: (errors[target, "circulant"][0] - errors[target, other][0]).mean() for target in _targets(errors)
    }
    return ", ".join(f"{difference:+.4f} ({TARGETS[target]})" for target, difference in differences.items())


# --- pictures ---------------------------------------------------------------------------------------------------------


_STYLES = {
    "warm": (style_of("ldr"), "-"),
    "cold": (style_of("ldr")._replace(filled=False), "--"),
    "descent": (Style("descent", GREY, "^", filled=True), "-."),
    "early": (Style("descent stopped early", GREY, "v"), ":"),
    "svd": (style_of("low_rank"), "-"),
    "circulant": (style_of("circulant"), "--"),
    "toeplitz": (style_of("toeplitz"), "-"),
    "toeplitz_symmetric": (style_of("toeplitz")._replace(filled=False), ":"),
}


def _look(fit: str) -> dict[str, Any]:
    style, line = _STYLES[fit]
    # An open marker is a ring around what lies below it.
    rings = {"markersize": 4.5} if style.filled else {"markersize": 7.5, "markerfacecolor": "none"}
    return line_of(style, line) | rings


def _draw(errors: Errors, draw_panel: Callable[[Axes, str], None]) -> Figure:
    targets = _targets(errors)
    figure, panels = grid_of_panels(len(targets), size=(5.6, 4.2), widest=2)
    for axes, target in zip(panels, targets, strict=True):
        draw_panel(axes, target)
        axes.set_title(TARGETS[target], fontsize=11)
        axes.set_ylabel("relative error")
        if axes.dataLim.ymin < 0.1:  # an error that all but disappears
            axes.set_yscale("log")
        tidy(axes)
    legend_below(figure)
    return figure
