"""Means and paired differences of runs, with intervals that cover both the seeds and the evaluation examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from surm.records.record import Evaluation
from surm.report.inference import Difference, paired_difference

LEVEL = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, over seeds, in percent or points; `low` to `high` is its 95 % interval.

    `error` is the distribution that the interval is of, for tests at other levels; `reason` says why there is none.
    """

    value: float
    seeds: int
    low: float | None = None
    high: float | None = None
    reason: str = ""
    error: Difference | None = None


def estimate_contrast(
    columns: Sequence[Sequence[Sequence[Evaluation | None]]], signs: Sequence[int], values: Sequence[float]
) -> Estimate:
    """Mean over columns (tasks) of a signed sum of methods: a mean, a difference, a difference of differences.

    The interval is that of `surm.report.inference`: the part of the seeds by Student's t, the part of the examples by
    the normal distribution, their sum by convolution, so that the same records give the same digits. Columns are taken
    as they are, not as a sample of tasks. Those that answer the same examples (fractions of one training split) are one
    table of seeds by examples, so that what they share is counted; others are independent. A score that is no mean over
    examples (F1, Matthews' correlation) is made one by the jackknife: see `contributions`.

    It needs two seeds and the predictions of every run; where it cannot be had, `reason` says why.

    Args:
        columns: of each column and method, the runs of seeds 1 ... S, paired by seed across methods.
        signs: +1 or -1 of each method.
        values: the contrast of each seed, averaged over columns (points).
    """
    value, seeds = float(np.mean(values)), len(values)
    if seeds < 2:
        return Estimate(value, seeds, reason="one seed, no interval")
    of_column = [[run for method in methods for run in method if run is not None] for methods in columns]
    if any(len(runs) < len(signs) * seeds for runs in of_column):
        return Estimate(value, seeds, reason="no interval, a run kept no predictions")
    if any(not np.array_equal(run.labels, runs[0].labels) for runs in of_column for run in runs):
        return Estimate(value, seeds, reason="no interval, runs differ in their evaluation examples")
    if any(len(runs[0].labels) < 2 for runs in of_column):
        return Estimate(value, seeds, reason="no interval, a single evaluation example")
    if unknown := {run.metric for runs in of_column for run in runs} - METRICS.keys():
        return Estimate(value, seeds, reason=f"no interval, none is known for {', '.join(sorted(unknown))}")

    tables = [(runs[0].labels, contrast_table(runs, signs)) for runs in of_column]
    groups: list[tuple[NDArray[np.generic], Array]] = []  # labels, and the sum of the tables that answer them
    for labels, table in tables:
        place = next((i for i, (known, _) in enumerate(groups) if np.array_equal(known, labels)), None)
        if place is None:
            groups.append((labels, table))
        else:
            groups[place] = labels, groups[place][1] + table
    share = len(groups) / len(tables)
    error = Difference.mean_of([paired_difference(share * table) for _, table in groups])
    error = Difference(value, error.spread)
    return Estimate(value, seeds, *error.interval(LEVEL), error=error)


def contrast_table(runs: Sequence[Evaluation], signs: Sequence[int]) -> Array:
    """The (S, N) table of a signed sum of methods in points; `runs` are S of the first method, S of the second, ..."""
    scores = np.stack([contributions(run) for run in runs]).reshape(len(signs), -1, len(runs[0].labels))
    return np.asarray(np.tensordot(signs, scores, axes=1))


def contributions(run: Evaluation) -> Array:
    """What each example adds to a run's score: (N,) values in percent, whose mean is the score, or nearly so.

        c_i = N score - (N - 1) score without example i

    the jackknife's pseudo-values (Tukey 1958). Of an accuracy they are 100 where the answer is right and 0 elsewhere.
    Cost: one score for each distinct pair of label and prediction.
    """
    if run.metric == "accuracy":
        return np.asarray(100.0 * (run.labels == run.predictions))
    pairs = np.column_stack([run.labels, run.predictions]).astype(np.float64)
    distinct, place, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    weights = np.vstack([counts, counts - np.eye(len(counts))]).astype(np.float64)
    score, *without = METRICS[run.metric](distinct[:, 0], distinct[:, 1], weights)
    return np.asarray(100 * (len(pairs) * score - (len(pairs) - 1) * np.array(without))[place.ravel()])


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of independent draws and the ends of its 95 % t-interval, s / sqrt(N) t(N - 1); None for a single draw."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(np.std(values, ddof=1) / np.sqrt(len(values)) * student_t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return mean, mean - half, mean + half


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


def _exact_match(labels: Array, predictions: Array, weights: Array) -> Array:
    """Labels are the tokens of each answer, predictions how many of them are right."""
    return _accuracy(labels, predictions, weights)


def _token_accuracy(labels: Array, predictions: Array, weights: Array) -> Array:
    return _ratio(weights @ predictions, weights @ labels)


def _dice(labels: Array, predictions: Array, weights: Array) -> Array:
    """Labels are the organs of each volume, predictions the sum of their Dice."""
    return _ratio(weights @ (predictions / labels), weights.sum(axis=1))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, and 0 where the denominator is 0, as scikit-learn has it."""
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0)


METRICS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "exact_match": _exact_match,
    "token_accuracy": _token_accuracy,
    "dice": _dice,
}
COUNTING = ("exact_match", "token_accuracy", "dice")
"""Metrics of how much of each example is right: 0 is a wrong answer to any."""
