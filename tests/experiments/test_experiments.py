"""Every experiment file, shrunk to a tiny model and a handful of rows in the hub's layout, runs to its table."""

import importlib.util
import json
import random
import sys
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from surm.config.command import entry_of
from surm.config.compose import TRAIN, compose_run, compose_sweep, composer, groups, sweep_members
from surm.config.run import Run
from surm.experiments.forecast import forecast
from surm.experiments.plan import Experiment, load_experiment, load_scale, training_runs
from surm.methods.names import label, style_of
from surm.records.record import read_records
from surm.report.claims import papers_beside, read_claims
from surm.report.decide import ABOVE
from surm.report.verdict import named_methods
from surm.shared.errors import ConfigError, FormError
from surm.shared.paths import PAPER as PAPER_FOLDER
from surm.shared.paths import REPOSITORY
from surm.studies.entry import APPROXIMATE
from tests.data.hub_layout import write_tiny

TRAINED = [name for name in groups()["experiment"] if entry_of(name) is TRAIN]
STUDIES = [name for name in groups()["experiment"] if entry_of(name) is APPROXIMATE]
SYSTEMS = {  # the other systems' own experiments, and how many numbers they train at most
    "adalora": 1_991_520,
    "aurora": 50_336 + 18_432,
    "dynamic_dora": 1_991_520,
    "hadamard": 36_864,
    "lora2": 1_336_896,
    "lora_mini": 36_864,
    "lora_xs": 60 * 16**2,
    "lorta": 3_440,
    "melora": 36_864,
}
PAPER = [name for name in TRAINED if name.startswith("paper/") and name[6:].removesuffix("_glue") not in SYSTEMS]
SMALL = [name for name in TRAINED if name.startswith("small/")]
CLAIMS = [name for name in TRAINED if name.startswith(("claims/", "systems/"))]
TINY = {"bert": "tiny_bert", "llama": "tiny_llama", "sam": "tiny_sam"}
BUILT_IN = {"digits", "uuid"}  # take no path
SHRUNK = [
    "trainer.max_steps=1",
    "trainer.epochs=1",
    "trainer.batch_size=4",
    "trainer.gradient_accumulation=1",
    "trainer.precision=no",
    "trainer.workers=0",
    "model.image_size=null",
    "structure.dropped_layers=1",  # of two; ignored but by AdapterDrop
]


@cache
def loaded(name: str) -> Experiment:
    """An experiment as it stands, composed once for the tests of a process."""
    with composer():
        return load_experiment(name)


def tiny_model(name: str) -> str:
    with composer():
        model = compose_sweep([f"experiment={name}", "seed=0"])[0].config.model.name
    return next((tiny for kind, tiny in TINY.items() if kind in model), "tiny_vit")


def datasets(name: str) -> list[str]:
    with composer():
        members = compose_sweep([f"experiment={name}", "seed=0"])
    return list(dict.fromkeys(member.config.dataset.name for member in members))


