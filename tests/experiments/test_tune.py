"""The search over learning rates: same budget for all, the best inside, never the reported split."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from surm.config import rates
from surm.config.compose import composer
from surm.experiments import tune
from surm.experiments.plan import TrainingRun, load_experiment, training_runs
from surm.experiments.tune import first_rates, first_values, next_rate, one_more, search, searches_by_run
from surm.methods.names import label
from surm.records.record import Record
from surm.shared.errors import RunError


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

    def execute(runs: Sequence[TrainingRun]) -> list[Record | None]:
        return [one(run) for run in runs]

    def one(run: TrainingRun) -> Record | None:
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


# --- search.by=run ----------------------------------------------------------------------------------------------------


def test_every_method_has_as_many_first_values_a_factor_of_two_and_a_half_apart() -> None:
    for structure in ("lora", "circulant", "full", "linear_probe", "bottleneck"):
        values = first_values(structure, 5)
        assert len(values) == 5
        assert all(high / low == pytest.approx(2.5, rel=0.04) for low, high in itertools.pairwise(values))
        assert set(first_values(structure, 4)) < set(values)


def test_one_more_value_is_beyond_the_edge_or_beside_the_best() -> None:
    assert one_more({1.0: (-3.0,), 2.5: (-2.0,), 6.3: (-1.0,)}) == pytest.approx(16, rel=0.02)
    assert one_more({1.0: (-1.0,), 2.5: (-2.0,), 6.3: (-3.0,)}) == pytest.approx(0.4)
    assert one_more({1.0: (-3.0,), 4.0: (-1.0,), 16.0: (-2.0,)}) == 8.0  # the geometric mean with the better neighbour


def loss_of(run: TrainingRun) -> float | None:
    """Made up: lowest at a method's own rate, with a head whose rate matters as much; diverges above 1."""
    best = {"lora": 0.006, "circulant": 0.0009, "full": 1e-4, "linear_probe": 0.6}[run.config.structure.name]
    if run.rate > 1:
        return None
    spread = {100: 0.1, 101: -0.1}[run.config.seed]
    return 1 + spread + abs(math.log(run.rate / best))


def made_up(
    loss: Callable[[TrainingRun], float | None], seen: list[TrainingRun]
) -> Callable[[Sequence[TrainingRun]], list[Record | None]]:
    def one(run: TrainingRun) -> Record | None:
        seen.append(run)
        value = loss(run)
        history = [{"step": 1, "evaluation": {"accuracy": 0.5, "loss": value}}]
        happened = {"history": history, "primary_metric": "accuracy"}
        return None if value is None else Record(Path(), run.signature, "finished", run.asked, happened, {})

    return lambda runs: [one(run) for run in runs]


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    file = tmp_path / "searched.json"
    monkeypatch.setattr(tune, "SEARCHED_RATES", file)
    monkeypatch.setattr(rates, "SEARCHED_RATES", file)
    return file


def members_of(*overrides: str, experiment: str = "claims/gain") -> list[TrainingRun]:
    with composer():
        return training_runs([load_experiment(experiment, overrides=["model=tiny_vit", "dataset=digits", *overrides])])


def test_a_search_by_run_gives_every_method_the_same_number_of_values(searched: Path) -> None:
    """The probe's best lies at the edge of its first values; so does no other method's."""
    seen: list[TrainingRun] = []
    search(members_of("structure=lora,circulant,full"), made_up(loss_of, seen))
    found = json.loads(searched.read_text())["tiny_vit on digits"]["188 steps of 32"]
    assert found.keys() == {"LoRA r=1", "circulant", "full fine-tuning", "linear probe"}
    assert {name: of["lr"] for name, of in found.items()} == {
        "LoRA r=1": 0.0063,
        "circulant": 0.00064,
        "full fine-tuning": 0.0001,
        "linear probe": 0.62,
    }
    assert [len(found[name]["tried"]) for name in ("LoRA r=1", "circulant", "full fine-tuning")] == [5, 5, 5]
    assert len(found["linear probe"]["tried"]) == 6
    assert found["linear probe"]["head_lr"] is None
    assert {of["head_lr"] for name, of in found.items() if name != "linear probe"} == {0.62}
    assert {run.config.dataset.evaluate_on for run in seen} == {"selection"}
    assert {run.config.seed for run in seen} == {100, 101}

    listed = [run for of in found.values() for tried in of["tried"].values() for run in tried["runs"]]
    assert sorted(listed) == sorted({run.signature for run in seen})  # each record that was made, once
    assert found["linear probe"]["tried"]["1.6"]["loss"] is None
    tried = found["circulant"]["tried"]["0.004"]["loss"]
    assert tried == pytest.approx(1 + math.log(0.004 / 0.0009), abs=1e-5)  # the mean over the two seeds


