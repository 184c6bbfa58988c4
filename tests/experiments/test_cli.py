"""What the scripts do with several runs, their records and their errors."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from surm.config import checks, signature
from surm.config import compose as composing
from surm.config.command import check_command
from surm.config.compose import TRAIN, composer
from surm.experiments import cli
from surm.experiments import status as overview
from surm.experiments.plan import Experiment, load_experiment, plan
from surm.experiments.runner import ThisProcess, run_one
from surm.experiments.sweep import run_all
from surm.records.claim import Claim
from surm.records.record import read_record
from surm.shared import errors

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = ["model=tiny_vit", "trainer.max_steps=3", "trainer.log_every=1"]


def experiment(folder: Path, *overrides: str) -> Experiment:
    with composer():
        return load_experiment("smoke/digits", overrides=[*TINY, *overrides, f"output_dir={folder}/outputs"])


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_runs_what_is_missing_and_a_failed_member_stops_nobody(
    somewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = experiment(somewhere, "structure=linear_probe,full,circulant", "optim.lr=1e30", "optim.warmup_ratio=0")
    fine = experiment(somewhere, "structure=circulant").runs
    failures = run_all([study.runs[1], *fine], ThisProcess())
    assert failures == 1
    assert [run.status() for run in (study.runs[0], study.runs[1], *fine)] == ["missing", "failed", "finished"]
    before = read_record(fine[0].folder.record)
    capsys.readouterr()
    assert run_all(fine, ThisProcess()) == 0
    assert "done before" in capsys.readouterr().out
    assert read_record(fine[0].folder.record) == before


def test_a_command_is_composed_checked_and_hashed_once(somewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def count(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    count(composing, "compose")
    count(checks, "check_model")
    count(signature, "asked")
    (run,) = plan(check_command([*TINY, "structure=lora"], TRAIN), TRAIN)
    run_one(run)
    assert run.status() == "finished"
    assert calls == {"compose": 1, "check_model": 1, "asked": 1}


def test_status_tells_running_from_missing(somewhere: Path) -> None:
    run = experiment(somewhere, "structure=circulant").runs[0]
    assert run.status() == "missing"
    with Claim(run.folder.path):
        assert run.status() == "running"
    assert run.status() == "missing"


def test_a_dry_run_estimates_from_records_and_runs_nothing(somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = experiment(somewhere, "structure=circulant", "seed=0,1,2")
    run_all(study.runs[:1], ThisProcess())
    record = read_record(study.runs[0].folder.record)
    assert record is not None
    record.happened["seconds"] = 100.0
    record.write()
    capsys.readouterr()
    overview.print_plan([study])
    printed = capsys.readouterr().out
    assert "about 0:03:20" in printed  # two runs left, 100 s each
    assert [run.status() for run in study.runs] == ["finished", "missing", "missing"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["reproduce.py", "--scale", "labtop"], "did you mean laptop?"),
        pytest.param(["reproduce.py", "--only", "laptop/digit"], "did you mean digits?", marks=pytest.mark.slow),
        (["tune.py", "--only", "nothing"], "conf/experiment has"),
    ],
)
def test_a_bad_script_argument_is_one_sentence(command: list[str], words: str, tmp_path: Path) -> None:
    script = REPOSITORY / "scripts" / command[0]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, str(script), *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sample(1)
@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_nobody_reads_ends_quietly(lines: int) -> None:
    """The reader leaves at once; what a single line leaves in the buffer is written at the end."""
    code = f"from surm.experiments.cli import command\nwith command():\n for _ in range({lines}): print('line')"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_ctrl_c_is_130() -> None:
    with pytest.raises(SystemExit) as ended, cli.command():
        raise KeyboardInterrupt
    assert ended.value.code == 130


@pytest.mark.parametrize("error", errors.UserError.__subclasses__())
def test_each_kind_of_error_for_users_is_its_sentence(error: type[Exception]) -> None:
    with pytest.raises(SystemExit, match="Error: one sentence"), cli.command():
        raise error("one sentence")


def test_a_broken_pipe_that_is_not_the_output_keeps_its_trace() -> None:
    with pytest.raises(BrokenPipeError, match="of a worker"), cli.command():
        raise BrokenPipeError("of a worker")


@pytest.mark.parametrize("error", [FileNotFoundError("no data package"), ValueError("a bug")])
def test_expected_errors_are_sentences_and_bugs_keep_their_trace(error: Exception) -> None:
    def fail() -> None:
        with cli.command():
            raise error

    if isinstance(error, FileNotFoundError):
        with pytest.raises(SystemExit, match="Error: no data package"):
            fail()
    else:
        with pytest.raises(ValueError, match="a bug"):
            fail()
