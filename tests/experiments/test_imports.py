"""Training loads no report: it runs where Plotly and matplotlib are not installed, and each process starts sooner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.plugins import TINY, with_plugin

REPOSITORY = Path(__file__).resolve().parents[2]
REPORT = ("surm.report", "plotly", "matplotlib")
ABSENT = (*REPORT, "pandas")  # scikit-learn loads pandas where it is; jinja2 PEFT needs itself, for its model card

RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("loaded:", *(name for name in {names} if name in sys.modules))
"""
HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in {names} else find(name, *rest)
"""


def python(program: str, *arguments: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_launching_loads_no_report(tmp_path: Path) -> None:
    program = f"import sys, surm.experiments.launch; print([name for name in {REPORT} if name in sys.modules])"
    assert python(program, folder=tmp_path) == "[]\n"


def test_a_run_loads_no_report(tmp_path: Path) -> None:
    output = python(RUN.format(names=REPORT), str(REPOSITORY / "scripts/train.py"), *TINY, folder=tmp_path)
    assert output.endswith("loaded:\n")
    assert len(list(tmp_path.glob("outputs/runs/*/record.json"))) == 1


def test_a_run_needs_nothing_that_the_report_alone_is_made_with(tmp_path: Path) -> None:
    program = HIDE.format(names=ABSENT) + RUN.format(names=ABSENT)
    output = python(program, str(REPOSITORY / "scripts/train.py"), *TINY, folder=tmp_path)
    assert output.endswith("loaded:\n")
    assert "trainable" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"), [("train.py", ["seed=0,1", *TINY]), ("approximate.py", ["study=psd_fit", "study.draws=2"])]
)
@pytest.mark.parametrize("launcher", with_plugin("joblib"))
def test_a_worker_loads_no_report(launcher: str, name: str, arguments: list[str], tmp_path: Path) -> None:
    """Each worker writes what it has loaded when it ends its job."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, threading\n"
        "if 'loky' in ' '.join(sys.orig_argv):\n"
        "    import atexit\n"
        f"    atexit.register(lambda: print('worker:', *(name for name in {REPORT} if name in sys.modules)))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    command = [str(REPOSITORY / "scripts" / name), "-m", *arguments, f"hydra/launcher={launcher}"]
    output = python(RUN.format(names=()), *command, folder=tmp_path, PYTHONPATH=path)
    workers = [line for line in output.splitlines() if line.startswith("worker:")]
    assert workers
    assert set(workers) == {"worker:"}
