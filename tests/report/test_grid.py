"""Methods on several tasks: table, long file, picture, and the verdict of every kind of claim over tasks."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from surm.report import GridPlan, build, publish
from surm.report.experiments import ExperimentPlan
from surm.report.grid import Grid
from surm.report.grid_verdicts import COLUMN_RULES
from surm.report.records import read_records
from surm.report.sections import Comparison, make_section
from surm.report.verdicts import COLUMN_KINDS, KINDS, RULES, Claim, describe, read_claims
from tests.report import made_up

PAPER = Path(__file__).parents[2] / "results" / "paper"
EXAMPLES = 2_000
BIAS = {"form": "adapter", "sites": "houlsby", "adapter_bias": True, "activation": "gelu", "position": "after"}
NO_BIAS = BIAS | {"adapter_bias": False}
METHODS = {  # name -> structure and placement
    **{name: (structure, None) for name, structure in made_up.STRUCTURES.items()},
    "circulant (q, v)": (made_up.STRUCTURES["circulant"], {"form": "weight", "parts": ["q", "v"]}),
    "circulant, Houlsby adapter": ({"name": "circulant", "terms": 1}, BIAS),
    "circulant, Houlsby adapter, no bias": ({"name": "circulant", "terms": 1}, NO_BIAS),
    "Kronecker, Houlsby adapter": ({"name": "kronecker", "terms": 1}, BIAS),
    "Kronecker, Houlsby adapter, no bias": ({"name": "kronecker", "terms": 1}, NO_BIAS),
}


def request_of(name, dataset, seed, *, model="builtin_vit", fraction=None, lr=0.003):
    structure, placement = METHODS[name]
    asked = made_up.asked(structure, seed=seed, model=model, dataset=dataset, lr=lr)
    asked |= {"placement": placement} if placement else {}
    asked["dataset"] |= {"fraction": fraction} if fraction else {}
    return asked


def write_cell(folder, name, accuracies, dataset="digits", **more):
    """One run for each accuracy, exact to one example; the hard examples are the same for every method."""
    labels, planned = np.arange(EXAMPLES) % 10, {}
    for seed, accuracy in enumerate(accuracies):
        asked = request_of(name, dataset, seed, **more)
        right = np.arange(EXAMPLES) >= round((1 - accuracy) * EXAMPLES)
        count = made_up.TRAINABLE.get(name, 27_648)
        planned[made_up.write_run(folder, asked, labels, right, trainable_parameters=count)] = asked
    return planned


def make_grid(folder, planned, *, label="", **fields):
    plan = GridPlan("table", "A table", [*planned, *planned], asked=planned, **fields)  # named twice, counted once
    return make_section(plan, read_records(folder), known={}, label=label, paper=PAPER)


@pytest.fixture
def grid_of(tmp_path):
    """A grid from {method: {data set: accuracies of seeds 0, 1, ...}}, or {method: accuracy} on one data set."""
    made = []

    def make(cells, **fields):
        folder, planned = tmp_path / str(len(made)), {}
        made.append(folder)
        for name, of_dataset in cells.items():
            for dataset, accuracies in (of_dataset if isinstance(of_dataset, dict) else {"digits": of_dataset}).items():
                planned |= write_cell(folder, name, accuracies, dataset)
        return make_grid(folder, planned, **fields)

    return make


def claim(kind, scope="every", models=(), **rule):
    return Claim("id", "sentence", "place", kind, rule, "needs", scope, models)


def around(mean, seeds=3):
    """Accuracies of seeds that spread by 0.1 points."""
    return [mean + 0.001 * (seed - (seeds - 1) / 2) for seed in range(seeds)]


# --- table ------------------------------------------------------------------------------------------------------------


def test_the_table_has_hand_computed_cells(grid_of):
    cells = {
        "LoRA r=1": {"digits": [0.90, 0.92], "textile": [0.80, 0.80]},
        "circulant": {"digits": [0.95, 0.97], "textile": [0.85, 0.85]},
        "BitFit": {"digits": [0.5]},
    }
    text = grid_of(cells).text()
    assert "| method | trainable parameters, without head | digits | textile | average |" in text
    assert "| LoRA r=1 | 27,648 | 91.00 ± 1.41 (2) | 80.00 ± 0.00 (2) | 85.50 |" in text
    assert "| circulant | 27,648 | 96.00 ± 1.41 (2) | 85.00 ± 0.00 (2) | 90.50 |" in text
    assert "| BitFit | 50,000 | 50.00 (1) | [1] |  |" in text
    assert "[1] not planned." in text
    assert "accuracy on digits (2,000), textile (2,000)" in text
    assert "Without training: digits majority 10.00 %; textile majority 10.00 %." in text


def test_scores_in_the_opening_table_are_one_line_a_method(grid_of):
    grid = grid_of({"circulant": {"digits": [0.9], "textile": [0.8]}, "BitFit": {"digits": [0.5]}})
    assert grid.scores() == {"circulant": "85.00 %, average of 2 tasks", "BitFit": "finished on 1 of 2 tasks"}


def test_columns_name_model_and_fraction_where_they_differ(tmp_path):
    planned = write_cell(tmp_path, "circulant", [0.9], "digits", fraction=0.02)
    planned |= write_cell(tmp_path, "circulant", [0.9], "digits", model="tiny_vit")
    labels = [column.label for column in make_grid(tmp_path, planned).columns]
    assert labels == ["digits, builtin_vit, 2 %", "digits, tiny_vit"]
    alike = {key: asked for key, asked in planned.items() if "fraction" in asked["dataset"]}
    (column,) = make_grid(tmp_path, alike).columns
    assert (column.label, column.fraction) == ("digits", 0.02)
    assert "after the last epoch, trained on 2 % of the data" in make_grid(tmp_path, alike).text()


def test_methods_of_one_name_are_told_apart_in_their_column(tmp_path):
    planned = write_cell(tmp_path, "circulant", [0.9], lr=0.001) | write_cell(tmp_path, "circulant", [0.9], lr=0.003)
    planned |= write_cell(tmp_path, "circulant", [0.9], "textile", lr=0.003)
    assert make_grid(tmp_path, planned).rows == ["circulant, lr 0.001", "circulant, lr 0.003", "circulant"]


def test_further_seeds_of_the_same_request_join(tmp_path):
    planned = write_cell(tmp_path, "circulant", [0.9, 0.8])
    first = dict([next(iter(planned.items()))])
    assert "85.00 ± 7.07 (2)" in make_grid(tmp_path, first).text()


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
    assert make_grid(tmp_path, planned).pictures().keys() == {"scores"}


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
    assert "| undecided (no finished run of circulant on any task; LoRA r=1 on any task) |" in page
    assert "points, 3 seeds, mean of 2 tasks | agrees |" in page
    assert "| circulant | not in the paper | no finished run |  | 95.00 %, average of 2 tasks |  |" in page
    assert "![scores](figures/table_scores.png)" in page
    assert (tmp_path / "figures" / "table_scores.png").stat().st_size > 10_000


def test_scores_over_fractions_are_drawn(tmp_path):
    planned = write_cell(tmp_path / "runs", "full fine-tuning", around(0.95))
    for fraction in (0.02, 0.2, None):
        planned |= write_cell(tmp_path / "runs", "circulant", around(0.9), fraction=fraction)
    plan = GridPlan("low", "Low data", list(planned), asked=planned)
    publish([plan], tmp_path / "runs", tmp_path, paper=PAPER)
    assert (tmp_path / "figures" / "low_scores.png").stat().st_size > 10_000


# --- verdicts ---------------------------------------------------------------------------------------------------------

GAIN = {"method": "circulant", "minus": "LoRA r=1", "side": "above", "threshold": 0}


def two_tasks(first, second, *, lora=0.90):
    return {
        "LoRA r=1": {"digits": around(lora), "textile": around(lora)},
        "circulant": {"digits": around(first), "textile": around(second)},
    }


@pytest.mark.parametrize(
    ("first", "second", "scope", "expected"),
    [
        (0.95, 0.93, "every", "agrees"),
        (0.85, 0.87, "every", "disagrees"),
        (0.90, 0.90, "every", "undecided"),
        (0.98, 0.88, "every", "undecided (the opposite on textile)"),
        (0.98, 0.88, "some", "agrees"),
        (0.85, 0.87, "some", "undecided (not seen here, and claimed for some tasks only)"),
    ],
)
def test_a_difference_over_tasks(grid_of, first, second, scope, expected):
    verdict = grid_of(two_tasks(first, second)).judge(claim("difference", scope, **GAIN))
    assert str(verdict).startswith(expected)
    if scope == "every":
        assert verdict.found.startswith(f"{100 * ((first + second) / 2 - 0.90):+.2f} [")
        assert verdict.found.endswith("3 seeds, mean of 2 tasks")


@pytest.mark.parametrize(
    ("first", "second", "rule", "expected"),
    [
        (0.95, 0.93, {}, "agrees"),
        (0.95, 0.85, {}, "disagrees"),
        (0.95, 0.90, {}, "undecided (claimed for 2)"),
        (0.95, 0.85, {"at_least": 1}, "agrees"),
    ],
)
def test_a_difference_on_every_task(grid_of, first, second, rule, expected):
    verdict = grid_of(two_tasks(first, second)).judge(claim("every_column", **GAIN, **rule))
    assert str(verdict) == expected


def test_a_task_that_has_not_run_leaves_every_task_open_and_one_opposite_result_does_not(grid_of):
    cells = two_tasks(0.95, 0.93) | {"LoRA r=1": {"digits": around(0.90)}}
    assert str(grid_of(cells).judge(claim("every_column", **GAIN))) == "undecided (1 of 2 tasks not finished)"
    cells["circulant"]["digits"] = around(0.85)
    assert grid_of(cells).judge(claim("every_column", **GAIN)).result == "disagrees"
    assert (
        str(grid_of(cells).judge(claim("difference", **GAIN))) == "undecided (no finished run of LoRA r=1 on textile)"
    )


BEST = {"families": ["circulant", "toeplitz", "kronecker"], "at_least": 2, "of": 2}


def rivals(*lora):
    """Circulant at 90 %, Toeplitz at 85 %, LoRA as given, on two tasks."""
    tasks = ("digits", "textile")
    return {
        "circulant": dict.fromkeys(tasks, around(0.90)),
        "Toeplitz": dict.fromkeys(tasks, around(0.85)),
        "LoRA r=1": {task: around(accuracy) for task, accuracy in zip(tasks, lora, strict=True)},
    }


@pytest.mark.parametrize(
    ("lora", "at_least", "expected", "found"),
    [
        ((0.87, 0.87), 2, "agrees", "surely on 2, possibly on 2 of 2 tasks"),
        ((0.87, 0.95), 2, "disagrees", "surely on 1, possibly on 1 of 2 tasks"),
        ((0.87, 0.95), 1, "agrees", "surely on 1, possibly on 1 of 2 tasks"),
        ((0.87, 0.90), 2, "undecided", "surely on 1, possibly on 2 of 2 tasks"),
    ],
)
def test_best_on_a_number_of_tasks(grid_of, lora, at_least, expected, found):
    verdict = grid_of(rivals(*lora)).judge(claim("best_on", **BEST | {"at_least": at_least}))
    assert (verdict.result, verdict.found) == (expected, found)


def test_among_the_best_two(grid_of):
    one_better = rivals(0.95, 0.95)
    assert grid_of(one_better).judge(claim("top_two_on", **BEST)).result == "agrees"
    two_better = one_better | {"BitFit": {"digits": around(0.93), "textile": around(0.93)}}
    assert grid_of(two_better).judge(claim("top_two_on", **BEST)).result == "disagrees"
    tied = one_better | {"BitFit": {"digits": around(0.90), "textile": around(0.90)}}
    assert str(grid_of(tied).judge(claim("top_two_on", **BEST))) == "undecided (claimed for 2)"


def test_other_forms_and_families_set_apart_count_for_neither_side(grid_of):
    tasks = ("digits", "textile")
    cells = rivals(0.87, 0.87) | {
        "ldr, 1 term": dict.fromkeys(tasks, around(0.95)),
        "circulant, Houlsby adapter": dict.fromkeys(tasks, around(0.97)),
    }
    assert grid_of(cells).judge(claim("best_on", **BEST, form="weight", apart=["ldr"])).result == "agrees"
    assert grid_of(cells).judge(claim("best_on", **BEST, form="weight")).result == "disagrees"
    lora_wins = cells | {"LoRA r=1": dict.fromkeys(tasks, around(0.92))}
    assert grid_of(lora_wins).judge(claim("best_on", **BEST, form="weight", apart=["ldr"])).result == "disagrees"
    assert grid_of(lora_wins).judge(claim("best_on", **BEST, apart=["ldr"])).result == "agrees"


def test_best_needs_every_task_and_every_planned_method(grid_of, tmp_path):
    other_table = grid_of(rivals(0.87, 0.87)).judge(claim("best_on", **BEST | {"of": 5}))
    assert str(other_table) == "undecided (said of 5 tasks, the table has 2)"
    smoke = grid_of(rivals(0.87, 0.87), label="smoke: not evidence").judge(claim("best_on", **BEST))
    assert str(smoke) == "undecided (smoke: not evidence)"

    planned = {}
    for name, accuracy in {"circulant": 0.90, "LoRA r=1": 0.87}.items():
        for dataset in ("digits", "textile"):
            planned |= write_cell(tmp_path, name, around(accuracy), dataset)
    later = request_of("BitFit", "textile", 0)
    waiting = make_grid(tmp_path, planned | {made_up.signature(later): later}).judge(claim("best_on", **BEST))
    assert str(waiting) == "undecided (1 of 2 tasks finished)"


@pytest.mark.parametrize(
    ("qv", "rule", "expected"),
    [
        ((0.90, 0.90), {}, "agrees"),
        ((0.90, 0.95), {}, "disagrees"),
        ((0.90, 0.91), {}, "undecided (claimed for 2)"),
        ((0.89, 0.91), {"mean": True}, "agrees"),
        ((0.90, 0.95), {"mean": True}, "disagrees"),
        ((0.90, 0.92), {"mean": True}, "undecided (the interval is neither within nor outside ±1)"),
    ],
)
def test_equivalence(grid_of, qv, rule, expected):
    cells = {
        "circulant": {"digits": around(0.90), "textile": around(0.90)},
        "circulant (q, v)": {"digits": around(qv[0]), "textile": around(qv[1])},
    }
    rule = {"method": "circulant (q, v)", "minus": "circulant", "margin": 1} | rule
    assert str(grid_of(cells).judge(claim("equivalent", **rule))) == expected


@pytest.mark.parametrize(
    ("circulant", "kronecker", "expected"),
    [(0.95, 0.91, "agrees"), (0.91, 0.95, "disagrees"), (0.93, 0.93, "undecided (the interval contains 0)")],
)
def test_the_larger_gain(grid_of, circulant, kronecker, expected):
    names = [name for name in METHODS if name.endswith(("adapter", "no bias"))]
    cells = dict(zip(names, (around(circulant), around(0.90), around(kronecker), around(0.90)), strict=True))
    rule = {"method": names[0], "minus": names[1], "than": {"method": names[2], "minus": names[3]}}
    verdict = grid_of(cells).judge(claim("larger_gain", **rule))
    assert str(verdict) == expected
    assert verdict.found.startswith(f"{100 * (circulant - kronecker):+.2f} [")


@pytest.mark.parametrize(
    ("circulant", "expected"),
    [(0.95, "agrees"), (0.90, "disagrees"), (0.94, "undecided (the interval contains -1)")],
)
def test_a_fraction_matches_the_whole(tmp_path, circulant, expected):
    planned = write_cell(tmp_path, "full fine-tuning", around(0.95))
    planned |= write_cell(tmp_path, "circulant", around(circulant), fraction=0.02)
    rule = {"method": "circulant", "fraction": 0.02, "dataset": "digits", "reference": "full fine-tuning", "margin": 1}
    assert str(make_grid(tmp_path, planned).judge(claim("matches", **rule))) == expected
    absent = make_grid(tmp_path, planned).judge(claim("matches", **rule | {"fraction": 0.2}))
    assert absent.reason == "no finished run of circulant on 20 % of digits, or of full fine-tuning on all of it"


def test_a_ratio_of_parameters(grid_of):
    grid = grid_of({"circulant": [0.9], "full fine-tuning": [0.9]})  # 21,600,000 / 27,648 = 781.25
    rule = {"method": "circulant", "to": "full fine-tuning", "low": 780, "high": 790}
    assert grid.judge(claim("ratio", **rule)).result == "agrees"
    other = grid_of({"circulant": [0.9], "full fine-tuning": [0.9]}).judge(claim("ratio", **rule | {"low": 785}))
    assert (other.result, other.found) == ("disagrees", "781.2 times (21,600,000 / 27,648)")
    assert grid_of({"circulant": [0.9]}).judge(claim("ratio", **rule)).result == "undecided"


def test_counts_hold_on_every_task(grid_of):
    grid = grid_of({"circulant": {"digits": [0.9], "textile": [0.9]}})
    assert grid.judge(claim("count", method="circulant", equals=27_648)).found == "27,648"
    grid = grid_of({"circulant": {"digits": [0.9], "textile": [0.9]}})
    assert grid.judge(claim("count", method="circulant", equals=1)).result == "disagrees"


def test_a_claim_reads_the_tasks_it_speaks_of(tmp_path):
    planned = {}
    for name, accuracy in {"LoRA r=1": 0.90, "circulant": 0.95}.items():
        planned |= write_cell(tmp_path, name, around(accuracy), model="vit_b16")
        planned |= write_cell(tmp_path, name, around(0.90), "textile", fraction=0.1)
    judged = {
        "agrees": claim("every_column", models=["vit_b16"], **GAIN),
        "undecided (said of vit_l16, run on vit_b16 and builtin_vit)": claim("difference", models=["vit_l16"], **GAIN),
        "undecided (claimed for 1)": claim("every_column", **GAIN, fraction_below=1),
        "undecided (no task that it speaks of)": claim("difference", **GAIN, datasets=["stl10"]),
    }
    for expected, entry in judged.items():
        assert str(make_grid(tmp_path, planned).judge(entry)) == expected


def test_a_comparison_on_one_task_is_judged_as_a_grid_of_one_column(tmp_path):
    planned = write_cell(tmp_path, "circulant", around(0.95)) | write_cell(tmp_path, "LoRA r=1", around(0.90))
    section = make_section(ExperimentPlan("e", "E", list(planned)), read_records(tmp_path), known={}, label="")
    assert isinstance(section, Comparison)
    assert section.judge(claim("every_column", **GAIN)).result == "agrees"
    empty = make_section(ExperimentPlan("e", "E", list(planned)), {}, known={}, label="")
    assert str(empty.judge(claim("every_column", **GAIN))) == "undecided (no task that it speaks of)"


def test_one_seed_is_undecided_in_every_kind(grid_of):
    grid = grid_of({"circulant": [0.95], "LoRA r=1": [0.90]})
    assert str(grid.judge(claim("difference", **GAIN))) == "undecided (one seed, no interval)"
    best = claim("best_on", families=["circulant"], at_least=1, of=1)
    assert grid_of({"circulant": [0.95], "LoRA r=1": [0.90]}).judge(best).result == "undecided"


# --- what is written about the paper ----------------------------------------------------------------------------------


def test_every_kind_has_a_rule_and_a_line_in_the_readme():
    assert set(COLUMN_RULES) == {*RULES, *COLUMN_KINDS}
    readme = (PAPER / "README.md").read_text()
    assert all(f"`{kind}`" in readme for kind in KINDS)


def test_every_claim_of_the_paper_can_be_judged_without_records(tmp_path):
    asked = request_of("circulant", "digits", 0)
    for entry in read_claims(PAPER).values():
        if entry.kind in COLUMN_RULES:
            grid = make_grid(tmp_path, {made_up.signature(asked): asked})
            assert isinstance(grid, Grid)
            assert grid.judge(entry).result == "undecided", entry.id
            assert describe(entry)


def test_the_lists_of_tables_and_of_published_rows_are_whole():
    numbers = yaml.safe_load((PAPER / "numbers.yaml").read_text())
    for name, entry in yaml.safe_load((PAPER / "tables.yaml").read_text()).items():
        assert all(known in numbers or (PAPER / known).exists() for known in entry["known"]), name
    for name in ("vtab1k_baselines", "glue_baselines"):
        stored = yaml.safe_load((PAPER / f"{name}.yaml").read_text())
        assert {len(row["scores"]) for row in stored["rows"].values()} == {len(stored["datasets"])}
    bitfit = dict(zip(stored["datasets"], stored["rows"]["BitFit"]["scores"], strict=True))
    assert np.mean(list(bitfit.values())) == pytest.approx(82.3, abs=0.05)  # the average that its source prints
