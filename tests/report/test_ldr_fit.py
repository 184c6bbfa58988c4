from pathlib import Path

import pytest

from surm.records.record import Record
from surm.report.studies import ldr_fit

TERMS = [1, 4, 20]
WARM = {1: 0.9, 4: 0.7, 20: 0.4}
EARLY = {1: 0.9, 4: 1.0, 20: 1.4}


def record(target, draw):
    e = draw / 100
    rows = [
        {"fit": fit, "parameters": parameters, "error": error - e}
        for fit, parameters, error in (
            ("circulant", 100, 0.99),
            ("toeplitz_symmetric", 100, 0.995),
            ("toeplitz", 199, 0.97),
        )
    ]
    for terms in TERMS:
        shared = {"terms": terms, "parameters": 200 * terms}
        fits = [("warm", WARM[terms], 50), ("cold", 0.95, 25), ("cold", 0.65, 75), ("svd", 0.6, None)]
        fits += [("descent", EARLY[terms], 200), ("descent", 0.8, 1000)]
        rows += [
            {"fit": fit, **shared, "error": error - e, "steps": steps, "converged": True} for fit, error, steps in fits
        ]
    asked = {"name": "ldr_fit", "target": target, "draw": draw, "terms": TERMS, "cold_starts": 2, "tolerance": 1e-5}
    asked |= {"descent_steps": [200, 1000], "descent_rate": 0.1, "near_rank": 5}
    happened = {"rows": [{"target": target, **row} for row in rows]}
    return Record(Path(), f"{target}{draw}", "finished", {"study": asked}, happened, {})


@pytest.fixture
def records():
    return [record(target, draw) for draw in (1, 0) for target in ("near_low_rank", "random")]


def test_table_has_a_row_for_each_target_and_number_of_terms(records):
    table = ldr_fit.table(records)
    assert len(table) == 2 * (3 + len(TERMS))
    assert table["target"].tolist()[:6] == ["random"] * 6
    row = table[(table["target"] == "random") & (table["fit"] == "W(G, H), r=4")].iloc[0]
    assert (row["parameters"], row["n"]) == (800, 2)
    assert row["mean"] == pytest.approx(0.695)
    assert row["cold"] == pytest.approx(0.645)  # the better of two starts
    assert row["early"] == pytest.approx(0.995)
    assert row["descent"] == pytest.approx(0.795)
    assert row["svd"] == pytest.approx(0.595)
    assert ldr_fit.table(records[::-1]).equals(table)


def test_effects_say_where_the_error_rises_and_which_terms_are_best(records):
    effects = ldr_fit.effects(records)
    assert effects["random: circulant minus Toeplitz"] == pytest.approx([0.02, 0.02])
    assert effects["random: circulant minus symmetric Toeplitz"] == pytest.approx([-0.005, -0.005])
    rise, last, few = (
        "largest rise from one r to the next",
        "error at the largest r minus the least at smaller r",
        "least error at r <= 4 minus the least of all",
    )
    assert effects[f"random: {rise}, warm starts"] == pytest.approx([-0.2, -0.2])
    assert effects[f"random: {rise}, descent stopped early"] == pytest.approx([0.4, 0.4])
    assert effects[f"near low rank: {last}, warm starts"] == pytest.approx([-0.3, -0.3])
    assert effects[f"near low rank: {last}, descent stopped early"] == pytest.approx([0.5, 0.5])
    assert effects[f"random: {few}, warm starts"] == pytest.approx([0.3, 0.3])
    assert effects[f"random: {few}, descent stopped early"] == pytest.approx([0, 0])


def test_notes_compute_what_they_say(records):
    text = "\n".join(ldr_fit.notes(records))
    assert "50 sweeps in the median fit, 75 in the longest; 0 of 36 fits were cut off" in text
    assert "differ by at most 0.2500" in text
    assert "* random: 20 (warm starts)" in text
    assert "1 (descent stopped early)" in text
    assert "+0.0200 (random)" in text
    assert "rank k = 5" in text


def test_figures_are_drawn(records, tmp_path):
    for picture in ldr_fit.pictures(records):
        picture.write(tmp_path / f"{picture.kind}.png")
        assert (tmp_path / f"{picture.kind}.png").read_bytes().startswith(b"\x89PNG")
