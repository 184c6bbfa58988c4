"""Parts of studies: computed once, recorded, planned and reported like runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from surm.config.command import check_command
from surm.config.compose import TRAIN, composer
from surm.experiments import status as overview
from surm.experiments.plan import Experiment, load_experiment, plan
from surm.experiments.publish import report_plan, report_studies
from surm.experiments.runner import ThisProcess
from surm.experiments.sweep import run_all
from surm.records.record import read_record
from surm.report.page import build
from surm.shared.errors import ConfigError
from surm.shared.paths import REPOSITORY
from surm.studies import registry as experiments
from surm.studies.entry import APPROXIMATE
from surm.studies.registry import STUDIES, Study
from surm.studies.run import run_part


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study=psd_fti"], ["study=psd_fti", "did you mean psd_fit?"]),
        (["study=psd_fit", "study.drws=3"], ["study.drws=3", "did you mean draws?"]),
        (["study=psd_fit", "study.draws=0"], ["study.draws=0", "at least 1"]),
        (["study=psd_fit", "study.draws=many"], ["many", "Integer"]),
        (["experiment=laptop/digits"], ["experiment=laptop/digits", "scripts/train.py"]),
        (["structure=circulant"], ["structure", "study"]),
    ],
)
def test_a_bad_command_is_one_sentence(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command(arguments, APPROXIMATE)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_study_is_not_for_the_training_script() -> None:
    with pytest.raises(ConfigError, match=r"scripts/approximate\.py"):
        check_command(["experiment=full/psd_fit"], TRAIN)


def test_a_part_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    psd_fit = STUDIES["psd_fit"]

    def counting(part: dict, say) -> dict:
        calls.append(part)
        return psd_fit.compute(part, say)

    monkeypatch.setitem(
        experiments.STUDIES, "psd_fit", Study(psd_fit.options, psd_fit.validate, psd_fit.parts, counting)
    )
    planned = _parts(tmp_path, draws=2)
    first = run_part(planned[0], print)
    assert first.status == "finished"
    assert [part.status() for part in planned] == ["finished", "missing"]
    assert run_part(planned[0], print) == first
    assert calls == [planned[0].part]


def test_a_part_that_fails_leaves_a_record_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    psd_fit = STUDIES["psd_fit"]

    def failing(part: dict, say) -> dict:
        raise ArithmeticError("no convergence")

    broken = Study(psd_fit.options, psd_fit.validate, psd_fit.parts, failing)
    part = _parts(tmp_path, draws=1)[0]
    with monkeypatch.context() as patch:
        patch.setitem(experiments.STUDIES, "psd_fit", broken)
        with pytest.raises(ArithmeticError):
            run_part(part, print)
    record = read_record(part.folder.record)
    assert record is not None
    assert (record.status, record.happened["error"]) == ("failed", "ArithmeticError: no convergence")
    assert run_part(part, print).status == "finished"


def test_more_draws_keep_the_signatures_of_fewer(tmp_path: Path) -> None:
    few, many = _parts(tmp_path, draws=2), _parts(tmp_path, draws=4)
    assert [part.signature for part in few] == [part.signature for part in many][:2]
    with composer():
        assert len(load_experiment("laptop/psd_fit", seeds=7).runs) == 7


def test_the_report_puts_published_draws_beside_this_run(tmp_path: Path) -> None:
    """Three draws published, two computed here: each column tells its own number of draws."""
    for folder, draws in (("published", 3), ("outputs", 2)):
        for part in _parts(tmp_path / folder, draws=draws):
            run_part(part, print)
    for path in (tmp_path / "published" / "runs").glob("*/record.json"):
        path.rename(path.parent.parent / f"{path.parent.name}.json")
    with composer():
        full = load_experiment("full/psd_fit")
    parts = _parts(tmp_path / "outputs", draws=2)
    page = build(
        [report_plan(Experiment(full.name, full.title, full.claims, parts))],
        tmp_path / "published" / "runs",
        tmp_path / "outputs" / "runs",
        tmp_path / "outputs",
        label="",
        paper=REPOSITORY / "results" / "papers" / "surm",
    )
    claims = [line for line in page.read_text().splitlines() if "3 draws" in line]
    assert len(claims) == len(full.claims)
    assert all("2 draws" in line for line in claims)
    assert (page.parent / "tables" / "full_psd_fit.csv").exists()


def test_a_study_prints_its_table_and_verdicts_and_a_second_call_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = []
    for _ in range(2):
        parts = plan(check_command(["study=psd_fit", "study.draws=2"], APPROXIMATE), APPROXIMATE)
        assert run_all(parts, ThisProcess()) == 0
        report_studies(parts)
        outputs.append(capsys.readouterr().out)
    for output in outputs:
        assert "tied Kronecker" in output
        assert "* agrees: larger: tied Kronecker minus circulant, rows normalised after > 0" in output
    assert [output.count("done before") for output in outputs] == [0, 2]
    records = [json.loads(path.read_text()) for path in (tmp_path / "outputs" / "runs").glob("*/record.json")]
    assert sorted(record["asked"]["study"]["draw"] for record in records) == [0, 1]


def test_a_plan_lists_parts_and_their_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = _parts(tmp_path, draws=2)
    run_all(parts[:1], ThisProcess())
    overview.print_plan([Experiment("made_up", "Made up", [], parts)])
    out = capsys.readouterr().out
    assert out.count("missing") == 1
    assert "draw 1" in out


def _parts(folder: Path, *, draws: int) -> list[Any]:
    command = ["study=psd_fit", f"study.draws={draws}", f"output_dir={folder}"]
    return plan(check_command(command, APPROXIMATE), APPROXIMATE)
