"""The advisor's scores as tables and a heat map, and how far they can be trusted."""

from collections.abc import Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from surm.report.figures import save
from surm.report.tables import markdown

if TYPE_CHECKING:
    from surm.advisor import Advice

LEVEL = 0.05
SCORES = ("gain", "captured")
OUTCOMES = {"accuracy": 1, "final_loss": -1}  # -> the sign of a correlation that would help

Point = Mapping[str, Any]
Array = NDArray[np.float64]


def by_family(advice: "Advice") -> str:
    """A row for each family, the highest gain first, as Markdown."""
    header = ["family", "parameters", "captured (%)", "of a random matrix (%)", "gain", "low rank at this cost (%)"]
    rows = [
        [
            total.family,
            f"{total.parameters:,}",
            f"{100 * total.captured:.2f}",
            f"{100 * total.expected:.2f}",
            f"{total.gain:.2f}",
            f"{100 * total.captured_by_rank:.2f}",
        ]
        for total in advice.totals
    ]
    return markdown(header, rows, right=[False, *[True] * 5])


def by_layer(advice: "Advice") -> str:
    """The gain of each layer (rows) and family (columns), as Markdown."""
    gains = _gains(advice)
    rows = [[layer, *(f"{gains[layer][family]:.2f}" for family in advice.families)] for layer in gains]
    return markdown(["gain", *advice.families], rows, right=[False, *[True] * len(advice.families)])


def heat_map(advice: "Advice", title: str, path: Path) -> None:
    """Draw the gain of each layer (rows) and family (columns), logarithmic colours around 1, and its number."""
    gains = _gains(advice)
    values = np.array([[row[family] for family in advice.families] for row in gains.values()])
    figure = Figure(figsize=(2.8 + 1.1 * values.shape[1], 1.8 + 0.22 * values.shape[0]), dpi=160, layout="constrained")
    axes = figure.subplots()
    span = max(2.0, values.max(), 1 / max(values.min(), 1e-6))
    image = axes.imshow(np.maximum(values, 1 / span), norm=LogNorm(1 / span, span), cmap="PuOr_r", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        dark = abs(np.log(max(value, 1e-6))) > 0.6 * np.log(span)
        axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(advice.families)), list(advice.families), rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(gains)), list(gains), fontsize=6)
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, label="captured share / that of a random matrix")
    save(figure, path)


def _gains(advice: "Advice") -> dict[str, dict[str, float]]:
    gains: dict[str, dict[str, float]] = {}
    for score in advice.scores:
        gains.setdefault(score.layer, {})[score.family] = score.gain
    return gains


# --- how far to trust it ---------------------------------------------------------------------------------------------


def correlations(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Spearman's correlation of each score with each outcome: in each task, and pooled after centring by task.

    p is two-sided and exact: the share of all permutations of the outcomes within the tasks that correlate as much.
    """
    tasks = list(dict.fromkeys(point["task"] for point in points))
    scopes = {task: [point for point in points if point["task"] == task] for task in tasks} | {"pooled": points}
    found = []
    for score, outcome, (scope, chosen) in product(SCORES, OUTCOMES, scopes.items()):
        places = ([i for i, point in enumerate(chosen) if point["task"] == task] for task in tasks)
        groups = [group for group in places if group]
        x, y = (rankdata(_centred([point[key] for point in chosen], groups)) for key in (score, outcome))
        shuffles = [[list(order) for order in permutations(group)] for group in groups]
        permuted = np.array([np.concatenate(orders) for orders in product(*shuffles)]).astype(int)
        target = np.concatenate([np.asarray(group, dtype=int) for group in groups])
        rho = _correlation(x[target], y[target][None])[0]
        chance = _correlation(x[target], y[permuted])
        p = float(np.mean(np.abs(chance) >= abs(rho) - 1e-12))
        found.append(
            {"score": score, "outcome": outcome, "scope": scope, "points": len(chosen)}
            | {"spearman": round(float(rho), 4), "p": round(p, 5)}
        )
    return found


def _centred(values: Sequence[float], groups: Sequence[Sequence[int]]) -> Array:
    centred = np.array(values, dtype=np.float64)
    for group in groups:
        centred[group] -= centred[group].mean()
    return centred


def _correlation(x: Array, rows: Array) -> Array:
    """Pearson's correlation of x (N,) with each row of (P, N)."""
    x, rows = x - x.mean(), rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(rows @ x / np.sqrt((x @ x) * (rows**2).sum(axis=1)))


def trust(check: Mapping[str, Any]) -> str:
    """The check as a Markdown table and one plain sentence."""
    rows = [
        [*_words(row), str(row["points"]), f"{row['spearman']:+.2f}", f"{row['p']:.3f}"]
        for row in check["correlations"]
    ]
    header = ["score", "outcome", "runs", "points", "Spearman", "p"]
    return "\n".join([markdown(header, rows, right=[False] * 3 + [True] * 3), verdict(check)])


def _words(row: Mapping[str, Any]) -> list[str]:
    return [row["score"], row["outcome"].replace("_", " "), row["scope"]]


def predicts(check: Mapping[str, Any]) -> bool:
    """Whether the gain, pooled over the tasks, goes with accuracy or with a lower loss, at the 5 % level."""
    return any(
        row["score"] == "gain"
        and row["scope"] == "pooled"
        and row["p"] < LEVEL
        and row["spearman"] * OUTCOMES[row["outcome"]] > 0
        for row in check["correlations"]
    )


def verdict(check: Mapping[str, Any]) -> str:
    """How far the check allows to trust the gain, in words."""
    pooled = [row for row in check["correlations"] if row["score"] == "gain" and row["scope"] == "pooled"]
    numbers = " and ".join(f"{row['spearman']:+.2f} with {_words(row)[1]} (p = {row['p']:.2f})" for row in pooled)
    conclusion = (
        "the direction that helps, but so few points decide little."
        if predicts(check)
        else "it did not predict which structure trains best. Read the table as a description of what the loss asks of "
        "the weights at the start, not as a forecast."
    )
    return (
        f"How far to trust it: over the {pooled[0]['points']} published pairs of structure and task, pooled, the gain "
        f"has the rank correlation {numbers}: {conclusion}"
    )
