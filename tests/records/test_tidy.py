"""A finished run that was killed in its last file operations: the next look removes what was left."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from surm.records.claim import SILENCE, Claim
from surm.records.recorded import Recorded
from surm.records.storage import write_json
from tests.records.test_record import RUN

DEAD = {"pid": 4_000_000, "token": "of a process that is gone"}
LEFT = {
    "nothing": {},
    "checkpoint": {"checkpoint.safetensors": b"half"},
    "claim": {"claim.json": {"host": socket.gethostname(), **DEAD}},
    "damaged claim": {"claim.json": b"{"},
    "silent claim of another host": {"claim.json": {"host": "elsewhere", **DEAD}},
    "half record": {".record.json.7.tmp": b"{"},
    "half predictions": {".predictions.json.7.tmp": b"["},
    "half checkpoint": {".checkpoint.safetensors.7.tmp": b""},
}
LEFT["everything"] = {name: content for files in LEFT.values() for name, content in files.items()}
KEPT = {"record.json", "predictions.json", "adapter"}


class Question(Recorded):
    def __init__(self, folder: Path) -> None:
        self.output = folder

    @property
    def asked(self) -> dict[str, Any]:
        return {"seed": 1}

    @property
    def output_dir(self) -> str:
        return str(self.output)


def leave(folder: Path, files: dict[str, Any], status: str = "finished") -> Question:
    """A run's folder with a record, results, and what a kill left."""
    question = Question(folder)
    path = question.folder.path
    happened = RUN["happened"] if status == "finished" else {"error": None}
    write_json(path / "record.json", RUN | {"status": status, "happened": happened})
    write_json(path / "predictions.json", {"labels": [], "predictions": []})
    question.folder.adapter.mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            write_json(path / name, content)
    if (path / "claim.json").exists():
        long_ago = time.time() - 2 * SILENCE
        os.utime(path / "claim.json", (long_ago, long_ago))
    return question


def files(question: Question) -> set[str]:
    return {path.name for path in question.folder.path.iterdir()} - {"claim.lock"}


@pytest.mark.sample(6)
@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("look", ["finished_record", "twice"])
def test_the_next_look_removes_it_and_nothing_else(tmp_path: Path, what: str, look: str) -> None:
    question = leave(tmp_path, LEFT[what])
    for _ in range(1 + (look == "twice")):
        record = question.finished_record()
        assert record is not None
        assert record.finished
        assert files(question) == KEPT


@pytest.mark.sample(6)
@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_is_not_finished_keeps_its_checkpoint(tmp_path: Path, status: str) -> None:
    question = leave(tmp_path, LEFT["checkpoint"], status)
    assert question.finished_record() is None
    assert files(question) == {*KEPT, "checkpoint.safetensors"}


def test_what_a_living_process_holds_is_left_to_it(tmp_path: Path) -> None:
    question = leave(tmp_path, LEFT["everything"])
    code = "import sys; from pathlib import Path; from surm.records.claim import Claim; Claim(Path(sys.argv[1])).take()"
    code += "; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(question.folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        question.folder.checkpoint.write_bytes(b"its own")
        assert question.finished_record() is not None
        assert {"checkpoint.safetensors", "claim.json"} <= files(question)
        process.kill()
    assert question.finished_record() is not None
    assert files(question) == KEPT


def test_a_claim_of_another_host_is_free_after_its_silence(tmp_path: Path) -> None:
    question = leave(tmp_path, LEFT["silent claim of another host"] | LEFT["checkpoint"])
    claim = question.folder.path / "claim.json"
    os.utime(claim)
    assert question.finished_record() is not None
    assert {"checkpoint.safetensors", "claim.json"} <= files(question)


def test_the_holder_itself_may_look(tmp_path: Path) -> None:
    question = leave(tmp_path, LEFT["checkpoint"])
    with Claim(question.folder.path) as claim:
        assert question.finished_record() is not None
        claim.confirm()
    assert question.finished_record() is not None
    assert files(question) == KEPT
