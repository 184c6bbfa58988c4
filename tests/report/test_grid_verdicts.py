"""The verdict of every kind of claim over several tasks."""

import numpy as np
import pytest
import yaml

from surm.report.claims import describe, read_claims
from surm.report.kinds import KINDS
from surm.report.plan import ComparisonPlan
from tests.report import made_up
from tests.report.grids import METHODS, PAPER, around, claim, make_grid, request_of, section_of, write_cell

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
        (0.90, 0.90, "every", "equivalent within 1"),
        (0.98, 0.88, "every", "undecided (the opposite on textile)"),
        (0.98, 0.88, "some", "agrees"),
        (0.85, 0.87, "some", "undecided (not seen here, and claimed for some tasks only)"),
    ],
)
def test_a_difference_over_tasks(grid_of, first, second, scope, expected):
    verdict = grid_of(two_tasks(first, second)).judge(claim("difference", scope, **GAIN))
    assert str(verdict).startswith(expected)
    if scope == "every":
        assert verdict.found.startswith(f"{100 * ((first + second) / 2 - 0.90):+.1f} [")
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
    assert str(grid_of(cells).judge(claim("difference", **GAIN))) == "not run (no finished run of LoRA r=1 on textile)"


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
    smoke = grid_of(rivals(0.87, 0.87), label="smoke: not evidence", evidence=False).judge(claim("best_on", **BEST))
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
        ((0.89, 0.91), {"mean": True}, "agrees: equivalent within 1"),
        ((0.90, 0.95), {"mean": True}, "disagrees: larger"),
        ((0.90, 0.92), {"mean": True}, "larger"),
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
    [
        (0.95, 0.91, "agrees: larger"),
        (0.91, 0.95, "disagrees: smaller"),
        (0.93, 0.93, "equivalent within 1 (the interval contains 0)"),
    ],
)
def test_the_larger_gain(grid_of, circulant, kronecker, expected):
    names = [name for name in METHODS if name.endswith(("adapter", "no bias"))]
    cells = dict(zip(names, (around(circulant), around(0.90), around(kronecker), around(0.90)), strict=True))
    rule = {"method": names[0], "minus": names[1], "than": {"method": names[2], "minus": names[3]}}
    verdict = grid_of(cells).judge(claim("larger_gain", **rule))
    assert str(verdict) == expected
    assert verdict.found.startswith(f"{100 * (circulant - kronecker):+.1f} [")


@pytest.mark.parametrize(
    ("circulant", "expected"),
    [(0.95, "agrees: equivalent within 1"), (0.90, "disagrees: smaller"), (0.94, "smaller (the interval contains -1)")],
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
        "not run (no task that it speaks of)": claim("difference", **GAIN, datasets=["stl10"]),
    }
    for expected, entry in judged.items():
        assert str(make_grid(tmp_path, planned).judge(entry)) == expected


def test_a_comparison_on_one_task_is_judged_as_a_grid_of_one_column(tmp_path):
    planned = write_cell(tmp_path, "circulant", around(0.95)) | write_cell(tmp_path, "LoRA r=1", around(0.90))
    section = section_of(ComparisonPlan("e", "E", list(planned)), tmp_path)
    assert section.judge(claim("every_column", **GAIN)).result == "agrees"
    empty = section_of(ComparisonPlan("e", "E", list(planned)), {})
    assert str(empty.judge(claim("every_column", **GAIN))) == "not run (no finished run of circulant, LoRA r=1)"


def test_one_seed_is_undecided_in_every_kind(grid_of):
    grid = grid_of({"circulant": [0.95], "LoRA r=1": [0.90]})
    assert str(grid.judge(claim("difference", **GAIN))) == "undecided (one seed, no interval)"
    best = claim("best_on", families=["circulant"], at_least=1, of=1)
    assert grid_of({"circulant": [0.95], "LoRA r=1": [0.90]}).judge(best).result == "undecided"


# --- what is written about the paper ----------------------------------------------------------------------------------


def test_every_kind_has_a_line_in_the_readme():
    readme = (PAPER / "README.md").read_text()
    assert all(f"`{kind}`" in readme for kind in KINDS)


def test_every_claim_of_the_paper_can_be_judged_without_records(tmp_path):
    asked = request_of("circulant", "digits", 0)
    for entry in read_claims(PAPER).values():
        if entry.kind != "effect":
            grid = make_grid(tmp_path, {made_up.signature(asked): asked})
            assert grid.judge(entry).result == "undecided", entry.id
            assert describe(entry)


def test_the_lists_of_tables_and_of_published_rows_are_whole():
    numbers = yaml.safe_load((PAPER / "numbers.yaml").read_text())
    for name, entry in yaml.safe_load((PAPER / "tables.yaml").read_text()).items():
        assert all(known in numbers or (PAPER / known).exists() for known in entry["known"]), name
    for name in ("vtab1k_baselines", "synapse_baselines", "glue_baselines"):
        stored = yaml.safe_load((PAPER / f"{name}.yaml").read_text())
        assert {len(row["scores"]) for row in stored["rows"].values()} == {len(stored["datasets"])}
    bitfit = dict(zip(stored["datasets"], stored["rows"]["BitFit"]["scores"], strict=True))
    assert np.mean(list(bitfit.values())) == pytest.approx(82.3, abs=0.05)  # the average that its source prints
