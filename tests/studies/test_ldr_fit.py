import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import circulant, toeplitz

from surm.studies import ldr_fit
from surm.studies.ldr_fit import LdrFitOptions

QUICK = LdrFitOptions(draws=2, terms=[1, 2, 4], cold_starts=2, tolerance=1e-4, descent_steps=[5, 10])


def draw_target(target, **more):
    generator = torch.Generator().manual_seed(0)
    return ldr_fit.draw_target({"target": target, **more}, generator=generator).numpy()


def basis(fit, n):
    units = np.eye(n)
    zero = np.zeros(n)
    if fit == "circulant":
        return [circulant(unit) for unit in units]
    if fit == "toeplitz_symmetric":
        return [toeplitz(unit) for unit in units]
    return [toeplitz(unit, zero) for unit in units] + [toeplitz(zero, unit) for unit in units[1:]]


def test_single_matrices_fit_as_well_as_least_squares_over_their_dense_bases():
    matrix = draw_target("near_low_rank", near_rank=5)
    errors = {row["fit"]: row for row in ldr_fit.exact_fits(torch.from_numpy(matrix), [])}
    for fit, parameters in {"circulant": 100, "toeplitz_symmetric": 100, "toeplitz": 199}.items():
        A = np.array([member.ravel() for member in basis(fit, 100)]).T
        solution = np.linalg.lstsq(A, matrix.ravel(), rcond=None)[0]
        expected = np.linalg.norm(matrix.ravel() - A @ solution) / np.linalg.norm(matrix)
        assert errors[fit]["error"] == pytest.approx(expected, abs=1e-6)
        assert errors[fit]["parameters"] == parameters


def test_svd_has_the_parameters_of_w_and_leaves_the_tail_of_the_spectrum():
    matrix = draw_target("random")
    tail = np.linalg.svd(matrix, compute_uv=False)[4:]
    row = ldr_fit.exact_fits(torch.from_numpy(matrix), [4])[-1]
    assert row["error"] == pytest.approx(np.linalg.norm(tail) / np.linalg.norm(matrix), rel=1e-9)
    assert row["parameters"] == 2 * 4 * 100


def test_targets_are_those_of_the_paper():
    random = draw_target("random")
    assert random.mean() == pytest.approx(0, abs=0.05)
    assert random.std() == pytest.approx(1, abs=0.05)

    spectrum = np.linalg.svd(draw_target("near_low_rank", near_rank=5), compute_uv=False)
    assert spectrum[4] > 50 > 2 > spectrum[5]  # noise of sd 0.05: largest singular value about 0.05 x 2 sqrt(100) = 1

    sines = draw_target("low_intrinsic_rank")
    s = sines[:, 0]
    np.testing.assert_allclose(sines[:, 2], 3 * s - 4 * s**3, atol=1e-12)  # sin 3t
    np.testing.assert_allclose(np.abs(sines[:, 1]), 2 * np.abs(s) * np.sqrt(1 - s**2), atol=1e-12)  # sin 2t
    noise = draw_target("low_intrinsic_rank_noise", noise=0.05) - sines
    assert noise.std() == pytest.approx(0.05, rel=0.05)


@pytest.fixture(scope="module")
def results():
    return [ldr_fit.compute(part, lambda line: None) for part in ldr_fit.parts(replace(QUICK, draws=1))]


def test_warm_starts_never_rise(results):
    for result in results:
        errors = [row["error"] for row in result["rows"] if row["fit"] == "warm"]
        assert len(errors) == 3
        assert errors == sorted(errors, reverse=True)


def test_one_term_is_as_near_as_the_circulant_it_contains(results):
    for result in results:
        errors = {(row["fit"], row.get("terms")): row["error"] for row in result["rows"]}
        assert errors["warm", 1] < errors["circulant", None]


def test_the_record_says_what_the_optimisers_spent(results):
    for result in results:
        rows = result["rows"]
        searched = [row for row in rows if row["fit"] in ("warm", "cold")]
        assert len(searched) == 3 * (1 + 2)
        assert all(row["converged"] and row["steps"] > 0 for row in searched)
        assert {row["steps"] for row in rows if row["fit"] == "descent"} == {5, 10}


def test_a_part_gives_the_same_result_again(results):
    part = ldr_fit.parts(replace(QUICK, draws=1))[0]
    assert ldr_fit.compute(json.loads(json.dumps(part)), lambda line: None) == results[0]


def test_parts_name_what_moves_their_numbers():
    parts = ldr_fit.parts(QUICK)
    assert len(parts) == len({json.dumps(part) for part in parts}) == 4 * 2
    assert [part for part in parts if part["target"] == "random"] == [
        part for part in ldr_fit.parts(replace(QUICK, noise=0.1, near_rank=7)) if part["target"] == "random"
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"draws": 0},
        {"cold_starts": 0},
        {"near_rank": 0},
        {"tolerance": 0.0},
        {"noise": float("nan")},
        {"terms": []},
        {"terms": [2, 1]},
        {"terms": [0, 1]},
        {"terms": [101]},
        {"descent_steps": [0]},
    ],
)
def test_impossible_options_are_refused_in_one_sentence(change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"^study\.{name}=.*: give .*\.$"):
        ldr_fit.validate(replace(QUICK, **change))


def test_several_ranks_are_targets_and_several_starts_go_on_from_the_first():
    more = replace(QUICK, draws=1, near_ranks=[1, 2], terms=[1, 2])
    one, three = (ldr_fit.parts(replace(more, descent_starts=starts)) for starts in (1, 3))
    assert [part["target"] for part in one] == [
        "random",
        "near_low_rank_1",
        "near_low_rank_2",
        "low_intrinsic_rank",
        "low_intrinsic_rank_noise",
    ]
    assert "descent_starts" not in one[0]
    spectrum = np.linalg.svd(draw_target("near_low_rank_2", near_rank=2), compute_uv=False)
    assert spectrum[1] > 50 > 2 > spectrum[2]

    rows = {
        len(part): [row for row in ldr_fit.compute(part, lambda line: None)["rows"] if row["fit"] == "descent"]
        for part in (one[1], three[1])
    }
    single, several = (rows[length] for length in sorted(rows))
    assert (len(single), len(several)) == (2 * 2, 3 * 2 * 2)  # terms and looks
    assert several[:2] == single[:2]
    assert len({row["error"] for row in several if row["terms"] == 1}) == 6
    assert {row["target"] for row in several} == {"near_low_rank_1"}
