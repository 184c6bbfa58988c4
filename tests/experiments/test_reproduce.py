"""The main job from its script, on real models and data."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools.skips import needs

REPOSITORY = Path(__file__).resolve().parents[2]


def reproduce(folder: Path) -> str:
    command = [sys.executable, str(REPOSITORY / "scripts" / "reproduce.py"), "--scale", "smoke"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@needs("builtin_vit")
def test_smoke_gives_tables_figures_and_no_verdict_and_runs_once(tmp_path: Path) -> None:
    first = reproduce(tmp_path)
    records = {path: path.read_bytes() for path in tmp_path.glob("outputs/runs/*/record.json")}
    assert len(records) == 9 + 2  # runs, and parts of a study
    assert "done before" not in first
    page = (tmp_path / "outputs" / "report.md").read_text()
    assert "smoke: not evidence" in page
    verdicts = [line for line in page.splitlines() if "agrees" in line]  # of committed records alone
    assert all(line.endswith("| not among these experiments |") for line in verdicts)
    assert len(list(tmp_path.glob("outputs/tables/smoke_*.md"))) == 4
    assert len(list(tmp_path.glob("outputs/figures/smoke_*.png"))) == 8

    started = time.time()
    again = reproduce(tmp_path)
    assert again.count("done before") == 11
    assert {path: path.read_bytes() for path in tmp_path.glob("outputs/runs/*/record.json")} == records
    assert all(path.stat().st_mtime < started for path in records)


@pytest.mark.slow
@needs("builtin_vit")
def test_circulant_reaches_95_percent_on_digits_and_beats_a_probe_by_5_points(tmp_path: Path) -> None:
    accuracy = {}
    for structure in ("circulant", "linear_probe"):
        command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), "model=builtin_vit", "dataset=digits"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [*command, f"structure={structure}", "seed=0"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        result = next(line for line in done.stdout.splitlines() if "(n = 797)" in line)
        accuracy[structure] = float(result.split("accuracy ")[1].split()[0])
        assert "outputs/runs/" in result
        if structure == "circulant":
            assert "27,648" in result
    assert accuracy["circulant"] >= 0.95
    assert accuracy["linear_probe"] <= accuracy["circulant"] - 0.05
