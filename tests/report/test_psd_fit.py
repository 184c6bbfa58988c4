from pathlib import Path

import pytest

from surm.records.record import Record
from surm.report.base import Source
from surm.report.claims import read_claims
from surm.report.plan import StudyPlan
from surm.report.sections import make_section
from surm.report.studies import psd_fit
from surm.shared.paths import PAPER

PARAMETERS = {"zero": 0, "identity": 1, "kronecker_free": 100}
ERRORS = {"zero": 10.0, "identity": 6.0, "rank_one": 8.0, "kronecker_tied": 9.0, "kronecker_free": 7.0}
ERRORS |= {"circulant": 5.0, "toeplitz": 4.0}


def record(draw, **errors):
    rows = [
        {"target": target, "normalised": reading, "fit": fit, "parameters": PARAMETERS.get(fit, 50), "error": e + draw}
        for target in psd_fit.TARGETS
        for reading in psd_fit.READINGS
        for fit, e in (ERRORS | errors).items()
    ]
    asked = {"study": {"name": "psd_fit", "draw": draw, "low_rank": 5}}
    return Record(Path(), f"signature{draw}", "finished", asked, {"rows": rows}, {})


@pytest.fixture
def records():
    return [record(draw) for draw in (2, 0, 1)]


def test_table_has_a_row_for_each_target_reading_and_fit(records):
    table = psd_fit.table(records)
    assert len(table) == 3 * 2 * 7
    first = table.iloc[2]
    assert (first["target"], first["fit"], first["parameters"]) == ("G G^T", "rank 1, v v^T", 50)
    assert (first["mean"], first["sd"], first["n"]) == (9.0, 1.0, 3)
    assert psd_fit.table(records[::-1]).equals(table)


def test_effects_are_positive_where_the_order_of_the_paper_holds(records):
    effects = psd_fit.effects([*records[:1], record(1, circulant=8.5), records[1]])
    assert effects["rank 1 minus tied Kronecker, rows normalised after"] == [-1.0, -1.0, -1.0]
    assert effects["rank 1 minus free Kronecker, rows normalised before"] == [1.0, 1.0, 1.0]
    assert effects["tied Kronecker minus circulant, rows normalised after"] == [4.0, 0.5, 4.0]  # by draw


def test_notes_compute_what_they_say(records):
    text = "\n".join(psd_fit.notes([record(0)]))
    assert "explains 85 %" in text  # (100 - 36) / (100 - 25)
    assert "with the diagonal removed the best of 50 parameters is symmetric Toeplitz (4.00" in text
    assert "circulant 5.00, worse in 1 of 1 draws" in text


def test_figure_is_drawn(records, tmp_path):
    for picture in psd_fit.pictures(records):
        picture.write(tmp_path / f"{picture.kind}.png")
        assert (tmp_path / f"{picture.kind}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("planned", "said"), [(3, "agrees: larger"), (5, "not run (2 of 5 parts to come)")])
def test_a_study_is_judged_once_all_its_parts_are_there(records, planned, said):
    source = Source("run", "this run", {record.signature: record for record in records}, PAPER)
    plan = StudyPlan("fits", "Fits", [f"signature{draw}" for draw in range(planned)], study="psd_fit")
    section = make_section(plan, source)
    verdict = section.judge(read_claims(PAPER)["psd_toeplitz_over_circulant_after"])
    assert str(verdict) == said
    assert verdict.found
    assert section.absent() == (["* not run: 2 of 5 parts"] if planned == 5 else [])
