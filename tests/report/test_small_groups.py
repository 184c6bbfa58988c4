"""Whatever is finished, be it one run or an odd one: a page and its tables, never an exception."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surm.report.page import build
from surm.report.plan import ComparisonPlan, GridPlan, Plan
from tests.report import made_up
from tests.report.grids import PAPER, write_cell

CLAIMS = ["image_gain_over_lora"]
Make = Callable[[Path], list[Plan]]


def experiment(accuracies: dict[str, float], folder: str = "runs", missing: tuple[str, ...] = (), **more: Any) -> Make:
    def make(path: Path) -> list[Plan]:
        published = folder == "published"
        signatures = made_up.write_experiment(path / folder, accuracies, published=published, **more)
        return [ComparisonPlan("table", "T", [*signatures, *missing], CLAIMS)]

    return make


def runs(*each: dict[str, Any], structure: str = "circulant", examples: int = 9, **all_of_them: Any) -> Make:
    """One seed for each set of facts."""

    def make(path: Path) -> list[Plan]:
        labels = np.arange(examples)
        signatures = [
            made_up.write_run(
                path / "runs",
                made_up.asked(made_up.STRUCTURES[structure], seed=seed),
                labels,
                labels % 2 == 0,
                **facts,
                **all_of_them,
            )
            for seed, facts in enumerate(each)
        ]
        return [ComparisonPlan("table", "T", signatures, CLAIMS)]

    return make


def grid(
    cells: dict[str, dict[str, list[float]]], lost: int = 0, fractions: tuple[float | None, ...] = (None,)
) -> Make:
    """Methods by data sets; the first `lost` records are gone."""

    def make(path: Path) -> list[Plan]:
        planned: dict[str, Any] = {}
        for fraction in fractions:
            for name, of_dataset in cells.items():
                for dataset, accuracies in of_dataset.items():
                    planned |= write_cell(path / "runs", name, accuracies, dataset, fraction=fraction)
        for signature in list(planned)[:lost]:
            shutil.rmtree(path / "runs" / signature)
        return [GridPlan("table", "T", list(planned), CLAIMS, asked=planned)]

    return make


def of_metric(name: str) -> dict[str, Any]:
    scores = {name: 0.1}
    return {
        "primary_metric": name,
        "metrics": scores,
        "best_epoch_metrics": scores,
        "history": [{"step": 1, "epoch": 1.0, "evaluation": scores}],
    }


LOSS, EVALUATION = {"step": 1, "epoch": 0.1, "loss": 2.0}, {"step": 2, "epoch": 1.0, "evaluation": {"accuracy": 0.5}}
CIRCULANT = {"circulant": {"digits": [0.9]}}
GROUPS: dict[str, Make] = {
    "no plan": lambda _: [],
    "a plan of nothing": lambda _: [ComparisonPlan("table", "T", [], CLAIMS)],
    "a grid of nothing": lambda _: [GridPlan("table", "T", [], CLAIMS)],
    "nothing has run": lambda _: [ComparisonPlan("table", "T", ["deadbeef0000"], CLAIMS)],
    **{f"one run of {name}": experiment({name: 0.9}, seeds=1) for name in made_up.STRUCTURES},
    "one published run": experiment({"circulant": 0.9}, "published", seeds=1),
    "one run, others missing": experiment({"circulant": 0.9}, missing=("deadbeef0000",), seeds=1),
    "two seeds without LoRA": experiment({"circulant": 0.9, "BitFit": 0.8}, seeds=2),
    "equal seeds": experiment({"circulant": 0.5, "LoRA r=1": 0.5}, seeds=2, sd=0.0),
    "nothing right": experiment({"circulant": 0.0, "LoRA r=1": 0.0}, seeds=2, sd=0.0),
    "one example": experiment({"circulant": 0.5, "LoRA r=1": 0.5}, seeds=2, examples=1),
    "no example": runs({}, {}, examples=0),
    "no predictions": runs({}, {}, keep=False),
    "failed": runs({}, status="failed", error="x"),
    "failed without words": runs({}, status="failed", error="\n"),
    "interrupted": runs({}, status="interrupted"),
    "no history": runs({}, history=[]),
    "history of one of two": runs({"history": []}, {"history": [LOSS]}),
    "losses alone": runs({}, history=[LOSS]),
    "evaluations alone": runs({}, history=[EVALUATION]),
    "rows of nothing": runs({}, history=[{"step": 1, "epoch": 0.0}]),
    "a loss of null": runs({}, history=[{**LOSS, "loss": None}]),
    "an evaluation of null": runs({}, history=[{**LOSS, "evaluation": None}]),
    "a loss of 0": runs({}, history=[{**LOSS, "loss": 0.0}]),
    "a loss below 0": runs({}, history=[{**LOSS, "loss": -1.0}]),
    "a loss beyond all": runs({}, history=[{**LOSS, "loss": 1e308}, {**LOSS, "loss": 1e308, "step": 2}]),
    "no baselines": runs({}, baselines={}),
    "no costs": runs({}, seconds_per_step=None, peak_memory_bytes=None),
    "costs of 0": runs({}, seconds_per_step=0.0, peak_memory_bytes=0),
    "nothing trained": runs({}, trainable_parameters=0, head_parameters=0),
    "one trained": runs({}, trainable_parameters=1),
    "2^62 trained": runs({}, trainable_parameters=2**62),
    "an unknown metric": runs(of_metric("f2"), of_metric("f2")),
    "seeds of two metrics": runs(of_metric("accuracy"), of_metric("f1")),
    "a grid of one run": grid(CIRCULANT),
    "a grid of two tasks": grid({"circulant": {"digits": [0.9], "other": [0.8]}}),
    "no task in common": grid({"circulant": {"digits": [0.9]}, "LoRA r=1": {"other": [0.8]}}),
    "a grid of heads": grid({"linear probe": {"digits": [0.9], "other": [0.8]}}),
    "a grid with a gap": grid({"circulant": {"digits": [0.9, 0.91], "other": [0.8]}}, lost=2),
    "a grid without runs": grid(CIRCULANT, lost=1),
    "one share of the data": grid(CIRCULANT, fractions=(0.1,)),
    "two shares of the data": grid(CIRCULANT, fractions=(0.1, None)),
    "a tiny share of the data": grid(CIRCULANT, fractions=(1e-9, 0.5)),
}
QUICK = {
    "no plan",
    "nothing has run",
    "one run of circulant",
    "a grid of one run",
    "a loss of null",
    "seeds of two metrics",
}


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in GROUPS]
)
def test_there_is_a_page(tmp_path: Path, name: str) -> None:
    plans = GROUPS[name](tmp_path)
    out = tmp_path / "out"
    page = build(plans, tmp_path / "published", tmp_path / "runs", out, paper=PAPER)
    assert page.read_text().startswith("# Report")
    assert page.with_suffix(".html").read_text().rstrip().endswith("</html>")
    assert "Damaged files" not in page.with_suffix(".html").read_text()
    for plan in plans:
        assert (out / "tables" / f"{plan.name}.md").read_text().startswith("# T")
        assert (out / "tables" / f"{plan.name}.csv").exists()
