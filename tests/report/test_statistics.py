import numpy as np
import pytest
from scipy.stats import norm, pearsonr, spearmanr, t
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from surm.records.record import Evaluation
from surm.report.statistics import METRICS, contributions, estimate_contrast
from tests.report.made_up import answers

SCIKIT = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews": matthews_corrcoef,
    "pearson": lambda labels, predictions: pearsonr(labels, predictions).statistic,
    "spearman": lambda labels, predictions: spearmanr(labels, predictions).statistic,
}


@pytest.mark.parametrize("metric", SCIKIT)
def test_weighted_metric_is_the_plain_one_on_repeated_examples(metric):
    generator = np.random.default_rng(0)
    classes = 8 if metric in {"pearson", "spearman"} else 2
    labels, predictions = generator.integers(0, classes, (2, 40)).astype(float)
    weights = generator.multinomial(40, np.full(40, 1 / 40), size=5)
    expected = [SCIKIT[metric](np.repeat(labels, row), np.repeat(predictions, row)) for row in weights]
    np.testing.assert_allclose(METRICS[metric](labels, predictions, weights.astype(float)), expected, atol=1e-12)


@pytest.mark.parametrize("metric", SCIKIT)
def test_metric_of_a_constant_prediction_is_finite(metric):
    labels, weights = np.array([0.0, 1.0, 0.0]), np.ones((1, 3))
    expected = {"accuracy": 2 / 3, "f1": 0, "matthews": 0, "pearson": 0, "spearman": 0}[metric]
    np.testing.assert_allclose(METRICS[metric](labels, np.zeros(3), weights), [expected])


@pytest.mark.parametrize("metric", SCIKIT)
def test_contributions_are_the_jackknifes_pseudo_values(metric):
    """Of scikit-learn's scores, each example left out once; their mean is the score up to terms of 1 / N."""
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 2, 60).astype(float)
    predictions = np.where(generator.random(60) < 0.8, labels, 1 - labels)
    whole, keep = SCIKIT[metric](labels, predictions), ~np.eye(60, dtype=bool)
    without = np.array([SCIKIT[metric](labels[row], predictions[row]) for row in keep])
    found = contributions(Evaluation(metric, labels, predictions))
    np.testing.assert_allclose(found, 100 * (60 * whole - 59 * without), atol=1e-8)
    assert found.mean() == pytest.approx(100 * whole, abs=1.0)


def estimate_difference(runs, others, differences):
    return estimate_contrast([[runs, others]], [1, -1], differences)


def estimate_mean(runs, scores):
    return estimate_contrast([[runs]], [1], scores)


def evaluations(right):
    """One evaluation for each row of a boolean (seeds, examples) matrix, and the scores in percent."""
    labels = np.arange(right.shape[1]) % 10
    return [Evaluation("accuracy", labels, answers(labels, row)) for row in right], 100 * right.mean(axis=1)


def test_seed_part_is_students_paired_interval():
    """Runs of which each differs in examples of its own, by so many a seed: no example counts twice, as in a t-test."""
    errors_a, errors_b = (20, 35, 10, 55), (60, 40, 90, 70)
    right_a, right_b = (np.ones((4, 4_000), bool) for _ in range(2))
    for seed in range(4):
        right_a[seed, 200 * seed : 200 * seed + errors_a[seed]] = False
        right_b[seed, 200 * seed + 100 : 200 * seed + 100 + errors_b[seed]] = False
    (a, scores_a), (b, scores_b) = evaluations(right_a), evaluations(right_b)
    estimate = estimate_difference(a, b, scores_a - scores_b)
    differences = (np.array(errors_b) - errors_a) / 40
    half = t.ppf(0.975, 3) * differences.std(ddof=1) / 2
    assert estimate.value == pytest.approx(differences.mean())
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half), rel=1e-6)


def test_example_part_is_the_paired_normal_interval():
    """Two seeds that answer alike: only examples vary, and pairing removes what both methods share."""
    generator = np.random.default_rng(1)
    right_b = generator.random(4_000) < 0.9
    right_a = right_b | (generator.random(4_000) < 0.3)
    a, scores_a = evaluations(np.stack([right_a, right_a]))
    b, scores_b = evaluations(np.stack([right_b, right_b]))
    estimate = estimate_difference(a, b, scores_a - scores_b)
    gain = right_a.astype(float) - right_b
    half = 100 * norm.ppf(0.975) * gain.std() / np.sqrt(len(gain))
    unpaired = 100 * norm.ppf(0.975) * np.sqrt((right_a.var() + right_b.var()) / len(gain))
    assert estimate.value == pytest.approx(100 * gain.mean())
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half), rel=0.05)
    assert half < 0.5 * unpaired


