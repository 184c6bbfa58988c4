"""A claim on a run's folder, so that no two processes work on one run: on one machine, or on many that share it."""

import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from surm.records.storage import storing, write_json
from surm.shared.errors import Claimed, RecordError

HEARTBEAT = 30.0  # seconds between two signs of life
SILENCE = 300.0  # seconds without one, after which a claim of another host is free
LOCK_TIMEOUT = 60.0  # seconds; the lock is held for an instant


class Claim:
    """Hold `claim.json` in a run's folder while the run is going.

    The file names host, process and the process's start; its time of modification is the heartbeat. A claim of this
    host is free as soon as its process is gone, so a killed run can be started again at once; one of another host, or
    of this one before it was started anew, after 5 minutes without a heartbeat.

    Raises:
        Claimed: a living process holds the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "claim.json"
        self._mine = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        self._held = False
        self._released = threading.Event()

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def take(self) -> None:
        """Claim the run and give signs of life until `release`."""
        with _lock(self.folder):  # two processes that find the same run free do not both take it
            holder = living_holder(self.folder)
            if holder is not None:
                raise Claimed(
                    f"run {self.folder.name} is being worked on by {in_words(holder)}: wait for it or stop it."
                )
            write_json(self.path, self._mine)
        self._held = True
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        threading.Thread(target=self._live, daemon=True).start()

    def confirm(self) -> None:
        """Make sure that the run is still this process's.

        Raises:
            Claimed: it was silent for so long, suspended perhaps, that another process has taken over.
        """
        holder = _read(self.path)
        if holder != self._mine:
            by = in_words(holder) if holder else "a process that has ended since"
            raise Claimed(f"run {self.folder.name} was taken over by {by}: this process writes nothing more to it.")

    def release(self) -> None:
        """Give the run back; does nothing where it was not taken, or was taken over."""
        self._released.set()
        if self._held:
            self._held = False
            with _lock(self.folder):
                if _read(self.path) == self._mine:
                    self.path.unlink()

    def _live(self) -> None:
        while not self._released.wait(HEARTBEAT):
            try:
                os.utime(self.path)  # on a network file system in the server's time
            except OSError:  # gone, or the server cannot be reached for now
                continue


def living_holder(folder: Path) -> dict[str, Any] | None:
    """Who works on a run now, or None; `silent` holds the seconds since the last sign of life."""
    path = folder / "claim.json"
    claim = _read(path)
    try:
        beat = path.stat().st_mtime
    except FileNotFoundError:
        return None
    if claim is None:
        return None
    if claim.get("machine") == _machine():
        alive = _start_time(claim["pid"]) == claim["started"]
        return claim | {"silent": max(0.0, time.time() - beat)} if alive else None
    silent = max(0.0, _file_system_time(folder) - beat)
    return claim | {"silent": silent} if silent < SILENCE else None


def in_words(holder: dict[str, Any]) -> str:
    """A process as sentences name it."""
    return f"process {holder['pid']} on {holder['host']}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        claim: dict[str, Any] = json.loads(path.read_text())
        claim["host"], claim["pid"], claim["started"]
    except (
        FileNotFoundError,
        json.JSONDecodeError,
        KeyError,
        TypeError,
    ):  # a claim is written whole: no claim is damage
        return None
    return claim


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "claim.lock", timeout=LOCK_TIMEOUT)
        try:
            lock.acquire()
        except (NotImplementedError, Timeout) as error:
            raise RecordError(
                f"{lock.lock_file} cannot be locked ({type(error).__name__}): choose an output_dir on a file system "
                "with locks, and see that no process which holds it is suspended."
            ) from None
    try:
        yield
    finally:
        lock.release()


def _machine() -> str:
    """What tells machines, and containers on them, apart where two share a name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """When a living process started, in the kernel's ticks: tells it from a later process with the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended, whoever should have noticed
    except FileNotFoundError:
        pass
    try:  # without /proc (macOS): only whether it lives
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return "alive"


def _file_system_time(folder: Path) -> float:
    """The time by the clock that stamps files: on a network file system the server's, which may differ from ours."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # a folder to look at, no more
        return time.time()