def test_one_method_at_an_edge_gives_all_methods_one_more_value(searched: Path) -> None:
    best = {"lora": 0.07, "circulant": 0.0009, "linear_probe": 0.1}
    search(
        members_of("structure=lora,circulant"),
        made_up(lambda run: abs(math.log(run.rate / best[run.config.structure.name])), []),
    )
    found = json.loads(searched.read_text())["tiny_vit on digits"]["188 steps of 32"]
    assert found["LoRA r=1"]["lr"] == 0.098
    tried = {name: len(of["tried"]) for name, of in found.items()}
    assert tried["LoRA r=1"] == tried["circulant"] == 7
    assert tried["linear probe"] == 5


def test_a_run_takes_the_rate_of_its_own_length_or_says_that_it_is_of_another(searched: Path) -> None:
    search(members_of("structure=lora,circulant"), made_up(loss_of, []))
    (lora, circulant) = members_of("structure=lora,circulant", "seed=0")
    assert (lora.rate, lora.config.optim.head_lr) == (0.0063, 0.62)
    assert circulant.asked["optim"]["lr"] == 0.00064
    assert lora.rate_source.startswith("searched at 188 steps of 32 (")
    (longer,) = members_of("structure=lora", "seed=0", "trainer.max_steps=400")
    assert longer.rate == 0.0063
    assert longer.rate_source.startswith("searched at 188 steps of 32, used for 400 steps of 32")
    for other in ("structure=lora_r2", "dataset.fraction=0.5", "structure=kronecker"):
        (untuned,) = members_of("structure=lora", "seed=0", other)
        assert "not tuned here" in untuned.rate_source, other
    (given,) = members_of("structure=lora", "seed=0", "optim.lr=0.5")
    assert given.rate == 0.5


def test_a_larger_search_replaces_a_smaller_one_and_not_the_other_way(searched: Path) -> None:
    small = ["search.values=3", "search.seeds=[100]", "structure=circulant"]
    search(members_of(*small), made_up(loss_of, []))
    (first,) = json.loads(searched.read_text()).values()
    assert len(first["188 steps of 32"]["circulant"]["tried"]) < 5
    search(members_of("structure=circulant"), made_up(loss_of, []))
    large = searched.read_bytes()
    search(members_of(*small), made_up(loss_of, []))
    assert searched.read_bytes() == large
    both = searches_by_run([*members_of(*small, "seed=0"), *members_of("structure=circulant")])
    assert [member.config.search.values for member in both.values()] == [5, 5]


def test_a_search_whose_runs_all_fail_is_one_sentence_and_writes_nothing(searched: Path) -> None:
    with pytest.raises(RunError, match="linear probe: no run of its search finished"):
        search(members_of("structure=lora"), made_up(lambda run: None, []))
    assert not searched.exists()


def test_variants_of_placement_share_a_search() -> None:
    with composer():
        runs = training_runs([load_experiment("claims/placement", overrides=["dataset=valence"])])
    keys = searches_by_run(runs)
    assert {key.method: label(run.asked) for key, run in keys.items()} == {
        "linear probe": "linear probe",
        "circulant (adapter)": "circulant, Houlsby adapter",
        "Kronecker (adapter)": "Kronecker, Houlsby adapter",
        "circulant": "circulant",
        "Kronecker": "Kronecker",
    }
    assert next(iter(keys)).method == "linear probe"
