"""A claim on a run's folder, so that two processes never work on the same run."""

import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from surm.record import RecordError, write_json


class Claim:
    """Hold `claim.json` in a run's folder while the run is going.

    A claim of this host is free as soon as its process is gone, so a killed run can be started again at once.

    Raises:
        RecordError: a living process holds the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "claim.json"

    def __enter__(self) -> Self:
        holder = living_holder(self.path.parent)
        if holder is not None:
            raise RecordError(
                f"run {self.path.parent.name} is being worked on by process {holder['pid']} on {holder['host']}: "
                "wait for it or stop that process."
            )
        write_json(self.path, {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid())})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)


def living_holder(folder: Path) -> dict[str, Any] | None:
    """Who works on a run now, or None."""
    try:
        claim: dict[str, Any] = json.loads((folder / "claim.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if claim["host"] == socket.gethostname() and _start_time(claim["pid"]) != claim["started"]:
        return None
    return claim


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: tells it from a later process with the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        pass
    try:  # without /proc (macOS): only whether it lives
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return "alive"
