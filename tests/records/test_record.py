"""Records are whole or absent; claims are held by living processes only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from surm.records.claim import Claim, living_holder
from surm.records.record import read_record
from surm.records.storage import write_atomically, write_json
from surm.shared.errors import RecordError, StorageError


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "record.json"
    write_atomically(target, b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match=r"record\.json cannot be written \(No space left on device\)"):
        write_atomically(target, b"new, and longer")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_not_a_number_never_gets_into_a_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "record.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ['{"signature": "a", "status', "[]", '{"signature": "a"}'])
def test_half_a_record_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"record\.json is not a whole record"):
        read_record(path)
    assert read_record(tmp_path / "none.json") is None


def test_a_claim_keeps_others_out_and_is_gone_afterwards(tmp_path: Path) -> None:
    with Claim(tmp_path):
        assert living_holder(tmp_path)["pid"] == os.getpid()
        with pytest.raises(RecordError, match=f"process {os.getpid()}"), Claim(tmp_path):
            pass
        assert living_holder(tmp_path)["pid"] == os.getpid()
    assert living_holder(tmp_path) is None


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from surm.records.claim import Claim; "
        f"Claim(Path({str(tmp_path)!r})).__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    left = json.loads((tmp_path / "claim.json").read_text())
    assert left["pid"] != os.getpid()
    assert living_holder(tmp_path) is None
