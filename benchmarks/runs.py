"""Whole runs of `scripts/train.py` on the device: seconds a step beside the bare step, and four runs at once.

Each run is a process of its own and writes to a temporary folder.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps import measure_steps
from surm.shared.errors import ConfigError
from surm.shared.paths import REPOSITORY

ROW = "circulant"
PIXELS, BATCH, EPOCHS = 98, 32, 3
LONGEST = 240  # seconds of a process
AT_ONCE = 4
SHORT_STEPS = 150  # of each of several runs


def measure_run(more: dict[str, Any], tiny: bool, device: torch.device, precision: str) -> None:
    """Add a run on a tenth of CIFAR-10, and the bare step of the same method beside it, to `more["train"]`."""
    with tempfile.TemporaryDirectory() as folder:
        _train(folder, [*_settings(tiny, device), f"trainer.precision={precision}", f"trainer.epochs={EPOCHS}"])
        happened = _records(folder)[0]["happened"]
    model = "tiny_vit" if tiny else "builtin_vit"
    cell = measure_steps(
        model, BATCH, device, rounds=3 if tiny else 15, only=[ROW], image_size=_pixels(tiny), precision=precision
    )
    time_of_ours = cell.measured[ROW].time
    assert time_of_ours is not None
    bare = cell.floor_seconds * time_of_ours.median
    epochs = happened["seconds_per_step_by_epoch"]
    last = epochs[-1]
    more.setdefault("train", []).append(
        {
            "run": f"{ROW}, {happened['steps']} steps",
            "precision": precision,
            "step": round(last, 5),
            "by_epoch": epochs,
            "bare": round(bare, 5),
            "bare_lora": round(cell.floor_seconds, 5),
            "ratio": round(last / bare, 3),
            "whole": round(happened["seconds"], 2),
        }
    )


def measure_four(more: dict[str, Any], tiny: bool, device: torch.device) -> None:
    """Add to `more["four"]` how many times the runs an hour of one four at once give, from their own seconds.

    One run is alone on the device; then four, of other seeds, share it, by the launcher's four workers.
    """
    short = [*_settings(tiny, device), f"trainer.max_steps={8 if tiny else SHORT_STEPS}"]
    with tempfile.TemporaryDirectory() as folder:
        _train(folder, [*short, "seed=0"])
        alone = _records(folder)[0]["happened"]["seconds"]
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={AT_ONCE}"]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        seeds = ",".join(str(seed) for seed in range(1, AT_ONCE + 1))
        _train(folder, [*short, f"seed={seeds}", *launcher, f"hydra.sweep.dir={folder}/sweep"], ["-m"])
        whole = time.perf_counter() - begun
        each = [record["happened"]["seconds"] for record in _records(folder)]
    more["four"] = {
        "seconds_alone": alone,
        "seconds_each": each,
        "seconds_of_the_sweep": whole,
        "times_the_runs_an_hour": AT_ONCE * alone / max(each),
    }


def _settings(tiny: bool, device: torch.device) -> list[str]:
    if tiny:
        return [
            *("model=tiny_vit", "dataset=digits", "dataset.fraction=0.1", f"structure={ROW}", "optim.lr=1e-3"),
            f"device={device.type}",
        ]
    data = Path(os.environ.get("SURM_LOCAL_DATA", ""), "cifar10")
    if not os.environ.get("SURM_LOCAL_DATA") or not data.is_dir():
        raise ConfigError("SURM_LOCAL_DATA names no folder with cifar10 in the hub's layout")
    return [
        *(f"dataset.path={data}", "model=builtin_vit", "dataset=cifar10", f"structure={ROW}", "optim.lr=1e-3"),
        *(f"model.image_size={PIXELS}", f"trainer.batch_size={BATCH}", f"device={device.type}"),
    ]


def _pixels(tiny: bool) -> int | None:
    return None if tiny else PIXELS


def _train(folder: str, settings: Sequence[str], flags: Sequence[str] = ()) -> None:
    command = [sys.executable, "scripts/train.py", *flags, f"output_dir={folder}", *settings]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    if ended.returncode:
        lines = [*ended.stderr.strip().splitlines(), "no word"]
        raise ValueError(f"scripts/train.py ended with {ended.returncode}: {lines[-2 if len(lines) > 1 else 0]}")


def _records(folder: str) -> list[dict[str, Any]]:
    records = [json.loads(file.read_text()) for file in sorted(Path(folder, "runs").glob("*/record.json"))]
    found = [record for record in records if record["status"] == "finished"]
    if not found:
        raise ValueError("scripts/train.py left no finished record")
    return found
