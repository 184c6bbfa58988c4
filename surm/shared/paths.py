"""Where the repository keeps things."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG_DIRECTORY = REPOSITORY / "conf"
RESULTS = REPOSITORY / "results"
PUBLISHED = RESULTS / "runs"
PAPERS = RESULTS / "papers"  # a folder each: claims and the numbers that its text states
PAPER = PAPERS / "surm"
