"""Where the repository keeps things."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG_DIRECTORY = REPOSITORY / "conf"
RESULTS = REPOSITORY / "results"
PUBLISHED = RESULTS / "runs"
PAPERS = RESULTS / "papers"  # a folder each: claims and the numbers that its text states
PAPER = PAPERS / "surm"


def cache_folder() -> Path:
    """`$SURM_CACHE`, or else `~/.cache/surm`: may be deleted at any time."""
    return Path(os.environ.get("SURM_CACHE") or Path.home() / ".cache" / "surm").expanduser()
