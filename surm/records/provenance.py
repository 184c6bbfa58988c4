"""Where a run ran: the `where` block of its record."""

import importlib.metadata
import os
import platform
import subprocess
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from surm.shared.paths import REPOSITORY


def where(device: str, content_hashes: dict[str, str], *, processes: int = 1) -> dict[str, Any]:
    """The machine, the versions and the commit that a run ran with, and the hashes of the data and weights it read."""
    packages = ("torch", "peft", "timm", "transformers", "accelerate", "numpy", "scikit-learn")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "surm": _own_version(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "commit": _git("rev-parse", "HEAD"),
        # What runs leave in results/ does not move a number: a record spells out its learning rate.
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":(exclude)results")),
        "machine": {
            "cpu": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": device,
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
