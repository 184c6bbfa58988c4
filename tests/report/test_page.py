import csv
import statistics

import numpy as np
import pytest

from surm.report.page import build, publish
from surm.report.plan import ComparisonPlan
from tests.report import made_up
from tests.report.grids import PAPER, section_of

ACCURACIES = {"linear probe": 0.84, "LoRA r=1": 0.95, "circulant": 0.98}


@pytest.fixture
def section(tmp_path):
    """A section from made-up runs: `section({"circulant": 0.98, "LoRA r=1": 0.95})`."""

    def make(accuracies, name="laptop", **options):
        signatures = made_up.write_experiment(tmp_path / name, accuracies, **options)
        return section_of(ComparisonPlan(name, "ViT-S/14 on digits", signatures), tmp_path / name)

    return make


def rows_by_method(section):
    return {row["method"]: row for row in section.frame().to_dict("records")}


def test_numbers_are_those_of_the_records(section):
    laptop = section(ACCURACIES)
    row = rows_by_method(laptop)["circulant"]
    scores, lora = (
        [100 * run.happened["metrics"]["accuracy"] for run in laptop.task.method(name).finished]
        for name in ("circulant", "LoRA r=1")
    )
    assert row["mean"] == pytest.approx(statistics.mean(scores))
    assert row["sd"] == pytest.approx(statistics.stdev(scores))
    assert row["difference"] == pytest.approx(statistics.mean(a - b for a, b in zip(scores, lora, strict=True)))
    assert row["low"] < row["difference"] < row["high"]
    assert row["best_epoch_mean"] == pytest.approx(row["mean"] + 0.5)
    assert (row["n"], row["trainable_parameters"], row["head_parameters"]) == (3, 27_648, 3_850)
    assert (row["seconds_per_step"], row["peak_memory_mib"], row["learning_rate"]) == (pytest.approx(0.2), 1024, 0.003)


def test_unfinished_and_missing_runs_are_listed(tmp_path):
    planned = made_up.write_experiment(tmp_path, ACCURACIES, seeds=2)
    labels = np.arange(10)
    for seed, status, error in [(2, "failed", "loss is NaN at step 7\ntrace"), (3, "interrupted", None)]:
        request = made_up.asked(made_up.STRUCTURES["circulant"], seed=seed)
        planned.append(made_up.write_run(tmp_path, request, labels, labels < 9, status=status, error=error))
    request = made_up.asked(made_up.STRUCTURES["BitFit"])
    planned.append(made_up.write_run(tmp_path, request, labels, labels < 9, status="failed", error="out of memory"))
    plan = ComparisonPlan("e", "E", [*planned, "deadbeef0000"])
    section = section_of(plan, tmp_path)
    rows = rows_by_method(section)
    assert rows["circulant"]["n"] == 2
    assert rows["circulant"]["note"] == "seed 2 failed; seed 3 interrupted"
    assert (rows["BitFit"]["n"], rows["BitFit"]["note"]) == (0, "seed 0 failed")
    assert np.isnan(rows["BitFit"]["mean"])
    text = section.text()
    assert f"* `{planned[-3]}` circulant, seed 2: failed, loss is NaN at step 7\n" in text
    assert f"* `{planned[-1]}` BitFit, seed 0: failed, out of memory\n" in text
    assert "* `deadbeef0000`: planned, no record" in text
    assert "| BitFit |  |  |  |  | 0 |  |" in text


def test_costs_stand_relative_to_the_reference(tmp_path):
    planned = made_up.write_experiment(tmp_path, {"LoRA r=1": 0.9}, seeds=2)
    labels, right = np.arange(600) % 10, np.arange(600) >= 60
    planned += [
        made_up.write_run(
            tmp_path,
            made_up.asked(made_up.STRUCTURES["circulant"], seed=seed),
            labels,
            right,
            seconds_per_step=seconds,
            peak_memory_bytes=2**29,
            peak_trainable_parameters=30_000,
        )
        for seed, seconds in [(0, 0.3), (1, 1.7)]  # the second beside something else that the machine did
    ]
    rows = rows_by_method(section_of(ComparisonPlan("e", "E", planned), tmp_path))
    assert rows["circulant"]["relative_seconds"] == pytest.approx(0.3 / 0.2)
    assert rows["circulant"]["relative_memory"] == 0.5
    assert rows["circulant"]["peak_parameters"] == 30_000
    assert np.isnan(rows["LoRA r=1"]["peak_parameters"])


def test_a_missing_number_says_why(section):
    rows = rows_by_method(section(ACCURACIES, seeds=1))
    assert np.isnan(rows["circulant"]["low"])
    assert rows["circulant"]["note"] == "one seed, no interval"
    alone = rows_by_method(section({"circulant": 0.9}, name="alone"))
    assert alone["circulant"]["note"] == "no finished run of LoRA r=1 to compare with"


def test_baselines_and_label_stand_below_the_table(tmp_path):
    plan = ComparisonPlan("e", "E", made_up.write_experiment(tmp_path, ACCURACIES))
    text = section_of(plan, tmp_path, "smoke: not evidence", evidence=False).text()
    assert "Without training: majority 10.0 %." in text
    assert "**smoke: not evidence**" in text


