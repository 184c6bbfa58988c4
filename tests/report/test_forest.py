"""The forest plot: what its rows say, also before anything has run."""

import shutil

import numpy as np
import pytest
from scipy.stats import t

from surm.report import forest
from surm.report.claims import read_claims, read_registrations, registered_plan
from surm.report.gather import Comparison, Method
from surm.report.plan import ComparisonPlan, GridPlan
from tests.report.grids import PAPER, request_of, section_of
from tests.report.made_up import signature
from tests.report.test_registered import Run, write_world

PAIR = ("circulant", "LoRA r=1")


def column(task, differences, labels):
    """Circulant misses so many examples fewer than LoRA; each run's are its own."""
    methods = []
    for name in PAIR:
        runs = []
        for seed, fewer in enumerate(differences):
            right = np.ones(len(labels), bool)
            if name == "LoRA r=1":
                right[20 * seed : 20 * seed + fewer] = False
            runs.append(Run(seed, right, labels))
        methods.append(Method(name, runs, []))
    return Comparison(task, "vit", task, 1.0, methods, [], dict(zip("ab", PAIR, strict=True)))


def test_a_row_has_students_interval_and_probability():
    """Each example is missed once at most, so that the spread of the seeds is all there is."""
    missed = np.array([4, 9, 6, 12])
    (block,) = forest.blocks([column("digits", missed, np.arange(400) % 10)], [PAIR])
    (row,) = block.rows
    points = missed / 4
    size = points.std(ddof=1) / 2
    assert row.error.value == pytest.approx(points.mean())
    assert row.error.interval() == pytest.approx(points.mean() + size * t.ppf([0.025, 0.975], 3), rel=1e-6)
    assert row.better == pytest.approx(t.cdf(points.mean() / size, 3))
    assert row.within == pytest.approx(t.cdf((points.mean() + 1) / size, 3) - t.cdf((points.mean() - 1) / size, 3))
    assert (row.word, block.beyond) == ("larger", None)


def test_the_last_row_is_the_mean_of_the_tasks():
    tasks = [column(name, fewer, np.arange(n) % 10) for name, fewer, n in (("a", [4, 6], 400), ("b", [9, 11], 500))]
    (block,) = forest.blocks(tasks, [PAIR])
    assert [row.label for row in block.rows] == ["a", "b", forest.MEAN]
    assert block.rows[-1].error.value == pytest.approx((1.25 + 2.0) / 2)
    assert block.rows[-1].better > 0.9


def test_before_the_runs_every_row_says_so(tmp_path):
    asked = [request_of(name, task, 0) for name in PAIR for task in ("cifar10", "digits")]
    planned = {signature(one): one for one in asked}
    plan = GridPlan("claims_gain", "Gain", list(planned), asked=planned)
    plan = registered_plan(plan, read_registrations(PAPER), read_claims(PAPER))
    assert plan.contrasts[0] == PAIR
    (picture,) = section_of(plan, tmp_path).pictures()
    assert picture.words().startswith(
        "circulant minus LoRA r=1: cifar10 not run; digits not run; mean of the tasks 0 of 2"
    )
    texts = [text.get_text() for axes in picture.figure().axes for text in axes.texts]
    assert texts.count("not run") == 2


def test_one_task_lists_what_has_not_run_by_its_method(tmp_path):
    planned = write_world(tmp_path, {name: {"digits": 0.9} for name in PAIR}, seeds=range(3))
    kept = {name: asked for name, asked in planned.items() if asked["structure"]["name"] == "lora"}
    for name in planned.keys() - kept.keys():
        shutil.rmtree(tmp_path / name)
    plan = ComparisonPlan("gain", "Gain", list(planned), asked=planned, contrasts=[PAIR])
    text = section_of(plan, tmp_path).text()
    assert "* not run: circulant, 3 of 3 seeds\n" in text
    assert "| circulant minus LoRA r=1 | digits | not run |" in text
    assert "no record" not in text


def test_the_section_prints_the_rows_and_their_power(tmp_path):
    planned = write_world(tmp_path, {name: dict.fromkeys(("cifar10", "digits"), 0.9) for name in PAIR}, seeds=range(3))
    plan = GridPlan("gain", "Gain", list(planned), asked=planned, contrasts=[PAIR])
    text = section_of(plan, tmp_path).text()
    assert "| circulant minus LoRA r=1 | cifar10 |" in text
    assert "P(better)" in text
    assert "power for 2 points" in text
    assert "P(a gain of 5 on a further task)" in text
