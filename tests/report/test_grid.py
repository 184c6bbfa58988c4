"""Methods on several tasks: table, long file and picture."""

import csv

import numpy as np

from surm.report.page import build, publish
from surm.report.plan import GridPlan
from tests.report import made_up
from tests.report.grids import PAPER, around, make_grid, request_of, write_cell

# --- table ------------------------------------------------------------------------------------------------------------


def test_the_table_has_hand_computed_cells(grid_of):
    cells = {
        "LoRA r=1": {"digits": [0.90, 0.92], "textile": [0.80, 0.80]},
        "circulant": {"digits": [0.95, 0.97], "textile": [0.85, 0.85]},
        "BitFit": {"digits": [0.5]},
    }
    text = grid_of(cells).text()
    assert "| method | trainable parameters, without head | digits | textile | average |" in text
    assert "| LoRA r=1 | 27,648 | 91.0 ± 1.4 (2) | 80.0 ± 0.0 (2) | 85.5 |" in text
    assert "| circulant | 27,648 | 96.0 ± 1.4 (2) | 85.0 ± 0.0 (2) | 90.5 |" in text
    assert "| BitFit | 50,000 | 50.0 (1) | [1] |  |" in text
    assert "[1] not planned." in text
    assert "accuracy on digits (2,000), textile (2,000)" in text
    assert "Without training: digits majority 10.0 %; textile majority 10.0 %." in text


def test_scores_in_the_opening_table_are_one_line_a_method(grid_of):
    grid = grid_of({"circulant": {"digits": [0.9], "textile": [0.8]}, "BitFit": {"digits": [0.5]}})
    assert grid.scores() == {"circulant": "85.0 %, average of 2 tasks", "BitFit": "finished on 1 of 2 tasks"}


def test_columns_name_model_and_fraction_where_they_differ(tmp_path):
    planned = write_cell(tmp_path, "circulant", [0.9], "digits", fraction=0.02)
    planned |= write_cell(tmp_path, "circulant", [0.9], "digits", model="tiny_vit")
    labels = [task.title for task in make_grid(tmp_path, planned).tasks]
    assert labels == ["digits, builtin_vit, 2 %", "digits, tiny_vit"]
    alike = {key: asked for key, asked in planned.items() if "fraction" in asked["dataset"]}
    (task,) = make_grid(tmp_path, alike).tasks
    assert (task.title, task.fraction) == ("digits", 0.02)
    assert "after the last epoch, trained on 2 % of the data" in make_grid(tmp_path, alike).text()


def test_methods_of_one_name_are_told_apart_in_their_column(tmp_path):
    planned = write_cell(tmp_path, "circulant", [0.9], lr=0.001) | write_cell(tmp_path, "circulant", [0.9], lr=0.003)
    planned |= write_cell(tmp_path, "circulant", [0.9], "textile", lr=0.003)
    assert make_grid(tmp_path, planned).rows == ["circulant, lr 0.001", "circulant, lr 0.003", "circulant"]


def test_further_seeds_of_the_same_request_join(tmp_path):
    planned = write_cell(tmp_path, "circulant", [0.9, 0.8])
    first = dict([next(iter(planned.items()))])
    assert "85.0 ± 7.1 (2)" in make_grid(tmp_path, first).text()


def test_missing_and_failed_runs_are_summarised(tmp_path):
    planned = write_cell(tmp_path, "LoRA r=1", [0.9, 0.9], "digits") | write_cell(
        tmp_path, "LoRA r=1", [0.9], "textile"
    )
    more = [request_of("LoRA r=1", "textile", 1)]
    more += [request_of("Kronecker", dataset, seed) for dataset in ("digits", "textile") for seed in (0, 1, 2)]
    planned |= {made_up.signature(asked): asked for asked in more}
    failed = request_of("BitFit", "textile", 0)
    labels = np.arange(10)
    name = made_up.write_run(
        tmp_path, failed, labels, labels < 9, status="failed", error="loss is NaN at step 7\ntrace"
    )
    grid = make_grid(tmp_path, planned | {name: failed})
    text = grid.text()
    assert "* not run: LoRA r=1 on textile, 1 of 2 seeds\n" in text
    assert "* not run: Kronecker on all 2 tasks, 3 of 3 seeds\n" in text
    assert "* BitFit: failed, loss is NaN at step 7 (textile seed 0)\n" in text
    assert "| Kronecker |  | [1] | [1] |  |" in text
    assert "| BitFit |  | [2] | [3] |  |" in text
    assert "[1] not run; [2] not planned; [3] failed." in text


