"""Intervals that cover, tests that keep their size, and worlds that are classified as what they are."""

import numpy as np
import pytest
from scipy import integrate, stats

from surm.report.inference import (
    Difference,
    OverTasks,
    Spread,
    benjamini_hochberg,
    holm,
    paired_difference,
    simultaneous_intervals,
    spread_of,
)

TRUTHS = {  # standard deviations of seeds, examples and the rest (points), and the number of examples
    "digits": (0.75, 0.0, 17.5, 797),
    "no seed variance": (0.0, 0.0, 17.5, 797),
    "valence": (0.25, 10.0, 21.0, 2_007),
    "strong seeds": (2.0, 0.0, 17.5, 797),
}
IMAGES = (0.55, 5.0, 18.0, 1_000)  # the usual image task


def made_up(truth: tuple[float, float, float, int], mean: float, seeds: int, generator, draws: int):
    """Means and mean squares of `draws` tables (seeds, examples): independent, each a scaled chi-square."""
    sa, sb, se, examples = truth
    cells = seeds * examples
    means = generator.normal(mean, np.sqrt(sa**2 / seeds + sb**2 / examples + se**2 / cells), draws)

    def square(expected: float, freedom: int):
        return expected * generator.chisquare(freedom, draws) / freedom

    msa = square(examples * sa**2 + se**2, seeds - 1)
    msb = square(seeds * sb**2 + se**2, examples - 1)
    mse = square(se**2, (seeds - 1) * (examples - 1))
    return [
        Difference(float(value), spread_of(a, b, e, seeds, examples))
        for value, a, b, e in zip(means, msa, msb, mse, strict=True)
    ]


@pytest.mark.sample(3)
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("truth", TRUTHS)
def test_intervals_cover(truth, seeds):
    drawn = made_up(TRUTHS[truth], 0.0, seeds, np.random.default_rng(seeds), 4_000)
    covered = np.mean([difference.p_differs(0.0) > 0.05 for difference in drawn])
    assert 0.94 <= covered <= 0.975


def test_a_table_gives_the_mean_squares_of_an_analysis_of_variance():
    """Against the textbook's sums over a table with known effects."""
    generator = np.random.default_rng(0)
    d = generator.normal(size=(4, 50)) * 3 + generator.normal(size=(4, 1)) + generator.normal(size=50) * 5
    total = ((d - d.mean()) ** 2).sum()
    seeds = 50 * ((d.mean(axis=1) - d.mean()) ** 2).sum()
    examples = 4 * ((d.mean(axis=0) - d.mean()) ** 2).sum()
    expected = spread_of(seeds / 3, examples / 49, (total - seeds - examples) / (3 * 49), 4, 50)
    spread = paired_difference(d).spread
    assert spread.normal == pytest.approx(expected.normal)
    assert spread.scales == pytest.approx(expected.scales)
    assert spread.normal > 0


@pytest.mark.parametrize(("normal", "scale", "freedom"), [(1.0, 1.0, 2), (0.2, 1.5, 4), (2.0, 0.1, 7), (1.0, 1.0, 1)])
def test_the_convolution_is_that_of_a_numerical_integral(normal, scale, freedom):
    spread = Spread(normal, (scale,), (freedom,))
    for x in (0.0, 0.7, 2.5, 6.0):
        value, _ = integrate.quad(
            lambda t, x=x: stats.norm.cdf((x - scale * t) / normal) * stats.t.pdf(t, freedom),
            -np.inf,
            np.inf,
            limit=400,
        )
        assert float(spread.cdf(x)) == pytest.approx(value, abs=1e-6)


def test_a_sum_of_several_tasks_is_that_of_a_simulation():
    spread = Spread.of_mean([Spread(0.3, (0.5,), (2,)), Spread(0.1, (0.2,), (2,)), Spread(0.0, (1.0,), (4,))])
    generator = np.random.default_rng(1)
    size = 400_000
    errors = generator.normal(0, np.hypot(0.3, 0.1), size) + 0.5 * generator.standard_t(2, size)
    errors = (errors + 0.2 * generator.standard_t(2, size) + 1.0 * generator.standard_t(4, size)) / 3
    for x in (-1.0, -0.3, 0.0, 0.2, 0.8):
        assert float(spread.cdf(x)) == pytest.approx(np.mean(errors <= x), abs=0.004)
    assert spread.quantile(0.975) == pytest.approx(np.quantile(errors, 0.975), rel=0.02)


