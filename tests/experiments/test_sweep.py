"""Processes that share a sweep: every run is done once, whoever is killed, and nothing is left half."""

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from surm.config.compose import composer
from surm.experiments import cli
from surm.experiments.plan import Display, Planned, TrainingRun, load_experiment
from surm.experiments.runner import ThisProcess
from surm.experiments.sweep import Sweep, run_all
from surm.records.claim import Claim
from surm.records.record import Record, read_record

fork = multiprocessing.get_context("fork")  # the libraries are loaded once


def plan(folder: Path, members: int, *overrides: str) -> list[Planned]:
    settings = [
        "model=tiny_vit",
        "trainer.max_steps=8",
        "trainer.checkpoint_every=1",
        "structure=circulant",
        *overrides,
    ]
    with composer():
        runs = load_experiment("smoke/digits", seeds=members, overrides=[*settings, f"output_dir={folder}"]).runs
    return list(runs)


@dataclass(frozen=True)
class Logged(TrainingRun):
    """A run that leaves a line in a log for each time that it is trained: begun, and at its last step."""

    def execute(self, display: Display) -> Record:
        folder, begun = Path(self.output_dir), False

        def show(text: str, step: int | None = None, steps: int | None = None) -> None:
            nonlocal begun
            if step is not None and not begun:
                begun = True
                note(folder, "twice" if self.finished_record() else "start", self.signature)

        record = super().execute(SimpleNamespace(say=display.say, show=show))
        if begun:
            note(folder, "end", self.signature)
        return record


def work(runs: list[Planned]) -> None:
    """What `make reproduce` does."""
    torch.set_num_threads(1)
    cli.console.quiet = True
    os._exit(1 if run_all(runs, ThisProcess()) else 0)


def note(folder: Path, what: str, name: str) -> None:
    with (folder / "log").open("a") as log:
        log.write(f"{what} {name}\n")


def begin(folder: Path, runs: list[Planned]) -> "multiprocessing.process.BaseProcess":
    process = fork.Process(target=work, args=([Logged(run.config, run.rate_source) for run in runs],))
    process.start()
    return process


def logged(folder: Path, what: str) -> list[str]:
    lines = (folder / "log").read_text().split("\n") if (folder / "log").exists() else []
    return [line.split()[1] for line in lines if line.startswith(what)]


def check_all_done_once(folder: Path, runs: list[Planned]) -> None:
    wanted = sorted(run.signature for run in runs)
    ended = logged(folder, "end")
    assert len(ended) == len(set(ended)), "a run was done twice"
    assert logged(folder, "twice") == []
    assert sorted(path.parent.name for path in (folder / "runs").glob("*/record.json")) == wanted
    for run in runs:
        record = read_record(run.folder.record)
        assert record is not None
        assert record.status == "finished"
        assert record.happened["steps"] == 8
    for path in (folder / "runs").rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert file.keys()
        assert path.suffix != ".tmp"


def test_two_processes_share_a_sweep_and_one_finishes_it_when_the_other_is_killed(tmp_path: Path) -> None:
    runs = plan(tmp_path, 5)
    first, second = begin(tmp_path, runs), begin(tmp_path, runs)
    while len(logged(tmp_path, "start")) < 2:  # both have begun
        time.sleep(0.01)
    assert len(set(logged(tmp_path, "start"))) == 2
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    second.join()
    assert second.exitcode == 0
    check_all_done_once(tmp_path, runs)

    started = len(logged(tmp_path, "start"))
    third = begin(tmp_path, runs)
    third.join()
    assert third.exitcode == 0
    assert len(logged(tmp_path, "start")) == started


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_eight_processes_under_random_kills(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    runs = plan(tmp_path, 10)
    workers = [begin(tmp_path, chance.sample(runs, len(runs))) for _ in range(8)]
    for victim in chance.sample(workers, 7):
        time.sleep(chance.uniform(0.0, 1.0))
        os.kill(victim.pid or 0, signal.SIGKILL)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers].count(0) >= 1
    check_all_done_once(tmp_path, runs)


def test_a_failed_run_is_tried_once_by_those_who_share_a_sweep_and_again_by_the_next_call(tmp_path: Path) -> None:
    runs = plan(tmp_path, 2, "structure=full", "optim.lr=1e30", "optim.warmup_ratio=0")
    before = Sweep(runs)
    failing = begin(tmp_path, runs)
    failing.join()
    assert failing.exitcode == 1
    assert sorted(logged(tmp_path, "start")) == sorted(run.signature for run in runs)  # once each
    assert [run.status() for run in runs] == ["failed", "failed"]
    assert before.open() == []  # begun before the failure, shares it
    assert Sweep(runs).open() == runs


def test_a_launcher_that_starts_nothing_ends_the_sweep(tmp_path: Path) -> None:
    calls: list[int] = []
    assert Sweep(plan(tmp_path, 3)).finish(lambda: calls.append(1)) == 3
    assert len(calls) == 1


def test_a_damaged_record_is_left_alone_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged, fine = plan(tmp_path, 2)
    damaged.folder.record.parent.mkdir(parents=True)
    damaged.folder.record.write_text('{"signature": ')
    assert run_all([damaged, fine], ThisProcess()) == 1
    assert damaged.folder.record.read_text() == '{"signature": '
    assert (damaged.status(), fine.status()) == ("damaged", "finished")


def test_runs_of_others_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = plan(tmp_path, 1)
    claim, said = Claim(run.folder.record.parent), []
    claim.take()
    monkeypatch.setattr("surm.experiments.sweep.time.sleep", lambda seconds: claim.release())
    sweep = Sweep([run])
    assert sweep.open() == []
    assert sweep.finish(lambda: None, said.append) == 1
    assert said == [f"waiting for run {run.signature}: {claim.holder} works on it."]