def test_500_missing_runs_do_not_flood(tmp_path):
    asked = [
        request_of(name, f"task{column}", seed)
        for name in made_up.STRUCTURES
        for column in range(21)
        for seed in range(3)
    ]
    planned = {made_up.signature(question): question for question in asked}
    assert len(planned) == 504
    nothing = make_grid(tmp_path, planned).text()
    assert nothing.startswith("No record yet: 504 runs are planned, 8 methods on 21 tasks.")
    assert "make reproduce ONLY=table" in nothing
    assert len(nothing.splitlines()) == 1
    one = planned | write_cell(tmp_path, "circulant", [0.9], "task0")
    assert len(make_grid(tmp_path, one).text().splitlines()) < 30
    assert [picture.kind for picture in make_grid(tmp_path, planned).pictures() if picture.file] == ["scores"]


def test_the_long_file_has_a_line_for_each_task_and_method(tmp_path):
    planned = write_cell(tmp_path / "runs", "LoRA r=1", [0.90, 0.92], "digits", fraction=0.1)
    planned |= write_cell(tmp_path / "runs", "circulant", [0.95, 0.97], "digits", fraction=0.1)
    later = request_of("circulant", "textile", 0, lr=0.001)
    planned |= {made_up.signature(later): later}
    plan = GridPlan("table", "A table", list(planned), asked=planned)
    publish([plan], tmp_path / "runs", tmp_path, paper=PAPER, draw=False)
    with (tmp_path / "tables" / "table.csv").open() as file:
        lora, circulant, absent = csv.DictReader(file)
    assert list(lora)[:5] == ["model", "dataset", "fraction", "method", "trainable_parameters"]
    assert (lora["model"], lora["dataset"], lora["fraction"]) == ("builtin_vit", "digits", "0.1")
    assert (circulant["mean"], circulant["n"], circulant["difference"]) == ("96", "2", "5")
    assert (absent["dataset"], absent["fraction"], absent["mean"]) == ("textile", "1", "")
    assert (absent["method"], absent["n"], absent["learning_rate"]) == ("circulant", "0", "0.001")
    assert absent["note"] == "not run: 1 of 1 seeds"


def test_image_sizes_are_columns_and_stand_in_the_long_file(tmp_path):
    cells = {}
    for size, accuracies in ((98, [0.90, 0.92]), (224, [0.95, 0.97])):
        for asked in write_cell(tmp_path / "drawn", "circulant", accuracies, "cifar10").values():
            asked = asked | {"model": asked["model"] | {"image_size": size}}
            right = np.arange(100) < 100 * accuracies[asked["seed"]]
            cells[made_up.write_run(tmp_path / "runs", asked, np.arange(100) % 10, right)] = asked
    grid = make_grid(tmp_path / "runs", cells)
    assert [task.title for task in grid.tasks] == ["cifar10, 98 px", "cifar10, 224 px"]
    small, large = csv.DictReader(grid.file().csv().splitlines())
    assert list(small)[:5] == ["model", "dataset", "fraction", "image_size", "method"]
    assert [(line["image_size"], line["mean"]) for line in (small, large)] == [("98", "91"), ("224", "96")]


def test_rows_of_other_publications_stand_below(tmp_path):
    asked = request_of("circulant", "vtab/dtd", 0)
    grid = make_grid(tmp_path, {made_up.signature(asked): asked}, published="vtab1k_baselines")
    assert "| published elsewhere | parameters (M) | vtab/dtd | source |" in grid.text()
    assert "| LoRA r=8 | 0.295 | 69.4 | FacT, Table 1 |" in grid.text()


# --- page and picture -------------------------------------------------------------------------------------------------


def test_page_of_a_grid(tmp_path):
    planned = {}
    for name, accuracy in {"LoRA r=1": 0.90, "circulant": 0.95}.items():
        for dataset in ("digits", "textile"):
            planned |= write_cell(tmp_path / "runs", name, around(accuracy), dataset)
    plan = GridPlan("table", "A table", list(planned), ["small_image_gain_over_lora"], asked=planned)
    page = build([plan], tmp_path / "none", tmp_path / "runs", tmp_path, label="", paper=PAPER).read_text()
    assert "| not run (no finished run of circulant on any task; LoRA r=1 on any task) |" in page
    assert "points, 3 seeds, mean of 2 tasks | agrees: " in page
    assert "| circulant | not in the paper | no finished run |  | 95.0 %, average of 2 tasks |  |" in page
    assert "![scores](figures/table_scores.png)" in page
    assert (tmp_path / "figures" / "table_scores.png").stat().st_size > 10_000


def test_scores_over_fractions_are_drawn(tmp_path):
    planned = write_cell(tmp_path / "runs", "full fine-tuning", around(0.95))
    for fraction in (0.02, 0.2, None):
        planned |= write_cell(tmp_path / "runs", "circulant", around(0.9), fraction=fraction)
    plan = GridPlan("low", "Low data", list(planned), asked=planned)
    publish([plan], tmp_path / "runs", tmp_path, paper=PAPER)
    assert (tmp_path / "figures" / "low_scores.png").stat().st_size > 10_000
