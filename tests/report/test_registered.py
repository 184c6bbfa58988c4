"""The registered claims: their seeds, their tests, and how they are decided together."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from scipy import stats

from surm.records.record import Evaluation
from surm.report.claims import judge, papers_beside, read_claims, read_registrations, registered_plan
from surm.report.decide import decide, headroom_of
from surm.report.gather import Comparison, Method
from surm.report.plan import GridPlan
from surm.report.verdict import Claim, Verdict
from tests.report import made_up
from tests.report.grids import PAPER, make_grid, request_of, section_of

TASKS = ("cifar10", "cifar10_1000", "mnist5k", "digits")
SEEDS = tuple(range(8))
SEED_SD, EXAMPLE_SD, REST_SD, EXAMPLES = 0.55, 5.0, 18.0, 1_000  # of a difference on an image task, in points


def answers(generator, gain, seeds=SEEDS, examples=EXAMPLES):
    """Which examples two methods get right, (2, seeds, examples): their differences have the deviations above.

    Of each example exactly one method, or both, is right: -1, 0 or +1 with the wanted mean and variance.
    """
    mean = (gain + SEED_SD * generator.standard_normal((len(seeds), 1))) / 100
    mean = mean + EXAMPLE_SD / 100 * generator.standard_normal(examples)
    either = np.maximum((REST_SD / 100) ** 2 + mean**2, np.abs(mean))  # P(they differ)
    drawn = generator.random((len(seeds), examples))
    better = drawn < (either + mean) / 2
    worse = (drawn >= (either + mean) / 2) & (drawn < either)
    return ~worse, ~better


class Run:
    """A run that is nothing but its answers."""

    def __init__(self, seed, right, labels):
        self.seed, self.score = seed, 100 * float(right.mean())
        self.evaluation = Evaluation("accuracy", labels, made_up.answers(labels, right))


def world(gain, generator, tasks=TASKS):
    """One comparison a task, circulant beside LoRA r=1, without files."""
    columns = []
    for task in tasks:
        labels = generator.integers(0, 10, EXAMPLES)
        rights = answers(generator, gain)
        methods = [
            Method(name, [Run(seed, right[seed], labels) for seed in SEEDS], [])
            for name, right in zip(("circulant", "LoRA r=1"), rights, strict=True)
        ]
        columns.append(Comparison(task, "vit", task, 1.0, methods, [], {}, SEEDS))
    return columns


PRIMARY = read_claims(PAPER)["gain_over_lora"]


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("gain", "result", "finding"),
    [(2.0, "agrees", "larger"), (0.0, "disagrees", "equivalent within 1"), (-2.0, "disagrees", "smaller")],
)
def test_made_up_worlds_are_classified_by_the_registered_rule(gain, result, finding):
    """The mean of four image tasks with 8 seeds, 100 worlds, at the strictest level that Holm asks for."""
    generator = np.random.default_rng(11)
    verdicts = [judge(PRIMARY, world(gain, generator)) for _ in range(100)]
    settled = [verdict.at(0.05, min(1.0, 4 * verdict.p)) for verdict in verdicts]
    assert sum((verdict.result, verdict.finding) == (result, finding) for verdict in settled) >= 95


def test_the_registration_keeps_tuning_seeds_out_of_the_reported_ones(tmp_path):
    [registration] = read_registrations(PAPER)
    assert registration.tuning_seeds == [100, 101]
    assert all(
        registration.seeds[name] == list(SEEDS) for name in ("claims_gain", "claims_adapters", "claims_low_data")
    )
    stored = {"seeds": {"a": [0, 100]}, "tuning_seeds": [100], "headroom": "b", "levels": {}}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump({"registration": stored}))
    with pytest.raises(ValueError, match=r"seeds \[100\] are registered for tuning and for reporting"):
        read_registrations(tmp_path)


def test_four_claims_are_primary_and_every_registered_one_has_a_registered_table():
    claims, [registration] = read_claims(PAPER), read_registrations(PAPER)
    registered = [claim for claim in claims.values() if claim.registered]
    assert sum(claim.registered == "primary" for claim in registered) == 4
    assert {claim.table for claim in registered} <= registration.seeds.keys()


def test_what_follows_by_construction_and_what_was_chosen_later_says_why():
    claims = read_claims(PAPER)
    fixed = {name for name, claim in claims.items() if claim.by_construction}
    assert {"ldr_random_best_terms", "ldr_few_terms_near_low_rank", "ldr_toeplitz_gain_near_low_rank"} <= fixed
    assert all(name.startswith("ldr_") for name in fixed)
    assert all(claim.chosen_after for name, claim in claims.items() if name.startswith("pinwheel_"))
    assert len({claim.counted_as for name, claim in claims.items() if name.startswith("psd_")}) == 3


def write_world(folder, cells, seeds=SEEDS):
    """{method: {task: accuracy}} with made-up answers; the planned requests by signature."""
    planned = {}
    for name, of_task in cells.items():
        for task, accuracy in of_task.items():
            labels = np.arange(500) % 10 if task != "digits" else np.arange(400) % 10
            for seed in seeds:
                generator = np.random.default_rng([seed, sum(map(ord, name + task))])
                asked = request_of(name, task, seed)
                right = generator.random(len(labels)) < accuracy
                planned[made_up.write_run(folder, asked, labels, right)] = asked
    return planned


def test_only_registered_seeds_count_and_a_claim_waits_for_all_of_them(tmp_path):
    cells = {name: dict.fromkeys(TASKS, accuracy) for name, accuracy in (("circulant", 0.9), ("LoRA r=1", 0.8))}
    planned = write_world(tmp_path, cells)
    write_world(tmp_path, {"circulant": dict.fromkeys(TASKS, 0.1)}, seeds=[8, 9])  # after a look
    claims, registrations = read_claims(PAPER), read_registrations(PAPER)
    plan = registered_plan(GridPlan("claims_gain", "Gain", list(planned), asked=planned), registrations, claims)
    assert "gain_over_lora" in plan.claims
    section = section_of(plan, tmp_path)
    assert {run.seed for task in section.tasks for method in task.methods for run in method.finished} == set(SEEDS)
    verdict = section.judge(PRIMARY)
    assert verdict.result == "agrees"

    lost = next(name for name, asked in planned.items() if asked["seed"] == 3 and asked["dataset"]["name"] == "digits")
    (tmp_path / lost / "record.json").unlink()
    waiting = section_of(plan, tmp_path).judge(PRIMARY)
    assert (waiting.result, waiting.finding, waiting.p) == ("undecided", "not run", None)
    assert waiting.reason == "to come: 1 of 64 runs (circulant 1)"


def test_a_failed_run_counts_as_the_most_frequent_label(tmp_path):
    planned = write_world(tmp_path, {"circulant": {"digits": 0.9}, "LoRA r=1": {"digits": 0.9}})
    planned |= write_world(tmp_path, {"circulant": {"mnist5k": 0.9}})
    failed = next(name for name, asked in planned.items() if asked["seed"] == 2)
    file = tmp_path / failed / "record.json"
    record = json.loads(file.read_text())
    record |= {"status": "failed", "happened": {"history": [], "error": "loss is not finite"}}
    file.write_text(json.dumps(record))
    plan = GridPlan("claims_gain", "Gain", list(planned), asked=planned, seeds=SEEDS)
    method = section_of(plan, tmp_path).tasks[0].method("circulant")
    scores = {run.seed: run.score for run in method.finished}
    assert scores[2] == 10.0  # ten labels, equally frequent
    assert len(scores) == 8
    without = (
        section_of(GridPlan("other", "Other", list(planned), asked=planned), tmp_path).tasks[0].method("circulant")
    )
    assert {run.seed for run in without.finished} == set(SEEDS) - {2}


def five(**rule):
    rule = {"methods": ["circulant", "Kronecker"], "minus": "LoRA r=1", "threshold": 5, "headroom": 5} | rule
    return Claim("id", "sentence", "place", "reaches", rule, "needs")


@pytest.mark.parametrize(
    ("circulant", "headroom", "words"),
    [
        (0.95, 20.0, "agrees: larger"),
        (0.77, 20.0, "disagrees: smaller"),
        (0.86, 20.0, "too wide to say"),
        (0.95, 4.0, "not testable (no task with headroom)"),
        (0.95, None, "not run (headroom not known of digits)"),
    ],
)
def test_a_gain_of_five_needs_headroom_and_simultaneous_intervals(tmp_path, circulant, headroom, words):
    cells = {"circulant": {"digits": circulant}, "Kronecker": {"digits": 0.75}, "LoRA r=1": {"digits": 0.80}}
    grid = make_grid(tmp_path, write_world(tmp_path, cells))
    grid.give_headroom({} if headroom is None else {task.task: headroom for task in grid.tasks})
    assert str(grid.judge(five())).startswith(words)


def test_headroom_is_the_better_of_full_fine_tuning_and_a_larger_rank(grid_of):
    grid = grid_of({"LoRA r=1": [0.80, 0.82], "full fine-tuning": [0.90, 0.90]})
    assert headroom_of(grid.tasks[0]) == pytest.approx(9.0)
    assert headroom_of(grid_of({"LoRA r=1": [0.8]}).tasks[0]) is None


@pytest.mark.parametrize(
    ("toeplitz", "kronecker", "words"),
    [
        (0.80, 0.82, "agrees: larger"),
        (0.80, 0.97, "disagrees: smaller"),
        (0.80, 0.90, "too wide to say"),
    ],
)
def test_best_of_several_must_beat_each_of_them(tmp_path, toeplitz, kronecker, words):
    cells = {"circulant": 0.90, "Toeplitz": toeplitz, "Kronecker": kronecker}
    planned = write_world(tmp_path, {name: {"digits": accuracy} for name, accuracy in cells.items()})
    rule = {"method": "circulant", "others": ["Toeplitz", "Kronecker"]}
    assert str(make_grid(tmp_path, planned).judge(Claim("i", "s", "p", "best_of", rule, "n"))).startswith(words)


class Judged:
    """A section with given p-values."""

    def __init__(self, p_values):
        self.plan, self.settled = SimpleNamespace(name="table", claims=list(p_values)), {}
        self.p_values = p_values

    def judge(self, claim):
        p = self.p_values[claim.id]
        return Verdict("agrees", "1.0", "", "larger", p, Verdict("undecided", "1.0", "", "too wide to say (±1.0)", p))

    def settle(self, name, verdict):
        self.settled[name] = verdict


def test_claims_are_decided_together():
    """Against Holm's and SciPy's adjusted p-values; a primary claim without a test counts with p = 1."""
    primary = {"a": 0.01, "b": 0.02, "c": 0.03}
    secondary = {"d": 0.03, "e": 0.2, "f": 0.001}
    families = dict.fromkeys([*primary, "absent"], "primary") | dict.fromkeys(secondary, "secondary")
    claims = {
        name: Claim(name, "s", "p", "mean_gain", {}, "n", registered=family, paper="surm")
        for name, family in families.items()
    }
    claims["of another paper"] = Claim("x", "s", "p", "mean_gain", {}, "n", registered="secondary", paper="other")
    section = Judged(primary | secondary)
    decide([section], claims, read_registrations(PAPER))
    assert {name: section.settled[name].p for name in primary} == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06})
    adjusted = stats.false_discovery_control(list(secondary.values()))
    assert [section.settled[name].p for name in secondary] == pytest.approx(list(adjusted))
    results = {name: verdict.result for name, verdict in section.settled.items()}
    assert results == {
        "a": "agrees",
        "b": "undecided",
        "c": "undecided",
        "d": "agrees",
        "e": "undecided",
        "f": "agrees",
    }
    assert section.settled["a"].found == "1.0, adjusted p = 0.040"


def test_a_paper_can_take_the_registration_of_another_and_every_claim_is_in_one_family(tmp_path):
    papers = papers_beside(PAPER)
    claims, registrations = read_claims(*papers), read_registrations(*papers)
    assert papers[0] == PAPER
    assert sorted(name for of in registrations for name in of.papers) == sorted(paper.name for paper in papers)
    for registration in registrations:
        tables = {claim.table for claim in claims.values() if claim.registered and claim.paper in registration.papers}
        assert tables <= registration.seeds.keys()
    stored = {"registration": "nobody"}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError, match="registration: nobody names no paper"):
        read_registrations(tmp_path)
