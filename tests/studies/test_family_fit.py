import numpy as np
import pandas as pd
import pytest
import torch

from surm.structures import structure_class
from surm.studies import family_fit
from surm.studies.family_fit import BUDGET, DIRECTIONS, SIZE, FamilyFitOptions, fits, share, targets

EXPECTED = {  # of an independent computation with other draws, 20 in the mean
    "gaussian": [0.0401, 0.0103, 0.0372, 0.0175, 0.0204, 0.0372, 0.0291, 0.0103, 0.0099],
    "rank_one": [1, 0.010, 0.256, 0.018, 0.021, 0.265, 0.058, 0.012, 0.010],
    "circulant": [0.043, 1, 0.035, 0.019, 0.021, 0.037, 0.029, 0.012, 0.011],
    "blocks": [0.042, 0.010, 0.149, 0.018, 0.021, 0.037, 0.030, 0.041, 0.011],
    "singular": [0.253, 0.010, 0.090, 1, 1, 0.125, 0.054, 0.010, 0.031],
    "rows": [0.108, 0.011, 0.074, 0.060, 0.068, 0.060, 0.036, 0.010, 1],
}
LINEAR = {"circulant": SIZE, "lora_xs_13": 13**2, "lora_xs_14": 14**2, "diagonal": SIZE, "row_scaling": SIZE}


@pytest.fixture(scope="module")
def rows():
    parts = family_fit.parts(FamilyFitOptions())
    assert len(parts) == 20
    return pd.DataFrame([row | part for part in parts for row in family_fit.compute(part, lambda line: None)["rows"]])


def test_means_over_twenty_draws(rows):
    """Within 4 standard errors of the difference of two means, or the last digit of the expected one."""
    groups = rows.groupby(["target", "fit"], sort=False)["share"]
    means, errors = groups.mean(), groups.std() * np.sqrt(2 / 20)
    for target, expected in EXPECTED.items():
        for (fit, mean), value in zip(means[target].items(), expected, strict=True):
            assert abs(mean - value) < 4 * errors[target, fit] + 1e-3, (target, fit, mean)


def test_a_linear_family_holds_its_dimension_of_a_gaussian_target(rows):
    """Mean q / d^2 and variance 2 q (d^2 - q) / (d^4 (d^2 + 2)), those of a beta distribution."""
    gaussian = rows[rows["target"] == "gaussian"].groupby("fit")["share"].mean()
    d2 = SIZE**2
    for fit, q in LINEAR.items():
        error = (2 * q * (d2 - q) / (d2**2 * (d2 + 2)) / 20) ** 0.5
        assert gaussian[fit] == pytest.approx(q / d2, abs=4 * error)


def test_low_rank_holds_about_four_of_d_however_many_blocks():
    """sigma_1 is about 2 sqrt(d), with a negative term of order d^(-2/3) that grows with the number of blocks."""
    matrices = [torch.randn(SIZE, SIZE, dtype=torch.float64) for _ in range(5)]
    for blocks in (1, 2, 4):
        family = structure_class("block_low_rank")
        mean = np.mean([share(m, family.nearest(m, blocks=blocks).dense().detach()) for m in matrices])
        assert 0.85 * 4 / SIZE < mean < 4 / SIZE
    two = structure_class("block_low_rank")
    blocks = [targets(m, torch.Generator().manual_seed(i))["blocks"] for i, m in enumerate(matrices)]
    mean = np.mean([share(m, two.nearest(m, blocks=4, rank=2).dense().detach()) for m in blocks])
    assert mean == pytest.approx(0.273, abs=0.015)


def test_every_family_has_the_budget_and_holds_its_own_target():
    weight = torch.randn(SIZE, SIZE, dtype=torch.float64)
    drawn = targets(weight, torch.Generator().manual_seed(0))
    assert [np.linalg.matrix_rank(drawn[name]) for name in ("rank_one", "singular")] == [1, DIRECTIONS]
    own = {"rank_one": "low_rank", "circulant": "circulant", "singular": "lora_xs_13", "rows": "row_scaling"}
    for target, family in own.items():
        found = fits(drawn[target], weight, seed=0)
        assert share(drawn[target], found[family][1]) == pytest.approx(1)
    counts = {fit: parameters for fit, (parameters, _) in found.items()}
    assert counts.pop("lora_xs_13") < BUDGET < counts.pop("lora_xs_14")
    assert set(counts.values()) == {BUDGET, SIZE}


def test_no_draw_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"^study\.draws=0: give [^.]*\.$"):
        family_fit.validate(FamilyFitOptions(draws=0))
