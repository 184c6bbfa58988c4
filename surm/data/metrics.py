"""Metrics over a whole split, as fractions; never a mean over batches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from surm.shared.registry import look_up


def spearman(labels: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Rank correlation; 0 where one side is constant and none is defined, as Matthews' has it."""
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(spearmanr(labels, predictions).statistic)


def pearson(labels: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Linear correlation; 0 where one side is constant and none is defined."""
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(pearsonr(labels, predictions).statistic)


def exact_match(labels: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Share of the answers that are right as a whole: as many tokens right (predictions) as there are (labels)."""
    return float(np.mean(labels == predictions))


def token_accuracy(labels: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Share of all answers' tokens that are right; labels are their number in each answer, predictions those right."""
    return float(predictions.sum() / labels.sum())


def dice(labels: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Mean over volumes of the mean Dice of their organs; labels are how many, predictions the sum of their Dice."""
    return float(np.mean(predictions / labels))


METRICS: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,  # of class 1, for two classes
    "matthews": matthews_corrcoef,
    "spearman": spearman,
    "pearson": pearson,
    "exact_match": exact_match,
    "token_accuracy": token_accuracy,
    "dice": dice,
}


def compute_metrics(names: Sequence[str], labels: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """The named metrics of predictions, each of shape (examples,): class indices, values for `spearman` and `pearson`,
    numbers of tokens for `exact_match` and `token_accuracy`, organs and their Dice for `dice`."""
    truth, answers = np.asarray(labels), np.asarray(predictions)
    return {name: float(look_up(METRICS, name, "metric")(truth, answers)) for name in names}
