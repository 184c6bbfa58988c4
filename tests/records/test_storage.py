"""A full disk, a folder that takes no files, damaged files, a run taken over: one sentence, and nothing good lost."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from surm.config.compose import composer
from surm.experiments import status as overview
from surm.experiments.plan import Experiment, TrainingRun, load_experiment, training_runs
from surm.records.claim import Claim, living_holder
from surm.records.record import read_record
from surm.records.storage import write_json
from surm.shared.errors import Claimed, Interrupted, StorageError
from surm.training.run import execute

REPOSITORY = Path(__file__).resolve().parents[2]


def one_run(folder: Path) -> TrainingRun:
    settings = ["model=tiny_vit", "structure=circulant", "trainer.max_steps=8", "trainer.checkpoint_every=2"]
    with composer():
        (planned,) = training_runs([load_experiment("smoke/digits", seeds=1, overrides=settings)])
    return replace(planned, config=replace(planned.config, output_dir=str(folder)))


def quiet(*_: object) -> None:
    """Where a test does not care what is said."""


class Disk:
    """A disk with room for a number of files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            self.room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = execute(one_run(tmp_path / "whole"), say=quiet)
    planned = one_run(tmp_path / "full")
    disk = Disk(monkeypatch, room=2)  # the claim and the checkpoint of step 2
    with pytest.raises(StorageError, match=r"(checkpoint\.safetensors|record\.json) cannot be written \(No space left"):
        execute(planned, say=quiet)
    folder = planned.folder.path
    assert (folder / "checkpoint.safetensors").exists()
    assert not list(folder.glob(".*.tmp"))
    assert living_holder(folder) is None
    disk.room = 1000
    resumed = execute(planned, say=quiet)
    assert resumed.happened["resumed_from_steps"] == [2]
    assert resumed.happened["metrics"] == whole.happened["metrics"]


def test_results_that_cannot_be_written_leave_the_run_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = one_run(tmp_path)
    disk = Disk(monkeypatch, room=4)  # the claim and the checkpoints of steps 2, 4 and 6
    with pytest.raises(StorageError, match=r"predictions\.json cannot be written"):
        execute(planned, say=quiet)
    assert planned.status() == "missing"
    disk.room = 1000
    assert execute(planned, say=quiet).happened["resumed_from_steps"] == [6]


@pytest.mark.parametrize("action", [pytest.param("train", marks=pytest.mark.slow), "reproduce"])
def test_a_folder_that_takes_no_files_is_one_sentence(tmp_path: Path, action: str) -> None:
    (tmp_path / "outputs").write_text("a file where the folder should be")
    settings = ["model=tiny_vit", "trainer.max_steps=2"]
    arguments = {
        "train": ["train.py", *settings],
        "reproduce": ["reproduce.py", "--scale", "smoke", "--only", "smoke_digits", "--set", *settings],
    }[action]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / arguments[0]), *arguments[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    assert "outputs" in done.stdout + done.stderr
    assert (tmp_path / "outputs").read_text() == "a file where the folder should be"


def shown(planned: TrainingRun, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    overview.status([Experiment("name", "Title", [], [planned])])
    return capsys.readouterr().out


def test_status_says_who_works_on_what_why_it_failed_and_what_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = one_run(tmp_path)
    folder = planned.folder.path
    with Claim(folder):
        assert f"process {os.getpid()} on " in shown(planned, capsys)

    def stop(step: int, steps: int, values: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted):
        execute(planned, report=stop, say=quiet)
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    assert "checkpoint.safetensors is not a whole checkpoint" in shown(planned, capsys)

    record = read_record(planned.folder.record)
    assert record is not None
    replace(record, status="failed", happened=record.happened | {"error": "the reason"}).write()
    checkpoint.unlink()
    assert "(the reason)" in shown(planned, capsys)

    planned.folder.record.write_text("{")
    assert "1 damaged" in shown(planned, capsys)
    assert "record.json is not a whole record" in shown(planned, capsys)


def test_who_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    planned = one_run(tmp_path)
    folder = planned.folder.path

    def taken(step: int, steps: int, values: dict[str, float]) -> None:
        if step == 3:
            theirs = {"host": "node7", "pid": 99, "token": "theirs"}
            write_json(folder / "claim.json", theirs)

    with pytest.raises(Claimed, match="was taken over by process 99 on node7"):
        execute(planned, report=taken, say=quiet)
    assert not planned.folder.record.exists()
    assert str(living_holder(folder)) == "process 99 on node7"  # still theirs
