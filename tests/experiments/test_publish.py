"""What is committed below results/ is what the committed records say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from surm.config.command import entry_of
from surm.config.compose import composer
from surm.config.rates import TUNED_RATES, searched_rates
from surm.experiments.plan import load_experiment, load_scale
from surm.experiments.publish import report_plan
from surm.records.record import read_records
from surm.records.recorded import signature
from surm.report import page
from surm.shared.paths import PUBLISHED
from surm.studies.entry import APPROXIMATE

RESULTS = PUBLISHED.parent
RECORDS = read_records(PUBLISHED)


def test_tables_are_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    with composer():
        plans = [report_plan(load_experiment(name)) for name in load_scale("published").experiments]
    page.publish(plans, PUBLISHED, tmp_path, name="published", draw=False)
    names = [f"tables/{plan.name}.{ending}" for plan in plans for ending in ("md", "csv")]
    for name in ["report.md", *names]:
        assert (tmp_path / name).read_bytes() == (RESULTS / name).read_bytes(), name


def test_the_laptop_table_is_whole_with_three_paired_seeds() -> None:
    with composer():
        experiments = [load_experiment(name, seeds=3) for name in ("published/digits", "published/valence")]
    for experiment in experiments:
        assert len(experiment.runs) == 8 * 3
        assert {run.signature for run in experiment.runs} <= RECORDS.keys()


def test_every_published_study_is_whole() -> None:
    with composer():
        studies = [
            load_experiment(name) for name in load_scale("published").experiments if entry_of(name) is APPROXIMATE
        ]
    assert {study.name for study in studies} == {"full_ldr_fit", "full_psd_fit", "full_pinwheel", "full_family_fit"}
    parts = [run.signature for study in studies for run in study.runs]
    assert set(parts) == {record.signature for record in RECORDS.values() if record.is_study}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_record_is_honest(name: str) -> None:
    record = RECORDS[name]
    assert signature(record.asked) == name
    assert record.finished
    assert record.where["dirty"] is False
    assert re.fullmatch("[0-9a-f]{40}", record.where["commit"])
    assert record.is_study or record.evaluation is not None


def test_every_tuned_rate_is_the_best_of_committed_records_and_inside_its_range() -> None:
    searched = set(_searched_runs())
    for place, methods in json.loads(TUNED_RATES.read_text()).items():
        for structure, found in methods.items():
            scores: dict[float, float] = {}
            for record in RECORDS.values():
                asked = record.asked
                if (
                    not record.is_study
                    and asked["dataset"]["evaluate_on"] == "selection"
                    and f"{asked['model']['name']}/{asked['dataset']['name']}" == place
                    and _family(asked) == structure
                    and record.signature not in searched
                ):
                    scores[asked["optim"]["lr"]] = record.happened["metrics"][record.metric]
            assert {float(rate): score for rate, score in found["tried"].items()} == pytest.approx(scores, abs=1e-6)
            assert max(scores.values()) == scores[found["lr"]], (place, structure)
            assert min(scores) < found["lr"] < max(scores), (place, structure)


def test_every_searched_rate_is_the_best_of_committed_records_and_inside_its_range() -> None:
    """Every value that was tried is listed with its runs; a value at which a run diverged has no loss."""
    listed = _searched_runs()
    assert len(set(listed)) == len(listed)
    for lengths in searched_rates().values():
        for length, methods in lengths.items():
            for method, found in methods.items():
                losses = {}
                for rate, tried in found["tried"].items():
                    if tried["loss"] is None:
                        continue
                    records = [RECORDS[run] for run in tried["runs"]]
                    assert {record.asked["dataset"]["evaluate_on"] for record in records} == {"selection"}
                    assert {record.asked["optim"]["lr"] for record in records} == {float(rate)}
                    assert [record.seed for record in records] == found["seeds"]
                    last = [record.happened["history"][-1]["evaluation"]["loss"] for record in records]
                    losses[float(rate)] = tried["loss"]
                    assert tried["loss"] == pytest.approx(sum(last) / len(last), abs=1e-6)
                assert losses[found["lr"]] == min(losses.values()), (length, method)
                tried_rates = [float(rate) for rate in found["tried"]]
                assert min(tried_rates) < found["lr"] < max(tried_rates), (length, method)


def _searched_runs() -> list[str]:
    return [
        run
        for lengths in searched_rates().values()
        for methods in lengths.values()
        for found in methods.values()
        for tried in found["tried"].values()
        for run in tried["runs"]
    ]


def _family(asked: dict[str, Any]) -> str:
    name = asked["structure"]["name"]
    return f"{name} (adapter)" if asked.get("placement", {}).get("form") == "adapter" else name