def test_a_contrast_over_tasks_averages_independent_tasks():
    """Two tasks whose seeds answer alike: normal theory for the examples of each."""
    generator = np.random.default_rng(6)
    columns, gains = [], []
    for examples in (1_000, 4_000):
        right_b = np.tile(generator.random(examples) < 0.9, (3, 1))
        right_a = right_b | np.tile(generator.random(examples) < 0.3, (3, 1))
        columns.append([evaluations(right_a)[0], evaluations(right_b)[0]])
        gains.append(100 * (right_a[0].astype(float) - right_b[0]))
    values = np.full(3, np.mean([gain.mean() for gain in gains]))
    estimate = estimate_contrast(columns, [1, -1], values)
    half = norm.ppf(0.975) * np.sqrt(sum(gain.var(ddof=1) / len(gain) for gain in gains)) / 2
    assert estimate.value == pytest.approx(values[0])
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half), rel=1e-3)


def test_tasks_that_answer_the_same_examples_are_one_table():
    """The same column twice has the interval of one: two independent columns would have a narrower one."""
    generator = np.random.default_rng(8)
    (a, scores_a), (b, scores_b) = (evaluations(generator.random((3, 500)) < share) for share in (0.9, 0.8))
    once = estimate_difference(a, b, scores_a - scores_b)
    twice = estimate_contrast([[a, b], [a, b]], [1, -1], scores_a - scores_b)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def simulate(generator, seeds, examples, seed_sd, gain):
    """Two methods on shared hard examples; runs have abilities of their own. P(right) = Phi(ability - difficulty)."""
    difficulty = generator.standard_normal(examples)
    ability = 2.5 + np.array([gain, 0.0])[:, None] + seed_sd * generator.standard_normal((2, seeds))
    return generator.random((2, seeds, examples)) < norm.cdf(ability[:, :, None] - difficulty)


@pytest.mark.parametrize(("seeds", "seed_sd"), [(2, 0.15), (3, 0.15), (5, 0.4)])
def test_interval_of_a_difference_covers_the_truth(seeds, seed_sd):
    """In at least 93 % of simulated experiments; resampling seeds alone covers far less."""
    generator = np.random.default_rng(2)
    gain, trials = 0.3, 80
    spread = np.sqrt(2 + seed_sd**2)  # Phi(ability - difficulty) > uniform: the sum of three normals
    truth = 100 * (norm.cdf((2.5 + gain) / spread) - norm.cdf(2.5 / spread))
    covered = naive = 0
    for _ in range(trials):
        right = simulate(generator, seeds, 300, seed_sd, gain)
        (a, scores_a), (b, scores_b) = map(evaluations, right)
        estimate = estimate_difference(a, b, scores_a - scores_b)
        covered += estimate.low <= truth <= estimate.high
        resampled = generator.choice(scores_a - scores_b, size=(200, seeds)).mean(axis=1)
        low, high = np.quantile(resampled, [0.025, 0.975])
        naive += low <= truth <= high
    assert covered / trials >= 0.93
    assert naive / trials < 0.9


def test_the_same_runs_give_the_same_digits():
    runs, scores = evaluations(np.random.default_rng(3).random((3, 200)) < 0.9)
    assert estimate_mean(runs, scores) == estimate_mean(runs, scores)


def test_no_interval_without_seeds_predictions_or_common_examples():
    runs, scores = evaluations(np.random.default_rng(4).random((2, 50)) < 0.9)
    other = Evaluation("accuracy", runs[0].labels + 1, runs[0].predictions)
    cases = {
        "one seed, no interval": estimate_mean(runs[:1], scores[:1]),
        "no interval, a run kept no predictions": estimate_difference(runs, [runs[0], None], scores),
        "no interval, runs differ in their evaluation examples": estimate_difference(runs, [runs[0], other], scores),
    }
    for reason, estimate in cases.items():
        assert (estimate.low, estimate.high, estimate.reason) == (None, None, reason)


def test_the_dice_of_volumes_is_weighted_as_a_mean() -> None:
    labels, predictions = np.array([3.0, 2.0, 3.0]), np.array([2.4, 0.5, 3.0])
    expected = [(0.8 + 0.25 + 1) / 3, (2 * 0.8 + 1) / 3]
    np.testing.assert_allclose(METRICS["dice"](labels, predictions, np.array([[1.0, 1, 1], [2, 0, 1]])), expected)
