"""Means and paired differences with intervals that cover both the seeds and the evaluation examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from surm.records.record import Evaluation

DRAWS = 5_000
LEVEL = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, over seeds, in percent or points; `low` to `high` is its 95 % interval.

    `reason` says why there is no interval.
    """

    value: float
    seeds: int
    low: float | None = None
    high: float | None = None
    reason: str = ""


def estimate_mean(runs: Sequence[Evaluation | None], scores: Sequence[float]) -> Estimate:
    """Mean score (percent) of one method's seeds; see `estimate_contrast` for the interval."""
    return estimate_contrast([[runs]], [1], scores)


def estimate_contrast(
    columns: Sequence[Sequence[Sequence[Evaluation | None]]], signs: Sequence[int], values: Sequence[float]
) -> Estimate:
    """Mean over columns (tasks) of a signed sum of methods: a mean, a difference, a difference of differences.

    Two sources of chance are added, and the 2.5 % and 97.5 % quantiles of the sum are the interval:

    * evaluation examples: a percentile bootstrap (5,000 draws) that resamples a column's examples and applies each draw
      to every run of the column, which keeps the pairing; the columns' draws are averaged. Columns are taken as they
      are, not as a sample of tasks;
    * seeds: s / sqrt(S) times Student's t with S - 1 degrees of freedom, s the standard deviation of `values`, so that
      whatever the columns of one seed share is counted. Resampling 2 or 3 seeds would shrink their variance by
      (S - 1)/S and know nothing of the tails.

    The part of a run's noise that differs from example to example counts in both, so the interval is a little wide
    rather than narrow. It needs two seeds and the predictions of every run; where it cannot be had, `reason` says why.
    Draws are seeded: the same records give the same digits.

    Args:
        columns: of each column and method, the runs of seeds 1 ... S, paired by seed across methods.
        signs: +1 or -1 of each method.
        values: the contrast of each seed, averaged over columns (points).

    Cost: 5,000 multinomial draws over the distinct rows (label, predictions of all runs) of each column.
    """
    value, seeds = float(np.mean(values)), len(values)
    if seeds < 2:
        return Estimate(value, seeds, reason="one seed, no interval")
    of_column = [[run for method in methods for run in method if run is not None] for methods in columns]
    if any(len(runs) < len(signs) * seeds for runs in of_column):
        return Estimate(value, seeds, reason="no interval, a run kept no predictions")
    if any(not np.array_equal(run.labels, runs[0].labels) for runs in of_column for run in runs):
        return Estimate(value, seeds, reason="no interval, runs differ in their evaluation examples")

    if unknown := {run.metric for runs in of_column for run in runs} - METRICS.keys():
        return Estimate(value, seeds, reason=f"no interval, none is known for {', '.join(sorted(unknown))}")
    generator = np.random.default_rng(0)
    draws = [resampled_scores(runs, generator).reshape(DRAWS, len(signs), seeds).mean(axis=2) for runs in of_column]
    by_examples = np.mean([(means * signs).sum(axis=1) for means in draws], axis=0)
    by_seeds = np.std(values, ddof=1) / np.sqrt(seeds) * generator.standard_t(seeds - 1, size=DRAWS)
    low, high = np.quantile(by_examples + by_seeds, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, seeds, float(low), float(high))


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of independent draws and the ends of its 95 % t-interval, s / sqrt(N) t(N - 1); None for a single draw."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(np.std(values, ddof=1) / np.sqrt(len(values)) * student_t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return mean, mean - half, mean + half


def resampled_scores(runs: Sequence[Evaluation], generator: np.random.Generator) -> Array:
    """Scores in percent, (DRAWS, runs), when the N shared examples are drawn again with replacement."""
    table = np.column_stack([runs[0].labels, *(run.predictions for run in runs)]).astype(np.float64)
    rows, counts = np.unique(table, axis=0, return_counts=True)  # few rows for classes: equal examples are one row
    weights = generator.multinomial(counts.sum(), counts / counts.sum(), size=DRAWS).astype(np.float64)
    labels, predictions = rows[:, 0], rows[:, 1:]
    columns = [METRICS[run.metric](labels, predictions[:, i], weights) for i, run in enumerate(runs)]
    return 100 * np.column_stack(columns)


# --- metrics on weighted examples: labels and predictions (N,), weights (draws, N), result (draws,) as a fraction -----


def _accuracy(labels: Array, predictions: Array, weights: Array) -> Array:
    return _ratio(weights @ (labels == predictions), weights.sum(axis=1))


def _confusion(labels: Array, predictions: Array, weights: Array) -> tuple[Array, Array, Array, Array]:
    """True and false positives, false and true negatives of class 1."""
    actual, claimed = labels == 1, predictions == 1
    return (
        weights @ (actual & claimed),
        weights @ (~actual & claimed),
        weights @ (actual & ~claimed),
        weights @ (~actual & ~claimed),
    )


def _f1(labels: Array, predictions: Array, weights: Array) -> Array:
    tp, fp, fn, _ = _confusion(labels, predictions, weights)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _matthews(labels: Array, predictions: Array, weights: Array) -> Array:
    tp, fp, fn, tn = _confusion(labels, predictions, weights)
    return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def _spearman(labels: Array, predictions: Array, weights: Array) -> Array:
    return _correlation(_weighted_ranks(labels, weights), _weighted_ranks(predictions, weights), weights)


def _pearson(labels: Array, predictions: Array, weights: Array) -> Array:
    return _correlation(labels, predictions, weights)


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    """Pearson's correlation of x and y, each (N,) or (draws, N)."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    return _ratio((weights * x * y).sum(axis=1), np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)))


def _weighted_ranks(values: Array, weights: Array) -> Array:
    """Mid-ranks, (draws, N), of values that occur `weights` times each."""
    _, group = np.unique(values, return_inverse=True)
    by_value = np.stack([np.bincount(group, row) for row in weights])
    below = np.cumsum(by_value, axis=1) - by_value
    return np.asarray((below + (by_value + 1) / 2)[:, group])


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, and 0 where the denominator is 0, as scikit-learn has it."""
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0)


METRICS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