def test_without_one_part_the_other_is_left():
    assert Spread(0.0, (2.0,), (3,)).quantile(0.975) == pytest.approx(2 * stats.t.ppf(0.975, 3))
    assert Spread(1.5).quantile(0.9) == pytest.approx(1.5 * stats.norm.ppf(0.9))
    assert Spread(0.0, (0.0,), (3,)).quantile(0.9) == 0.0


def test_equivalence_is_the_ninety_percent_interval_within_the_margins():
    for value in (-0.9, -0.2, 0.0, 0.4, 0.75):
        for scale in (0.1, 0.3, 0.6):
            difference = Difference(value, Spread(0.2, (scale,), (7,)))
            low, high = difference.interval(0.90)
            assert (difference.p_equivalent(1.0) < 0.05) == (low > -1 and high < 1)


def test_holm_and_benjamini_hochberg_are_those_of_the_textbook():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    expected = stats.false_discovery_control(list(p.values()), method="bh")
    assert list(benjamini_hochberg(p).values()) == pytest.approx(list(expected))


def test_simultaneous_intervals_are_wider_than_single_ones_and_cover_all_at_once():
    generator = np.random.default_rng(2)
    seeds, examples, missed, trials = 5, 60, 0, 200
    for _ in range(trials):
        reference = generator.normal(size=(seeds, examples)) * 5 + generator.normal(size=(seeds, 1))
        tables = {
            name: generator.normal(size=(seeds, examples)) * 5 + generator.normal(size=(seeds, 1)) - reference
            for name in "abc"
        }
        intervals = simultaneous_intervals(tables)
        missed += any(low > 0 or high < 0 for low, high in intervals.values())
    low, high = paired_difference(tables["a"]).interval()
    assert intervals["a"][0] < low < high < intervals["a"][1]
    assert missed / trials <= 0.08  # 5 % and two and a half standard deviations of 200 trials


@pytest.mark.parametrize(("gain", "verdict"), [(2.0, "larger"), (0.0, "equivalent"), (-2.0, "smaller")])
def test_made_up_worlds_are_classified_as_what_they_are(gain, verdict):
    """The mean of four image tasks with 8 seeds, 100 worlds."""
    generator, right = np.random.default_rng(3), 0
    worlds = zip(*(made_up(IMAGES, gain, 8, generator, 100) for _ in range(4)), strict=True)
    for tasks in worlds:
        mean = Difference.mean_of(tasks)
        low, high = mean.interval()
        equivalent = mean.p_equivalent(1.0) < 0.05
        said = "larger" if low > 0 and not equivalent else "smaller" if high < 0 and not equivalent else None
        right += (said or ("equivalent" if equivalent else "too wide")) == verdict
    assert right >= 95


def test_the_model_over_tasks_is_that_of_a_simulation():
    """Against draws of the prior, weighted by how likely they make the data."""
    values, sizes = np.array([1.0, 2.0, 0.5]), np.array([0.5, 0.4, 0.6])
    model = OverTasks(tuple(values), tuple(sizes))
    generator = np.random.default_rng(4)
    mu, tau = generator.uniform(-9, 11, 400_000), np.abs(generator.normal(size=400_000))
    theta = generator.normal(mu, tau, (3, 400_000))
    weights = stats.norm.pdf(values[:, None], theta, sizes[:, None]).prod(axis=0)
    further = generator.normal(mu, tau)

    def share(holds):
        return np.average(holds, weights=weights)

    assert model.probability(lambda mu: mu > 0) == pytest.approx(share(mu > 0), abs=0.01)
    assert model.probability(lambda mu: np.abs(mu) < 1) == pytest.approx(share(np.abs(mu) < 1), abs=0.01)
    assert model.new_task_above(2.0) == pytest.approx(share(further >= 2.0), abs=0.01)


@pytest.mark.parametrize("table", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, np.nan], [0.0, 1.0]], [1.0, 2.0]])
def test_a_table_that_gives_no_interval_is_refused(table):
    with pytest.raises(ValueError, match="give"):
        paired_difference(table)
