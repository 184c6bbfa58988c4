"""A claim on a run's folder, so that no two processes work on one run: on one machine, or on many that share it."""

import fcntl
import os
import socket
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from surm.records.storage import read_json, storing, write_json
from surm.shared.errors import Claimed, RecordError

HEARTBEAT = 30.0  # seconds between two signs of life
SILENCE = 300.0  # seconds without one, after which a claim of another host is free
LOOK = 1.0  # seconds that taking a claim waits for those who look at it, each for an instant


@dataclass(frozen=True)
class Holder:
    """The process that has claimed a run; `silent` are the seconds since its last sign of life."""

    host: str
    pid: int
    token: str  # tells a claim from all others
    silent: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


class Claim:
    """Hold a run's folder while the run is going.

    The process holds the operating system's lock on `claim.lock`, which the kernel frees when the process ends, however
    it ends: a killed run can be started again at once. Some network file systems do not show such a lock to other
    hosts. So `claim.json` names the holder, its time of modification is the heartbeat, and a claim of another host is
    free after 5 minutes without one.

    Raises:
        Claimed: a living process holds the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "claim.json"
        self.holder = Holder(socket.gethostname(), os.getpid(), uuid.uuid4().hex)
        # No soft lock in its place: what a killed process leaves of one is not free at once.
        self._lock = FileLock(folder / "claim.lock", timeout=LOOK, thread_local=False, fallback_to_soft=False)
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
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise self._claimed(_read(self.folder)) from None
        try:
            if holder := _holder_elsewhere(self.folder):
                raise self._claimed(holder)
            write_json(self.path, {"host": self.holder.host, "pid": self.holder.pid, "token": self.holder.token})
        except BaseException:
            self._lock.release()
            raise
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        threading.Thread(target=self._live, daemon=True).start()

    def confirm(self) -> None:
        """Make sure that the run is still this process's.

        Raises:
            Claimed: it was silent for so long, suspended perhaps, that another host has taken over.
        """
        holder = _read(self.folder)
        if holder != self.holder:
            by = holder or "a process that has ended since"
            raise Claimed(f"run {self.folder.name} was taken over by {by}: this process writes nothing more to it.")

    def release(self) -> None:
        """Give the run back; does nothing where it was not taken, or was taken over."""
        self._released.set()
        if self._lock.is_locked:
            if _read(self.folder) == self.holder:
                self.path.unlink(missing_ok=True)
            self._lock.release()

    def _claimed(self, holder: Holder | None) -> Claimed:
        return Claimed(
            f"run {self.folder.name} is being worked on by {holder or 'another process'}: wait for it or stop it."
        )

    def _live(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with suppress(OSError):  # gone, or the server cannot be reached for now
                os.utime(self.path)  # on a network file system in the server's time


def living_holder(folder: Path) -> Holder | None:
    """Who works on a run now, or None; what a process of this host left of its claim when it died is cleared away."""
    if not os.path.lexists(folder / "claim.json"):  # without a look at the lock, which is free for who takes it
        return None
    try:
        lock = (folder / "claim.lock").open("rb")
    except OSError:  # nobody has ever held it
        return None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who look do not meet
        except BlockingIOError:
            return _read(folder) or Holder("", 0, "")  # its claim is damaged
        return _holder_elsewhere(folder)


def _holder_elsewhere(folder: Path) -> Holder | None:
    """The living holder on another host, whose lock may not be seen here; call with the lock in hand."""
    holder = _read(folder)
    if holder and holder.host != socket.gethostname():
        return holder if holder.silent < SILENCE else None
    with suppress(OSError):  # a folder to look at, no more
        (folder / "claim.json").unlink()
    return None


def _read(folder: Path) -> Holder | None:
    """The holder that a claim names; None without a claim, or with a damaged one, since it is written whole."""
    path = folder / "claim.json"
    try:
        match read_json(path):
            case {"host": str(host), "pid": int(pid), "token": str(token)}:
                silent = _file_system_time(folder) - path.stat().st_mtime
                return Holder(host, pid, token, max(0.0, silent))
    except (OSError, RecordError):
        pass
    return None


def _file_system_time(folder: Path) -> float:
    """The time by the clock that stamps files: on a network file system the server's, which may differ from ours."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # a folder to look at, no more
        return time.time()