def reproduce(name: str, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`scripts/reproduce.py`, in this process."""
    script = REPOSITORY / "scripts" / "reproduce.py"
    specification = importlib.util.spec_from_file_location("reproduce", script)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    command = [str(script), "--only", name, "--seeds", "1", "--set", *settings]
    monkeypatch.setattr(sys, "argv", command)
    module.main()


def run_to_table(name: str, folder: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    names = datasets(name)
    for dataset in names:
        if dataset not in BUILT_IN:
            write_tiny(dataset, folder / "data")
    where = [f"dataset.path={folder}/data/${{dataset.name}}"] if (folder / "data").exists() else []
    # The built-in data take no path, and have no place in it.
    if BUILT_IN & set(names) and where:
        settings = [*settings, f"dataset={','.join(dataset for dataset in names if dataset not in BUILT_IN)}"]
    if "uuid" in names:
        settings = [*settings, "dataset.pairs=6"]
    reproduce(name, [f"model={tiny_model(name)}", *SHRUNK, *where, *settings], monkeypatch)
    for record in read_records(folder / "outputs" / "runs").values():
        assert record.finished, record.happened["error"]
        assert record.happened["steps"] == record.asked["trainer"]["max_steps"]
    (table,) = (file for file in (folder / "outputs" / "tables").glob("*.md") if file.stem != "primary_claims")
    return table.read_text()


# A few methods of each kind; the slow test runs them all.
FEW = {
    "paper/table1_images": "structure=full,lora,circulant,bottleneck",
    "paper/table2_vtab": "structure=full,circulant,bottleneck",
    "paper/table5_glue": "structure=linear_probe,lora,kronecker,bottleneck",
}


# Slow tests: each has a small twin among the quick ones.
LONG = [name for name in PAPER if name.replace("paper/", "small/") in SMALL]


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in [*PAPER, *SMALL]]
)
def test_every_experiment_runs_to_its_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = FEW.get(name, "structure=lora,circulant" if "fig6" in name or name.startswith("paper/table7") else "")
    table = run_to_table(name, tmp_path, [few] if few else [], monkeypatch)
    assert "circulant" in table or "Kronecker" in table or "ldr" in table
    run = [dataset for dataset in datasets(name) if dataset not in BUILT_IN]
    assert all(dataset in table for dataset in run) or len(run) == 1  # a table of one task does not repeat its name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper/table1_images", "paper/table5_glue"])
def test_every_method_of_the_large_tables_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = datasets(name)[0]
    table = run_to_table(name, tmp_path, [f"dataset={first}"], monkeypatch)
    for method in ("AdaLoRA", "DoRA", "VeRA", "C3A", "LoKr", "BOFT", "LoRA-FA", "LayerNorm tuning"):
        assert method in table
    own = {
        "paper/table1_images": ("attention only", "AdapterDrop"),
        "paper/table5_glue": ("Compacter", "prefix tuning"),
    }
    assert all(method in table for method in own[name])


@pytest.mark.slow
@pytest.mark.parametrize(("system", "parameters"), SYSTEMS.items())
def test_the_experiments_of_the_systems_run_to_their_tables(
    system: str, parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"paper/{system}_glue"
    test_the_header_counts_the_runs(name)
    of_system = next(run for run in training_runs([loaded(name)]) if run.config.structure.name != "layernorm_tuning")
    planned = forecast(of_system)
    assert planned is not None
    assert planned.trainable == parameters
    # What an allocator prunes needs two steps.
    table = run_to_table(name, tmp_path, ["trainer.max_steps=2", "trainer.epochs=2"], monkeypatch)
    assert style_of(of_system.config.structure.name).label in table
    assert all(dataset in table for dataset in datasets(name))


def test_an_experiment_may_have_settings_of_each_data_set() -> None:
    """The rates of LoRTA's scripts, composed by nodes as alone."""
    stated = {"rte": (1e-2, 1e-2, 160), "cola": (1e-2, 1e-3, 80), "stsb": (5e-2, 5e-3, 80), "sst2": (4e-3, 4e-3, 60)}
    tasks = ",".join(f"glue/{task}" for task in stated)
    command = ["experiment=paper/lorta_glue", f"dataset={tasks}", "seed=0,1"]
    with composer():
        runs = [Run.of(member.config) for member in compose_sweep(command)]
        alone = Run.of(compose_run(["experiment=paper/lorta_glue", "dataset=glue/stsb", "structure=lorta", "seed=1"]))
    found = {
        (run.config.dataset.name[5:], run.config.seed): (run.rate, run.config.optim.head_lr, run.config.trainer.epochs)
        for run in runs
    }
    assert found == {(task, seed): settings for task, settings in stated.items() for seed in (0, 1)}
    assert alone.signature in {run.signature for run in runs}
    with composer(), pytest.raises(ConfigError, match=r"nothing is given for glue/mnli: choose one of glue/rte"):
        compose_run(["experiment=paper/lorta_glue", "dataset=glue/mnli"])


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", [*PAPER, *SMALL, *CLAIMS])
def test_a_sweep_composed_by_axes_is_the_sweep_composed_member_by_member(name: str) -> None:
    with composer():
        by_axes = {run.signature for run in load_experiment(name).runs}
        members = sweep_members([f"experiment={name}"])
        for member in random.Random(0).sample(members, 3):
            with suppress(FormError):  # a hole of the grid
                (alone,) = compose_sweep(member)
                assert Run.of(alone.config).signature in by_axes


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", [*PAPER, *SMALL, *CLAIMS])
def test_the_header_counts_the_runs(name: str) -> None:
    header = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    assert f"# {len(loaded(name).runs):,} runs" in header
    scale, _, only = name.partition("/")
    assert f"experiment={name}" in header or f"SCALE={scale} ONLY={only}" in header


def test_what_a_registered_rule_names_is_planned_under_that_name() -> None:
    """Else it would wait for a method, a data set or a fraction for ever."""
    claims = [claim for claim in read_claims(*papers_beside(PAPER_FOLDER)).values() if claim.registered]
    planned = {}
    for experiment in map(loaded, CLAIMS):
        asked = [run.asked for run in training_runs([experiment])]
        cells = {(of["dataset"]["name"], of["dataset"].get("fraction", 1.0)) for of in asked}
        planned[experiment.name] = ({label(of) for of in asked}, cells)
    for claim in claims:
        methods, cells = planned[claim.table]
        assert set(named_methods(claim)) <= methods, claim.id
        names = claim.rule.get("datasets", [name for name, _ in cells])
        assert set(product(names, claim.rule.get("fractions", [1.0]))) <= cells, claim.id
    headroom, _ = planned["claims_headroom"]
    assert set(ABOVE) <= headroom


def test_the_plan_of_the_paper_holds_each_table_and_figure_with_runs() -> None:
    """Table 4 lists settings, Figs. 2 and 3 show matrices; Fig. 7 is of Tables 1 and 5, Fig. 9, Table 8 of Fig. 4."""
    planned = {file.partition("_")[0] for file in load_scale("paper").experiments}
    numbers = [f"paper/table{k}" for k in (1, 2, 3, 5, 6, 7)] + [f"paper/fig{k}" for k in (1, 4, 5, 6, 8, 10, 11)]
    assert set(numbers) <= planned


def test_tables_share_their_runs() -> None:
    """Fig. 11 and the rows with K and with bias of Table 7 and Fig. 10 are runs of Table 5."""
    names = ("table5_glue", "table7_qv_qkv", "fig10_bias", "fig11_weights")
    with composer():
        signatures = {name: {run.signature for run in load_experiment(f"paper/{name}", seeds=1).runs} for name in names}
    assert signatures["fig11_weights"] <= signatures["table5_glue"]
    assert len(signatures["table7_qv_qkv"] & signatures["table5_glue"]) == len(signatures["table7_qv_qkv"]) // 2
    without_bias = signatures["fig10_bias"] - signatures["table5_glue"]
    assert len(without_bias) == 3 * 8  # structures and tasks


def test_the_runs_that_decide_the_claims_are_those_that_were_registered() -> None:
    """Seeds, lengths and numbers of runs; the tasks' models without dropout, so that methods are paired."""
    runs = {name.removeprefix("claims/"): training_runs([loaded(name)]) for name in CLAIMS}
    assert {name: len(of) for name, of in runs.items()} == {
        "headroom": 48,
        "headroom_texts": 24,
        "headroom_textile": 12,
        "gain": 160,
        "adapters": 64,
        "low_data": 64,
        "placement": 128,
        "budget": 60,
        "image_size": 40,
        "systems/text": 136,
        "systems/images": 136,
        "systems/budgets": 168,
    }
    eight, five, three = set(range(8)), set(range(5)), {100, 101, 102}
    for name, of in runs.items():
        few = five if name in ("budget", "image_size") else three if name.startswith("headroom") else eight
        assert {run.config.seed for run in of} == few, name
        text = of[0].config.model.name == "builtin_bert"
        assert {(run.config.trainer.max_steps, run.config.trainer.batch_size) for run in of} == {
            (240, 64) if text else (188, 32)
        }
        assert {run.config.model.dropout for run in of} == {0.0 if text else None}
        assert {run.config.search.by for run in of} == {"run"}
    assert {(run.config.model.image_size, run.config.dataset.name) for run in runs["image_size"]} == {
        (98, "cifar10"),
        (224, "cifar10"),
    }
    adapters, placement = ({run.signature for run in runs[name]} for name in ("adapters", "placement"))
    assert len(adapters & placement) == 32


def test_methods_of_one_table_have_names_of_their_own() -> None:
    with composer():
        runs = load_experiment("paper/table5_glue", seeds=1, overrides=["dataset=glue/rte"]).runs
    labels = [label(run.asked) for run in runs]
    assert len(set(labels)) == len(labels), json.dumps(sorted(labels), indent=1)
