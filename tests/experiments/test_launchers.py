"""Sweeps by Hydra's launchers: the same runs as one after the other, wherever they go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from omegaconf import OmegaConf

from surm.config import command as commands
from surm.config import compose as composing
from surm.config.command import check_command, check_launcher, entry_of, is_question, is_sweep
from surm.config.compose import TRAIN, composer, launchers
from surm.experiments.launch import launcher_of
from surm.experiments.plan import load_experiment, plan
from surm.experiments.runner import ThisProcess
from surm.experiments.sweep import run_all
from surm.shared.errors import ConfigError
from surm.studies.entry import APPROXIMATE
from tests.tools.plugins import TINY, with_plugin

REPOSITORY = Path(__file__).resolve().parents[2]


def script(name: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
    )


def outcome(folder: Path) -> dict[str, Any]:
    """What each run of a folder found, without what depends on the clock and the machine."""
    found = {}
    for path in folder.glob("outputs/runs/*/record.json"):
        record = json.loads(path.read_text())
        predictions = path.with_name("predictions.json")
        found[record["signature"]] = (
            record["status"],
            record["happened"].get("metrics"),
            record["happened"].get("history"),
            predictions.read_text() if predictions.exists() else None,
        )
    return found


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("basic", "_target_", "hydra._internal.core_plugins.basic_launcher.BasicLauncher"),
        *[
            pytest.param(name, *rest, marks=parameter.marks)
            for parameter, rest in zip(
                with_plugin("joblib", "submitit_local", "submitit_slurm", "submitit_slurm", "ray", "ray"),
                [
                    ("n_jobs", 3),
                    ("gpus_per_node", 3),
                    ("gpus_per_node", 1),
                    ("max_num_timeout", 100),
                    ("ray.remote.num_gpus", 1),
                    ("ray.init.address", None),
                ],
                strict=True,
            )
            for name in parameter.values
        ],
    ],
)
def test_a_launcher_is_configured_for_the_gpus_there_are(
    name: str, setting: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "gpus", lambda: 3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with composer():
        config = compose("config", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
    assert OmegaConf.select(config.hydra.launcher, setting) == value


@pytest.mark.parametrize("name", with_plugin("joblib"))
def test_without_a_gpu_each_core_has_a_worker(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 7)
    with composer():
        config = compose("config", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
    assert config.hydra.launcher.n_jobs == 7


def test_every_launcher_has_a_file_and_an_extra() -> None:
    files = {path.stem for path in (REPOSITORY / "conf/hydra/launcher").glob("*.yaml")}
    assert set(launchers()) == {"basic", *files} == {"basic", "joblib", "submitit_local", "submitit_slurm", "ray"}
    assert {name.partition("_")[0] for name in files} == {"joblib", "submitit", "ray"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "hydra/launcher=jobli"], ["hydra/launcher=jobli", "basic, joblib", "did you mean joblib?"]),
        (["hydra/launcher=joblib"], ["hydra/launcher=joblib", "add -m"]),
        (["-m", "hydra/launcher=basic,joblib"], ["hydra/launcher=basic,joblib", "allowed are"]),
        pytest.param(
            ["-m", "hydra/launcher=joblib", "hydra.launcher.n_job=2"], ["n_job"], marks=with_plugin("joblib")[0].marks
        ),
    ],
)
@pytest.mark.parametrize("entry", [TRAIN, APPROXIMATE], ids=["train", "approximate"])
def test_a_wrong_launcher_is_one_sentence(arguments: list[str], words: list[str], entry: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command(arguments, entry)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "extra"),
    [("joblib", "joblib"), ("submitit_slurm", "submitit"), ("submitit_local", "submitit"), ("ray", "ray")],
)
def test_a_launcher_that_is_not_installed_names_its_extra(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Store:
        def list(self, path: str) -> list[str]:
            return ["basic.yaml"]

    monkeypatch.setattr(commands, "register_schema", lambda: None)
    monkeypatch.setattr(commands.ConfigStore, "instance", Store)
    with pytest.raises(ConfigError, match=f"make launchers.*pip install 'surm\\[{extra}\\]'"):
        check_launcher(name)
    check_launcher("basic")


@pytest.mark.slow
def test_reproduce_refuses_a_wrong_launcher_and_starts_nothing(tmp_path: Path) -> None:
    done = script("reproduce.py", "--scale", "smoke", "--launcher", "rey", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "did you mean ray?" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_asks_hydra_something_is_told_from_one_that_runs() -> None:
    assert is_sweep(["-m", "seed=0,1"])
    assert is_sweep(["seed=0,1", "--multirun"])
    assert not is_sweep(["seed=0"])
    assert is_question(["-m", "seed=0,1", "--cfg", "job"])
    assert is_question(["--info=searchpath"])
    assert not is_question(["-m", "seed=0,1"])


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train.py", ["--cfg", "job", "structure=lora"], ["structure:\n  name: lora\n", "seed: 0\n"]),
        ("approximate.py", ["--cfg", "job", "study=pinwheel"], ["study:\n  name: pinwheel\n"]),
        pytest.param("train.py", ["--help"], ["train is powered by Hydra", "structure: "], marks=pytest.mark.slow),
    ],
)
def test_hydra_answers_questions_and_nothing_is_written(
    name: str, arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    done = script(name, *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_checked_command_holds_the_members_without_holes() -> None:
    arguments = ["structure=lora,circulant", "placement=weight_qkv,adapter_houlsby", "hydra.sweep.dir=elsewhere"]
    members = check_command(["-m", *arguments], TRAIN)
    found = [(member.config.structure.name, member.config.placement.form) for member in members]
    assert found == [("lora", "weight"), ("circulant", "weight"), ("circulant", "adapter")]  # no LoRA as an adapter
    assert "structure=lora" in members[0].overrides


@pytest.mark.parametrize(
    ("name", "seeds", "extra"),
    [
        ("smoke/digits", 2, ["seed=0,1"]),
        ("smoke/psd_fit", 2, ["study.draws=2"]),
        ("laptop/pinwheel", 2, ["study.seeds=[0,1]"]),
        ("smoke/digits", None, []),
    ],
)
def test_a_job_of_an_experiment_is_told_to_ask_for_the_same_runs(
    name: str, seeds: int | None, extra: list[str]
) -> None:
    entry = entry_of(name)
    with composer():
        runs = load_experiment(name, seeds, ["output_dir=elsewhere"]).runs
    typed_by_a_user = plan(check_command(["-m", f"experiment={name}", *extra, "output_dir=elsewhere"], entry), entry)
    assert [run.signature for run in runs] == [run.signature for run in typed_by_a_user]
    for overrides in {run.overrides for run in runs}:
        told = [run.signature for run in runs if run.overrides == overrides]
        assert [run.signature for run in plan(check_command(overrides, entry), entry)] == told


def test_hydras_settings_need_a_launcher_and_are_not_told_to_jobs() -> None:
    arguments = ["-m", "seed=0,1", "hydra.sweep.dir=elsewhere"]
    assert {run.overrides for run in plan(check_command(arguments, TRAIN), TRAIN)} == {("seed=0",), ("seed=1",)}
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir=elsewhere: .*hydra/launcher=joblib"):
        launcher_of(arguments, TRAIN)
    assert isinstance(launcher_of(arguments[:-1], TRAIN), ThisProcess)


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_starts_what_is_missing_alone_and_a_finished_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def swept(*settings: str) -> str:
        arguments = ["-m", *TINY, "structure=linear_probe", "placement=weight_qkv,weight_qv", *settings]
        runs = plan(check_command(arguments, TRAIN), TRAIN)
        assert run_all(runs, launcher_of(arguments, TRAIN)) == 0
        return capsys.readouterr().out

    assert swept("seed=0").count("trainable") == 1  # no placement matters to a linear probe: two members are one run
    (record,) = tmp_path.glob("outputs/runs/*/record.json")
    before = record.read_bytes()
    more = swept("seed=0,1")
    assert [more.count(words) for words in ("trainable", "done before")] == [2, 1]
    assert record.read_bytes() == before
    assert swept("seed=0,1").count("done before") == 2
    assert list(tmp_path.glob("outputs/*")) == [tmp_path / "outputs/runs"]


FAILING = ["structure=linear_probe,full,circulant", "optim.lr=1e30", "optim.warmup_ratio=0"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", *with_plugin("joblib", "submitit_local", "ray")])
def test_a_failing_member_stops_no_other(launcher: str, tmp_path: Path) -> None:
    done = script("train.py", "-m", *TINY, *FAILING, f"hydra/launcher={launcher}", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    statuses = sorted(status for status, *_ in outcome(tmp_path).values())
    assert len(statuses) == 3
    failed = statuses.count("failed")
    assert failed >= 1
    assert f"{failed} of 3 runs are not finished" in done.stdout
    # The next call tries the failed ones alone.
    again = script("train.py", "-m", *TINY, *FAILING, folder=tmp_path)
    assert again.returncode == 1
    assert again.stdout.count("failed: the loss is") == failed


@pytest.mark.slow
@pytest.mark.parametrize("launcher", with_plugin("joblib", "submitit_local", "ray"))
def test_a_launcher_gives_the_same_numbers_as_one_run_after_the_other(launcher: str, tmp_path: Path) -> None:
    for name in ("basic", launcher):
        (tmp_path / name).mkdir()
        done = script(
            "reproduce.py", "--only", "smoke/digits", "--launcher", name, "--set", *TINY, folder=tmp_path / name
        )
        assert done.returncode == 0, done.stderr
    one_by_one, together = outcome(tmp_path / "basic"), outcome(tmp_path / launcher)
    assert len(one_by_one) == 3
    assert {status for status, *_ in one_by_one.values()} == {"finished"}
    assert together == one_by_one
    assert (tmp_path / launcher / "outputs/tables/smoke_digits.md").exists()
    again = script(
        "reproduce.py", "--only", "smoke/digits", "--launcher", launcher, "--set", *TINY, folder=tmp_path / launcher
    )
    assert "3 of 3 runs are finished already" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", with_plugin("joblib"))
def test_a_killed_worker_ends_no_sweep(launcher: str, tmp_path: Path) -> None:
    sweep = [*TINY[:2], "trainer.max_steps=120", "trainer.epochs=9", "trainer.checkpoint_every=10", "seed=0,1"]
    command = [sys.executable, str(REPOSITORY / "scripts/train.py"), "-m", *sweep, f"hydra/launcher={launcher}"]
    with (tmp_path / "output.txt").open("w") as output:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT)
    while not (claims := [path.with_name("claim.json") for path in tmp_path.glob("outputs/runs/*/checkpoint.*s")]):
        assert process.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.05)
    os.kill(json.loads(claims[0].read_text())["pid"], signal.SIGKILL)
    assert process.wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/*/record.json")]
    assert [record["status"] for record in found] == ["finished", "finished"]
    assert any(record["happened"]["resumed_from_steps"] for record in found)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", with_plugin("joblib"))
def test_studies_go_on_side_by_side(launcher: str, tmp_path: Path) -> None:
    done = script("approximate.py", "-m", "experiment=smoke/psd_fit", f"hydra/launcher={launcher}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(status for status, *_ in outcome(tmp_path).values()) == ["finished", "finished"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", with_plugin("joblib"))
def test_workers_divide_the_cores(launcher: str, tmp_path: Path) -> None:
    free = [setting for setting in TINY if "threads" not in setting]
    os_cores = os.cpu_count() or 1
    done = script(
        "train.py",
        "-m",
        *free,
        "seed=0,1",
        f"hydra/launcher={launcher}",
        f"hydra.launcher.n_jobs={os_cores}",
        folder=tmp_path,
        OMP_NUM_THREADS="",
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/*/record.json")]
    assert [record["where"]["machine"]["threads"] for record in records] == [1, 1]
