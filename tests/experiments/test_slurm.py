"""Sweeps on Slurm: what it is told, and a job that nears its time limit on a cluster of this machine."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from surm.config.compose import composer
from tests.tools.plugins import TINY, with_plugin
from tests.tools.slurm import cluster

REPOSITORY = Path(__file__).resolve().parents[2]
ON_SLURM = ["hydra.launcher.gpus_per_node=0", "hydra.launcher.mem_gb=null", "hydra.launcher.cpus_per_task=1"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", with_plugin("submitit_slurm"))
def test_a_slurm_job_near_its_time_limit_goes_on_from_its_checkpoint(launcher: str, tmp_path: Path) -> None:
    sweep = [*TINY, "trainer.max_steps=120", "trainer.epochs=9", "trainer.checkpoint_every=10", "seed=0,1"]
    sweep.remove("trainer.max_steps=3")
    with cluster(tmp_path / "slurm") as environment:
        command = [sys.executable, str(REPOSITORY / "scripts/train.py"), "-m", *sweep, f"hydra/launcher={launcher}"]
        environment["PYTHONPATH"] = str(REPOSITORY)
        with (tmp_path / "output.txt").open("w") as output:
            process = subprocess.Popen(
                [*command, *ON_SLURM], env=environment, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT
            )
        while not list(tmp_path.glob("outputs/runs/*/checkpoint.safetensors")):
            assert process.poll() is None, (tmp_path / "output.txt").read_text()
            time.sleep(0.05)
        for job in slurm(environment, "squeue", "-h", "-t", "running", "-o", "%i"):
            slurm(environment, "scancel", "--signal=USR2", job)  # what Slurm sends before the time limit
        requeued = set()
        while process.poll() is None:
            for job in slurm(environment, "squeue", "-h", "-t", "pending", "-o", "%i"):
                requeued.add(job)
                slurm(environment, "scontrol", "update", f"JobId={job}", "StartTime=now")  # else in two minutes
            time.sleep(0.5)
        assert process.returncode == 0, (tmp_path / "output.txt").read_text()
    assert requeued
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/*/record.json")]
    assert [record["status"] for record in found] == ["finished", "finished"]
    assert any(record["happened"]["resumed_from_steps"] for record in found)


def slurm(environment: dict[str, str], *command: str) -> list[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("launcher", with_plugin("submitit_slurm"))
def test_what_slurm_is_told(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script that `sbatch` is given, from a stand-in for it."""
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    with composer():
        settings = ["hydra.launcher.partition=gpu", "+hydra.launcher.additional_parameters.mail-type=END"]
        config = compose("config", overrides=[f"hydra/launcher={launcher}", *settings], return_hydra_config=True)
        given = OmegaConf.to_container(config.hydra.launcher)
    assert isinstance(given, dict)
    common = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "stderr_to_stdout"}
    own = {"partition", "signal_delay_s", "array_parallelism", "additional_parameters"}
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm", slurm_max_num_timeout=given["max_num_timeout"])
    executor.update_parameters(
        **{name: given[name] for name in common}, **{f"slurm_{name}": given[name] for name in own}
    )
    written = executor._executor._make_submission_file_text("command", "id")
    for line in ("partition=gpu", "time=240", "gpus-per-node=1", "signal=USR2@120", "mem=32GB", "mail-type=END"):
        assert f"#SBATCH --{line}\n" in written
