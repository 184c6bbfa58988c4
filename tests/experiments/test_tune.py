"""The search over learning rates: same budget for all, the best inside, never the reported split."""

import json
import math
from pathlib import Path

import pytest

from surm.config import rates
from surm.config.compose import composer
from surm.experiments import tune
from surm.experiments.plan import TrainingRun, load_experiment, training_runs
from surm.experiments.tune import first_rates, next_rate, search
from surm.records.record import Record


def test_first_values_are_a_factor_of_three_apart_around_the_usual_rate() -> None:
    rates = first_rates("lora")
    assert rates == [1e-3, 3e-3, 9e-3, 2.7e-2]
    assert len(first_rates("full")) == len(rates)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3, 4], 81.0),  # best at the upper edge: one more above
        ([4, 3, 2, 1], 1 / 3),  # best at the lower edge: one more below
        ([1, 3, 2, 0], None),
        ([1, 2, 3, 0], None),
    ],
)
def test_a_range_is_extended_where_the_best_is_at_its_edge(scores: list[float], expected: float | None) -> None:
    tried = {3.0**k: (float(score), 0.0) for k, score in enumerate(scores)}
    found = next_rate(tried)
    assert found == (None if expected is None else pytest.approx(expected, rel=0.05))


def test_equal_metrics_are_decided_by_the_loss() -> None:
    assert next_rate({1.0: (0.9, -0.5), 3.0: (0.9, -0.4), 9.0: (0.9, -0.6)}) is None
    assert next_rate({1.0: (0.9, -0.3), 3.0: (0.9, -0.4), 9.0: (0.9, -0.6)}) == pytest.approx(1 / 3, rel=0.05)


def test_a_search_extends_ranges_and_ignores_the_test_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Made-up scores peak at a known rate; LoRA's lies above its first range."""
    monkeypatch.setattr(tune, "TUNED_RATES", tmp_path / "rates.json")
    monkeypatch.setattr(rates, "TUNED_RATES", tmp_path / "rates.json")
    peaks = {"lora": 0.3, "circulant": 3e-3, "full": 3e-5}
    seen: list[TrainingRun] = []

    def execute(run: TrainingRun) -> Record | None:
        seen.append(run)
        rate = run.config.optim.lr
        assert rate is not None
        if rate > 0.5:
            return None  # diverges
        accuracy = 1 - abs(math.log(rate / peaks[run.config.structure.name])) / 100
        history = [{"step": 1, "evaluation": {"accuracy": accuracy, "loss": 1.0}}]
        happened = {"history": history, "primary_metric": "accuracy"}
        return Record(Path(), run.signature, "finished", run.asked, happened, {})

    with composer():
        members = load_experiment(
            "laptop/digits", seeds=2, overrides=["structure=circulant,lora,full", "model=tiny_vit"]
        )
    search(training_runs([members]), execute)

    assert {run.config.dataset.evaluate_on for run in seen} == {"selection"}
    assert {run.config.seed for run in seen} == {0}
    found = json.loads((tmp_path / "rates.json").read_text())["tiny_vit/digits"]
    assert {method: len(found[method]["tried"]) for method in peaks} == {"lora": 7, "circulant": 4, "full": 5}
    for method, peak in peaks.items():
        tried = sorted(float(rate) for rate in found[method]["tried"])
        assert abs(math.log(found[method]["lr"] / peak)) < math.log(2)
        assert tried[0] < found[method]["lr"] < tried[-1]
