"""Where the repository keeps things."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG_DIRECTORY = REPOSITORY / "conf"
RESULTS = REPOSITORY / "results"
PUBLISHED = RESULTS / "runs"
PAPER = RESULTS / "paper"
"""Claims and numbers of the paper."""
