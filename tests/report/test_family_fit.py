from pathlib import Path

import pytest

from surm.records.record import Record
from surm.report.reportable import check_reportable
from surm.report.studies import family_fit
from surm.shared.errors import RecordError
from surm.studies.family_fit import FAMILIES, SIZE, targets


def record(draw, **shares):
    rows = [
        {"target": target, "fit": fit, "parameters": 96 + index, "share": shares.get(fit, 0.01 * index) + 0.001 * draw}
        for target in family_fit.TARGETS
        for index, fit in enumerate(family_fit.FITS)
    ]
    asked = {"study": {"name": "family_fit", "draw": draw}}
    return Record(Path(), f"signature{draw}", "finished", asked, {"rows": rows}, {})


@pytest.fixture
def records():
    return [record(draw) for draw in (2, 0, 1)]


def test_table_has_a_row_for_each_target_and_fit(records):
    table = family_fit.table(records)
    assert len(table) == 6 * 9
    third = table.iloc[2]
    assert (third["target"], third["fit"], third["parameters"]) == ("Gaussian", "MELoRA r=1, 4 blocks", 98)
    assert (third["mean"], third["sd"], third["n"]) == pytest.approx((0.021, 0.001, 3))
    assert family_fit.table(records[::-1]).equals(table)


def test_effects_are_differences_to_lora_by_draw(records):
    effects = family_fit.effects([record(1, low_rank=0.5), record(0)])
    assert effects["circulant minus LoRA r=1, Gaussian"] == pytest.approx([0.01, -0.49])
    assert len(effects) == 6 * 8


def test_notes_compute_what_they_say(records):
    text = "\n".join(family_fit.notes([record(0)]))
    assert "circulant 0.0100 of 0.0104; LoRA-XS r=13 0.0300 of 0.0183" in text
    assert "as MELoRA 0.020 of blocks against 0.000 by LoRA r=1" in text


def test_figure_is_drawn(records, tmp_path):
    for picture in family_fit.pictures(records):
        picture.write(tmp_path / f"{picture.kind}.png")
        assert (tmp_path / f"{picture.kind}.png").read_bytes().startswith(b"\x89PNG")


def test_a_record_that_lacks_a_fit_is_damaged(records):
    check_reportable(records[0])
    del records[0].happened["rows"][4]
    with pytest.raises(RecordError, match="rows lack a fit of a target"):
        check_reportable(records[0])


def test_names_are_those_of_the_study():
    import torch

    weight = torch.randn(SIZE, SIZE, dtype=torch.float64)
    assert family_fit.TARGETS.keys() == targets(weight, torch.Generator()).keys()
    assert list(family_fit.FITS) == [*FAMILIES, "diagonal", "row_scaling"]
    assert family_fit.SIZE == SIZE