def test_published_tables_are_rebuilt_byte_for_byte(tmp_path):
    signatures = made_up.write_experiment(tmp_path / "runs", ACCURACIES, published=True)
    plans = [ComparisonPlan("laptop", "ViT-S/14 on digits", signatures)]
    for output in ("first", "second"):
        publish(plans, tmp_path / "runs", tmp_path / output, name="both")
    for name in ("laptop.md", "laptop.csv"):
        first, second = ((tmp_path / output / "tables" / name).read_bytes() for output in ("first", "second"))
        assert first == second
    with (tmp_path / "first" / "tables" / "laptop.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == list(ACCURACIES)
    pictures = {file.name for file in (tmp_path / "first" / "figures").iterdir()}
    assert pictures == {
        "laptop_accuracy_over_parameters.png",
        "laptop_learning_curves.png",
        "both_accuracy_over_parameters.png",
    }
    assert b"Software" not in (tmp_path / "first" / "figures" / "laptop_learning_curves.png").read_bytes()


def test_page_sets_paper_published_and_this_run_side_by_side(tmp_path):
    signatures = made_up.write_experiment(tmp_path / "runs", ACCURACIES, seeds=2)
    made_up.write_experiment(tmp_path / "published", ACCURACIES | {"circulant": 0.90}, seeds=4, published=True)
    plan = ComparisonPlan("laptop", "ViT-S/14 on digits", signatures, ["image_gain_over_lora"])
    page = build([plan], tmp_path / "published", tmp_path / "runs", tmp_path, label="laptop", paper=PAPER)

    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in page.read_text().splitlines()}
    gain = cells["circulant minus LoRA r=1 > 0 points"]
    assert gain[1].endswith("(abstract, section 6)")
    assert (gain[2].count("4 seeds"), gain[3]) == (1, "disagrees: smaller")
    assert gain[4].startswith("+")
    assert "2 seeds" in gain[4]
    assert "| linear probe | not in the paper |" in page.read_text()
    for link in ("laptop_accuracy_over_parameters.png", "laptop_learning_curves.png"):
        assert f"(figures/{link})" in page.read_text()
        assert (tmp_path / "figures" / link).exists()


def test_smoke_page_without_any_published_record(tmp_path):
    signatures = made_up.write_experiment(tmp_path / "runs", ACCURACIES, seeds=1)
    plan = ComparisonPlan("smoke", "ViT-S/14 on digits", signatures, ["image_gain_over_lora"])
    label = "smoke: not evidence"
    text = build(
        [plan], tmp_path / "published", tmp_path / "runs", tmp_path, label=label, evidence=False, paper=PAPER
    ).read_text()
    assert "undecided (smoke: not evidence)" in text
    assert "agrees" not in text
    assert text.startswith("# Report\n\n**smoke: not evidence**\n")


def test_page_of_a_plan_that_has_not_run(tmp_path):
    plan = ComparisonPlan("later", "ViT-S/14 on digits", ["deadbeef0000"], ["image_gain_over_lora"])
    text = build([plan], tmp_path / "p", tmp_path / "r", tmp_path, label="", paper=PAPER).read_text()
    assert "not run (no finished run of circulant, LoRA r=1)" in text
    assert "* `deadbeef0000`: planned, no record" in text


@pytest.mark.parametrize(("epochs", "said"), [(3, False), (9, True)])
def test_rates_that_were_searched_at_another_length_are_named(tmp_path, epochs, said):
    signatures = made_up.write_experiment(tmp_path, ACCURACIES, seeds=2)
    search = made_up.asked(made_up.STRUCTURES["circulant"], trainer={"epochs": epochs})
    search["dataset"]["evaluate_on"] = "selection"
    made_up.write_run(tmp_path, search, np.arange(9), np.ones(9, bool), steps=75)
    text = section_of(ComparisonPlan("e", "E", signatures), tmp_path).text()
    sentence = f"Rates on digits were searched in runs of {epochs} epochs (75 steps), and used here for 3 epochs."
    assert (sentence in text) == said


def test_the_number_of_rates_that_were_tried_is_said_of_each_method(tmp_path):
    signatures = made_up.write_experiment(tmp_path, {**ACCURACIES, "BitFit": 0.9}, seeds=2)
    rates = {"LoRA r=1": [0.001, 0.003], "circulant": [0.001, 0.003], "BitFit": [0.003]}
    searches = [(method, lr, seed) for method, values in rates.items() for lr in values for seed in (100, 101)]
    for method, lr, seed in searches:
        search = made_up.asked(made_up.STRUCTURES[method], lr=lr, seed=seed)
        search["dataset"]["evaluate_on"] = "selection"
        made_up.write_run(tmp_path, search, np.arange(9), np.ones(9, bool))
    longer = made_up.asked(made_up.STRUCTURES["BitFit"], lr=0.01, seed=102, trainer={"epochs": 9})
    longer["dataset"]["evaluate_on"] = "selection"  # of runs of another length, so that it is no value of these
    made_up.write_run(tmp_path, longer, np.arange(9), np.ones(9, bool))
    other = made_up.asked(made_up.STRUCTURES["linear probe"], lr=0.1, seed=100)
    other["dataset"]["evaluate_on"] = "selection"  # of which the rate of the runs, 0.003, is not the best
    made_up.write_run(tmp_path, other, np.arange(9), np.ones(9, bool))

    text = section_of(ComparisonPlan("e", "E", signatures), tmp_path).text()
    values = "the best of 2 values each (BitFit 1; linear probe not searched), scored with seeds 100, 101"
    assert f"Learning rates on digits: {values} on a slice of the training split." in text


def test_nothing_is_said_of_rates_without_a_search(tmp_path):
    signatures = made_up.write_experiment(tmp_path, ACCURACIES, seeds=2)
    assert "Learning rates on" not in section_of(ComparisonPlan("e", "E", signatures), tmp_path).text()
