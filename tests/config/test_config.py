"""Commands are composed and checked before anything runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from surm.config.command import check_command, entry_of
from surm.config.compose import TRAIN, compose_run, compose_sweep, composer, groups, sweep_members
from surm.config.schema import RunConfig
from surm.experiments.plan import find_experiment, load_scale
from surm.shared.errors import ConfigError
from surm.studies.entry import APPROXIMATE, compose_study

REPOSITORY = Path(__file__).resolve().parents[2]


def compose(*overrides: str) -> RunConfig:
    with composer():
        return compose_run(list(overrides))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["structure=circulnt"], ["structure=circulnt", "did you mean circulant?"]),
        (["structure.name=circulnt"], ["structure.name=circulnt", "did you mean circulant?"]),
        (["trainer.epochs=minus"], ["trainer.epochs=minus", "Integer"]),
        (["trainer.epochs=0"], ["trainer.epochs=0", "at least 1"]),
        (["structure=ldr", "structure.terms=0"], ["terms=0", "at least 1"]),
        (["trainer.epoch=3"], ["trainer.epoch=3", "did you mean epochs?"]),
        (["sed=3"], ["sed=3", "did you mean seed?"]),
        (["structure=kronecker", "structure.factor_shape=[5,7]"], ["factor_shape", "5", "384"]),
        (["structure=lora", "structure.rank=0"], ["rank=0", "at least 1"]),
        (["structure.name=circulant+toeplits"], ["did you mean toeplitz?"]),
        (["optim.lr=-1"], ["optim.lr=-1", "above 0"]),
        (["optim.lr=nan"], ["optim.lr=nan", "above 0"]),
        (["optim.warmup_ratio=2"], ["optim.warmup_ratio=2", "1.0"]),
        (["structure.dropout=1"], ["structure.name=circulant", "dropout=1", "below 1.0"]),
        (["placement.parts=[q,x]"], ["placement.parts", "q, k, v"]),
        (["dataset.evaluate_on=tset"], ["dataset.evaluate_on=tset", "did you mean test?"]),
        (["model=builtin_bert"], ["builtin_bert", "digits", "text", "image"]),
        (["structure=circulant,lora"], ["add -m"]),
        (["-m", "experiment=laptop/digits,laptop/valence"], ["experiment=laptop/digits,laptop/valence", "one command"]),
        (["experiment=laptop_digits"], ["experiment=laptop_digits", "did you mean laptop/digits?"]),
        (["-m", "structure=circulant,circulnt"], ["circulnt", "did you mean circulant?"]),
        (["-m", "structure=circulant,lora", "seed=0,-1"], ["seed=-1", "at least 0"]),
        (["structure={a"], ["structure={a"]),
        (["structure=bottleneck"], ["structure=bottleneck", "placement=adapter_houlsby"]),
        (["structure=lora", "placement=adapter_houlsby"], ["structure=lora", "placement=weight_qkv"]),
        (["-m", "structure=lora,lora_r2", "placement=adapter_houlsby"], ["structure=lora", "placement=weight_qkv"]),
        (["placement=adapter_houlsby", "placement.activation=relu"], ["placement.activation=relu", "gelu"]),
        (["placement=adapter_houlsby", "placement.sites=houlsbi"], ["did you mean houlsby?"]),
        (["placement.parts=[q,q]"], ["placement.parts", "each once"]),
        (["structure=bottleneck", "placement=adapter_houlsby", "structure.size=0"], ["size=0", "at least 1"]),
        (["structure=peft_vera", "+structure.arguments.rank=2"], ["arguments.rank", "VeraConfig"]),
        (["structure.name=peft_nothing"], ["no method of PEFT 'nothing'"]),
        (["dataset.fraction=0"], ["dataset.fraction=0", "above 0"]),
        (["dataset.fraction=1.5"], ["dataset.fraction=1.5", "at most 1"]),
        (["dataset=cifar10", "dataset.path=nowhere"], ["dataset.path=nowhere", "hf download"]),
        (["dataset=vtab/pets"], ["vtab/pets", "dataset.path"]),
        (["dataset=glue/cola"], ["builtin_vit", "glue/cola", "text", "image"]),
        (["model.image_size=43"], ["image_size=43", "14"]),
        (["model.source=tim", "model.name=vit_tiny_patch16_224"], ["tim", "timm"]),
        (["model.source=local", "model.name=mine", "model.path=nowhere"], ["nowhere"]),
        (["device=gpu"], ["device=gpu", "cuda"]),
        (["--config-dir", "elsewhere"], ["--config-dir", "--cfg job"]),
        (["hydra.run.dir=elsewhere"], ["hydra.run.dir=elsewhere", "add -m"]),
        (
            ["model=tiny_bert", "dataset=valence", "structure=prefix_tuning", "trainer.gradient_checkpointing=true"],
            ["structure=prefix_tuning", "gradient_checkpointing"],
        ),
        (["trainer.evaluate_every=0"], ["trainer.evaluate_every=0", "at least 1"]),
    ],
)
def test_a_bad_command_is_one_sentence(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command(arguments, TRAIN)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "arguments",
    [
        ["structure=circulnt"],
        pytest.param(["trainer.epochs=minus"], marks=pytest.mark.slow),
        pytest.param(["structure=ldr", "structure.terms=0"], marks=pytest.mark.slow),
    ],
)
def test_a_bad_command_writes_nothing_and_exits_with_an_error(arguments: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


TASKS_OF_MODELS = {"bert": "valence", "llama": "sums", "sam": "phantoms"}
MODELS_OF_TASKS = {
    "tiny_bert": ("glue/", "valence", "table"),
    "tiny_llama": ("uuid", "sums", "docstrings"),
    "tiny_sam": ("phantoms", "synapse"),
}


def partner(group: str, name: str) -> list[str]:
    """What a model or a data set needs beside it, and a method a model and a placement that it has."""
    if group == "model":
        return ["dataset=" + next((task for kind, task in TASKS_OF_MODELS.items() if kind in name), "digits")]
    if group == "dataset":
        return ["model=" + next((m for m, tasks in MODELS_OF_TASKS.items() if name.startswith(tasks)), "tiny_vit")]
    if name == "prefix_tuning":
        return ["model=tiny_bert", "dataset=valence"]
    return ["placement=adapter_houlsby"] if name.startswith(("bottleneck", "compacter", "adapter_drop")) else []


@pytest.mark.slow
def test_every_group_file_composes_and_fits_the_schema() -> None:
    elsewhere = {*load_scale("paper").experiments, *load_scale("small").experiments}  # whole, in test_experiments.py
    with composer():
        for group, names in groups().items():
            for name in (name for name in names if name not in elsewhere):
                if group == "study" or (group == "experiment" and entry_of(name) is APPROXIMATE):
                    assert compose_study([f"{group}={name}"]).study.name
                elif group == "experiment":
                    assert compose_sweep([f"experiment={name}", "seed=0"])
                elif name not in ("image_folder", "text", "instruct"):  # a user's own: nothing is known without it
                    (member,) = compose_sweep([f"{group}={name}", *partner(group, name)])
                    assert isinstance(member.config, RunConfig)


def test_an_experiment_sweeps_its_own_grid_and_the_command_line_narrows_it() -> None:
    with composer():
        members = sweep_members(["experiment=laptop/digits"])
        narrowed = sweep_members(["experiment=laptop/digits", "structure=circulant,lora", "seed=4"])
    assert len(members) == 4 * 3
    assert len({tuple(member) for member in members}) == 12
    assert len(narrowed) == 2
    with composer():
        configs = [compose_run(member) for member in narrowed]
    assert [config.structure.name for config in configs] == ["circulant", "lora"]
    assert {config.seed for config in configs} == {4}
    assert {config.table.name for config in configs} == {"laptop_digits"}


def test_null_options_validate_for_every_structure() -> None:
    assert compose("structure=ldr_r4").structure.terms == 4
    assert compose("structure=circulant_direct").structure.parametrization == "direct"
    assert compose("structure=lora_r8").structure.alpha == 8.0


def test_an_unknown_scale_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean laptop"):
        load_scale("labtop")


def test_a_scale_runs_the_files_of_its_folder_in_the_stated_order() -> None:
    smoke, full = load_scale("smoke"), load_scale("full")
    assert (smoke.label, full.label) == ("smoke: not evidence", "")
    assert (smoke.evidence, full.evidence) == (False, True)
    assert smoke.experiments == ["smoke/digits", "smoke/phantoms", "smoke/valence", "smoke/psd_fit"]
    runs = ["digits", "mnist5k", "textile", "uuid", "valence"]
    studies = ["family_fit", "ldr_fit", "pinwheel", "psd_fit"]
    assert full.experiments == [f"full/{name}" for name in [*runs, *studies]]
    names = [name.removeprefix("paper/") for name in load_scale("paper").experiments]
    tables, figures = (1, 2, 3, 5, 6, 7), (6, 8, 10, 11)
    systems = ["adalora", "aurora", "dynamic_dora", "hadamard", "lora2", "lora_mini", "lora_xs", "lorta", "melora"]
    studies = ["fig1", "fig4", "fig5"]
    numbers = [*(f"table{k}" for k in tables), *(f"fig{k}" for k in figures)]
    assert [name.removesuffix("_glue") for name in names[10:19]] == systems
    assert [name.partition("_")[0] for name in names[:10] + names[19:]] == [*numbers, *studies]


@pytest.mark.parametrize(
    ("only", "scale", "file"),
    [
        ("digits", "laptop", "laptop/digits"),
        ("digits", "full", "full/digits"),
        ("smoke/digits", "full", "smoke/digits"),
        ("full_digits", "laptop", "full/digits"),  # the name of its table
        ("table5_glue", "paper", "paper/table5_glue"),
        ("table5_glue", "laptop", "paper/table5_glue"),
        ("pinwheel_search", "full", "pinwheel_search"),  # of no scale
    ],
)
def test_an_experiment_is_found_by_its_name_in_the_scale_in_full_or_by_its_table(only, scale, file) -> None:
    assert find_experiment(only, scale) == file


def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^ONLY=digit: .*did you mean digits\?$"):
        find_experiment("digit", "smoke")
    with pytest.raises(ConfigError, match=r"^ONLY=ful/psd_fit: .*did you mean full/psd_fit\?$"):
        find_experiment("ful/psd_fit", "laptop")
