"""Where a run ran: the `where` block of its record."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from surm.shared.paths import REPOSITORY

SOURCES = ("surm", "conf", "scripts")  # the folders whose files decide what a run does


def where(device: str, content_hashes: dict[str, str], *, processes: int = 1) -> dict[str, Any]:
    """The machine, the versions and the code that a run ran with, and the hashes of the data and weights it read."""
    packages = ("torch", "peft", "timm", "transformers", "accelerate", "numpy", "scikit-learn")
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "surm": _own_version(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        **code(),
        "machine": {
            "cpu": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": device,
            **({"device_name": torch.cuda.get_device_name(device)} if on_gpu else {}),
            "processes": processes,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "content_hashes": content_hashes,
    }


def _own_version() -> str:
    """This project's version, also where its folder is on the path and not installed."""
    try:
        return importlib.metadata.version("surm")
    except importlib.metadata.PackageNotFoundError:
        version: str = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
        return version


def kind_of_machine(where: Mapping[str, Any]) -> str:
    """The GPU's name, or the kind of device where it has none: what the runs of a pair must have in common."""
    machine = where.get("machine", {})
    return str(machine.get("device_name") or str(machine.get("device", "not known")).partition(":")[0])


def kind_of_this_machine() -> str:
    """`kind_of_machine` of a run that would be started here."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


# --- the code ---------------------------------------------------------------------------------------------------------


@cache
def code() -> dict[str, Any]:
    """The commit, whether the tree differs from it, and a hash of the sources: as this process found them first.

    A process runs what it has loaded, whatever happens to the files afterwards; so a run asks before its first step. A
    tree without git, as one that was copied to another machine, has no commit and is never clean; its sources may still
    be those of a commit, which `commit_of` finds.
    """
    own = _git("rev-parse", "--show-toplevel")
    commit = _git("rev-parse", "HEAD") if own and Path(own).resolve() == REPOSITORY else None
    # What runs leave in results/ does not move a number: a record spells out its learning rate.
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)results") if commit else None
    return {"commit": commit, "dirty": changed != "", "sources": sources_hash(_blobs(REPOSITORY))}


def sources_hash(blobs: Iterable[tuple[str, str]]) -> str:
    """Hexadecimal SHA-256 over path and git's blob hash of each file; the same for a folder and for its commit."""
    lines = sorted(f"{path} {blob}\n" for path, blob in blobs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def commit_of(sources: str, first: str | None = None) -> str | None:
    """A commit of this repository whose sources have a hash, or None.

    first: the commit to look at first.
    """
    commits = (_git("rev-list", "--all") or "").splitlines()
    for commit in [*([first] if first in commits else []), *commits]:
        if _sources_of_commit(commit) == sources:
            return commit
    return None


@cache
def _sources_of_commit(commit: str) -> str:
    listed = _git("-c", "core.quotePath=false", "ls-tree", "-r", commit, "--", *SOURCES) or ""
    entries = (line.split("\t", 1) for line in listed.splitlines())
    return sources_hash((path, about.split()[2]) for about, path in entries)


def _blobs(root: Path) -> Iterator[tuple[str, str]]:
    """Path and git's hash of each file of the sources that git would keep."""
    for folder in SOURCES:
        for file in (root / folder).rglob("*"):
            path = file.relative_to(root).as_posix()
            if file.is_file() and "__pycache__" not in file.parts and not path.startswith("conf/local/"):
                content = file.read_bytes()
                yield path, hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
