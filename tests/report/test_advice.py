"""The check of the advisor: correlations against SciPy, and the committed check against the committed records."""

import json
from statistics import fmean

import numpy as np
import pytest
import scipy.stats

from surm.advice import CHECK, CHECKED_METHODS, CHECKED_TASKS, final_loss
from surm.record import PUBLISHED
from surm.report import advice
from surm.report.records import label, read_records


def made_up_points():
    generator = np.random.default_rng(0)
    return [
        {"task": task, "gain": x, "captured": x**2, "accuracy": y + 50 * place, "final_loss": -y}
        for place, task in enumerate("ab")
        for x, y in generator.standard_normal((5, 2))
    ]


def found(points, scope, score="gain", outcome="accuracy"):
    rows = advice.correlations(points)
    return next(row for row in rows if (row["scope"], row["score"], row["outcome"]) == (scope, score, outcome))


def test_a_tasks_correlation_is_spearmans_with_its_exact_p() -> None:
    points = [point for point in made_up_points() if point["task"] == "a"]
    x, y = ([point[key] for point in points] for key in ("gain", "accuracy"))
    exact = scipy.stats.permutation_test(
        (y,), lambda y: scipy.stats.spearmanr(x, y).statistic, permutation_type="pairings", n_resamples=np.inf
    )
    row = found(made_up_points(), "a")
    assert row["points"] == 5
    assert row["spearman"] == pytest.approx(exact.statistic, abs=1e-4)
    assert row["p"] == pytest.approx(exact.pvalue, abs=0.02)  # SciPy doubles the smaller tail


def test_pooling_takes_each_tasks_level_away() -> None:
    points = made_up_points()
    centred = {
        key: np.concatenate(
            [np.array(values) - np.mean(values) for values in np.split(np.array([p[key] for p in points]), 2)]
        )
        for key in ("gain", "accuracy")
    }
    row = found(points, "pooled")
    expected = scipy.stats.spearmanr(centred["gain"], centred["accuracy"]).statistic
    assert row["points"] == 10
    assert row["spearman"] == pytest.approx(expected, abs=1e-4)
    assert found(points, "pooled", outcome="final_loss")["spearman"] == pytest.approx(-expected, abs=1e-4)


def test_only_a_perfect_order_of_ten_points_is_called_a_prediction() -> None:
    ordered = [
        {"task": task, "gain": i, "captured": i, "accuracy": i, "final_loss": -i} for task in "ab" for i in range(5)
    ]
    good = {"correlations": advice.correlations(ordered)}
    assert advice.predicts(good)
    assert "the direction that helps" in advice.verdict(good)
    opposite = [point | {"accuracy": -point["accuracy"], "final_loss": point["gain"]} for point in ordered]
    bad = {"correlations": advice.correlations(opposite)}
    assert not advice.predicts(bad)
    assert "it did not predict which structure trains best" in advice.verdict(bad)
    assert "-1.00 with accuracy" in advice.verdict(bad)


def test_the_committed_check_is_of_the_committed_records() -> None:
    check = json.loads(CHECK.read_text())
    assert check["correlations"] == advice.correlations(check["points"])
    assert len(check["points"]) == len(CHECKED_TASKS) * len(CHECKED_METHODS)
    trained = [record for record in read_records(PUBLISHED).values() if not record.is_study]
    records = [
        record
        for record in trained
        if record.asked["dataset"]["evaluate_on"] == "test" and record.asked["trainer"]["max_steps"] is None
    ]
    for point in check["points"]:
        runs = [
            record
            for record in records
            if f"{record.asked['model']['name']} on {record.asked['dataset']['name']}" == point["task"]
            and label(record.asked) == point["method"]
        ]
        assert sorted(run.seed for run in runs) == [0, 1, 2]
        assert point["accuracy"] == pytest.approx(fmean(run.score for run in runs))
        assert point["final_loss"] == pytest.approx(fmean(final_loss(run) for run in runs))
