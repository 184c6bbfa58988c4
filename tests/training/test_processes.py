"""One run in several processes: the same losses, one record, and a resume whatever their number."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from surm.data.order import EpochBatches

REPOSITORY = Path(__file__).resolve().parents[2]
# No dropout, so that the number of processes moves nothing but the order of sums; 31 is odd, the last batch smaller.
SETTINGS = ["model=tiny_vit", "trainer.batch_size=31", "trainer.gradient_accumulation=2", "trainer.log_every=1"]


@pytest.mark.parametrize(("length", "size", "processes"), [(10, 4, 2), (31, 31, 3), (9, 4, 3), (5, 2, 2)])
def test_processes_divide_each_batch_and_the_mean_of_their_means_is_its_mean(
    length: int, size: int, processes: int
) -> None:
    values = torch.arange(float(length)) ** 2
    whole = list(EpochBatches(length, size, seed=5))
    divided = [EpochBatches(length, size, 5, process, processes) for process in range(processes)]
    for number, (batch, *shares) in enumerate(zip(whole, *divided, strict=True)):
        means = [sampler.weight(number) * values[share].mean() for sampler, share in zip(divided, shares, strict=True)]
        torch.testing.assert_close(torch.stack(means).mean(), values[batch].mean())
        counted = [i for sampler, share in zip(divided, shares, strict=True) if sampler.weight(number) for i in share]
        assert sorted(counted) == sorted(batch)


def command(processes: int, folder: Path, *overrides: str) -> list[str]:
    script = [str(REPOSITORY / "scripts" / "train.py"), *SETTINGS, f"output_dir={folder}", *overrides]
    if processes == 1:
        return [sys.executable, *script]
    # On a machine without GPUs accelerate starts several processes only when it is told that they are "multi GPU".
    launch = [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
        "--main_process_port",
        "0",
    ]
    return [sys.executable, "-m", *launch, *script]


def start(processes: int, folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(processes, folder, *overrides),
        cwd=folder.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def only_record(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "runs").glob("*/record.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def losses(record: dict[str, Any]) -> list[float]:
    return [row["loss"] for row in record["happened"]["history"] if "loss" in row]


def assert_same_training(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Equal but for the order in which numbers are added: losses to 1e-5, and at most one answer in 797 another."""
    assert one["signature"] == two["signature"]
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    metrics: list[dict[str, Any]] = [record["happened"]["metrics"] for record in (one, two)]
    assert metrics[1]["accuracy"] == pytest.approx(metrics[0]["accuracy"], abs=1.5 / 797)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["circulant", "full"])
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path: Path, structure: str) -> None:
    short = [f"structure={structure}", "trainer.max_steps=30"]
    finish(start(1, tmp_path / "one", *short))
    output = finish(start(2, tmp_path / "two", *short, "tracking=wandb", "tracking.mode=offline"))
    one, two = only_record(tmp_path / "one"), only_record(tmp_path / "two")
    assert (one["where"]["machine"]["processes"], two["where"]["machine"]["processes"]) == (1, 2)
    assert_same_training(one, two)
    assert output.count("record.json") == 1  # one process speaks
    assert len(list((tmp_path / "two" / "wandb" / "wandb").glob("offline-run-*"))) == 1
    assert "finished already" in finish(start(2, tmp_path / "two", *short))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, first: int, then: int) -> None:
    longer = ["structure=full", "trainer.epochs=12", "trainer.checkpoint_every=4"]
    finish(start(1, tmp_path / "whole", *longer))
    stopped = start(first, tmp_path / "parts", *longer)
    while not list((tmp_path / "parts" / "runs").glob("*/checkpoint.safetensors")):
        assert stopped.poll() is None
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=300)
    assert only_record(tmp_path / "parts")["status"] == "interrupted", output
    assert "resumed from step" in finish(start(then, tmp_path / "parts", *longer))
    whole, parts = only_record(tmp_path / "whole"), only_record(tmp_path / "parts")
    assert len(parts["happened"]["resumed_from_steps"]) == 1
    assert_same_training(whole, parts)


@pytest.mark.slow
def test_fewer_examples_than_processes_are_refused(tmp_path: Path) -> None:
    process = start(2, tmp_path / "out", "trainer.batch_size=1")
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert output.count("give at least 2, one example for each process") == 1
