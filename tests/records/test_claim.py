"""Claims are held by living processes only, on this host and on others."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surm.records import claim as claims
from surm.records.claim import Claim, living_holder
from surm.records.storage import read_json, write_json
from surm.shared.errors import Claimed, StorageError

fork = multiprocessing.get_context("fork")


def hold(folder: Path, held: Any, then: Callable[[], object] = lambda: None) -> None:
    Claim(folder).take()
    then()
    held.set()
    time.sleep(600)


def begin(folder: Path, *then: Callable[[], object]) -> "multiprocessing.process.BaseProcess":
    """A process that has claimed the folder."""
    held = fork.Event()
    process = fork.Process(target=hold, args=(folder, held, *then))
    process.start()
    assert held.wait(60)
    return process


def kill(process: "multiprocessing.process.BaseProcess") -> None:
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


def test_a_claim_keeps_others_out_and_is_gone_afterwards(tmp_path: Path) -> None:
    with Claim(tmp_path) as claim:
        assert living_holder(tmp_path) == claim.holder
        with pytest.raises(Claimed, match=f"is being worked on by process {os.getpid()} on "), Claim(tmp_path):
            pass
        assert living_holder(tmp_path) == claim.holder
        claim.confirm()
    assert living_holder(tmp_path) is None
    assert not (tmp_path / "claim.json").exists()


def test_the_claim_of_a_killed_process_is_free_and_cleared_away_by_who_looks(tmp_path: Path) -> None:
    kill(begin(tmp_path))
    assert (tmp_path / "claim.json").exists()
    assert living_holder(tmp_path) is None
    assert not (tmp_path / "claim.json").exists()
    with Claim(tmp_path) as claim:
        assert living_holder(tmp_path) == claim.holder


def test_a_killed_process_that_nobody_has_waited_for_holds_nothing(tmp_path: Path) -> None:
    """A zombie: its parent, a launcher perhaps, has not noticed yet."""
    process = begin(tmp_path)
    os.kill(process.pid or 0, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid or 0, os.WEXITED | os.WNOWAIT)
    with Claim(tmp_path):
        pass
    process.join()


def test_children_of_a_killed_process_hold_nothing(tmp_path: Path) -> None:
    """Workers that load data outlive their process for a while."""
    children = fork.SimpleQueue()

    def fork_child() -> None:
        if (child := os.fork()) == 0:
            time.sleep(600)
            os._exit(0)
        children.put(child)

    kill(begin(tmp_path, fork_child))
    child = children.get()
    try:
        with Claim(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_suspended_process_keeps_its_claim(tmp_path: Path) -> None:
    process = begin(tmp_path)
    os.kill(process.pid or 0, signal.SIGSTOP)
    silent_for(tmp_path, 1000)
    with pytest.raises(Claimed, match=f"process {process.pid}"), Claim(tmp_path):
        pass
    kill(process)


DAMAGES = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00",
    "a list": b"[]",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a number of 5,000 digits": b'{"host": "node7", "pid": ' + b"9" * 5_000 + b', "token": "t"}',
    "no number": b'{"host": "node7", "pid": "99", "token": "t"}',
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_claim_is_nobodys(tmp_path: Path, damage: bytes) -> None:
    with Claim(tmp_path):
        pass
    (tmp_path / "claim.json").write_bytes(damage)
    assert living_holder(tmp_path) is None
    with Claim(tmp_path) as claim:
        (tmp_path / "claim.json").write_bytes(damage)
        assert str(living_holder(tmp_path)) == "another process"  # the lock says that there is one
        with pytest.raises(Claimed, match="by another process: wait"), Claim(tmp_path):
            pass
        with pytest.raises(Claimed, match="was taken over"):
            claim.confirm()


def test_a_folder_in_place_of_a_claim_is_one_sentence(tmp_path: Path) -> None:
    with Claim(tmp_path):
        pass
    (tmp_path / "claim.json").mkdir()
    assert living_holder(tmp_path) is None
    with pytest.raises(StorageError, match=r"claim\.json cannot be written"), Claim(tmp_path):
        pass
    assert living_holder(tmp_path) is None


def test_who_looks_keeps_nobody_from_a_claim(tmp_path: Path) -> None:
    def look() -> None:
        while True:
            living_holder(tmp_path)

    lookers = [fork.Process(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            with Claim(tmp_path) as claim:
                claim.confirm()
    finally:
        for looker in lookers:
            kill(looker)


# --- claims of other hosts ------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A run that a process of another host has claimed, on a file system that does not show its lock here."""
    with Claim(tmp_path):
        pass
    write_json(tmp_path / "claim.json", {"host": "node7", "pid": 99, "token": "theirs"})
    return tmp_path


def silent_for(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / "claim.json", (then, then))


def test_a_claim_of_another_host_is_free_after_5_minutes_of_silence(elsewhere: Path) -> None:
    silent_for(elsewhere, 290)
    with pytest.raises(Claimed, match="process 99 on node7"), Claim(elsewhere):
        pass
    holder = living_holder(elsewhere)
    assert holder is not None
    assert holder.silent == pytest.approx(290, abs=9)
    silent_for(elsewhere, 301)
    assert living_holder(elsewhere) is None
    with Claim(elsewhere) as claim:
        assert living_holder(elsewhere) == claim.holder


def test_who_only_looks_takes_nothing_from_another_host(elsewhere: Path) -> None:
    silent_for(elsewhere, 10_000)
    assert living_holder(elsewhere) is None
    assert read_json(elsewhere / "claim.json")["pid"] == 99


def test_a_claim_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.01)
    with Claim(tmp_path):
        silent_for(tmp_path, 1000)
        deadline = time.monotonic() + 30
        while time.time() - (tmp_path / "claim.json").stat().st_mtime > 100:
            assert time.monotonic() < deadline
            time.sleep(0.01)
