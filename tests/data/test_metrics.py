import math

import numpy as np
import pytest

from surm.data.metrics import compute_metrics

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
LABELS = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
ANSWERS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_metrics_from_a_confusion_matrix_counted_by_hand():
    metrics = compute_metrics(("accuracy", "f1", "matthews"), LABELS, ANSWERS)
    assert list(metrics) == ["accuracy", "f1", "matthews"]
    assert metrics["accuracy"] == pytest.approx(7 / 10)
    assert metrics["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert metrics["matthews"] == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))


def test_spearman_is_one_less_the_squared_rank_differences():
    """1 - 6 sum d^2 / (n (n^2 - 1)); ranks of the predictions: 2, 1, 3, 5, 4."""
    spearman = compute_metrics(["spearman"], [0.1, 0.2, 0.3, 0.4, 0.5], [20, 10, 30, 1000, 40])["spearman"]
    assert spearman == pytest.approx(1 - 6 * 4 / (5 * 24))


def test_pearson_is_the_covariance_over_both_deviations():
    labels, answers = [0.0, 1.5, 2.0, 4.5, 5.0], [0.5, 1.0, 2.5, 2.0, 6.0]
    expected = np.corrcoef(labels, answers)[0, 1]
    assert compute_metrics(["pearson"], labels, answers)["pearson"] == pytest.approx(expected)


def test_constant_predictions_show_no_correlation():
    found = compute_metrics(("matthews", "spearman", "pearson"), LABELS, [0] * 10)
    assert found == {"matthews": 0.0, "spearman": 0.0, "pearson": 0.0}


def test_results_are_plain_numbers_for_json():
    assert all(type(value) is float for value in compute_metrics(("accuracy", "f1"), LABELS, ANSWERS).values())


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match=r"no metric 'acuracy'.*did you mean accuracy"):
        compute_metrics(["acuracy"], LABELS, ANSWERS)
