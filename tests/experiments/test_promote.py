"""Which records are published and brought back, and what is said of the others."""

import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surm.config.compose import composer
from surm.experiments import status
from surm.experiments.plan import Experiment, load_experiment
from surm.experiments.promote import mixed_machines, promote, restore
from surm.records import provenance
from surm.records.claim import Claim
from surm.records.record import Record, read_record, read_records, write_predictions
from surm.records.recorded import signature

COMMIT, OTHER, SOURCES = "a" * 40, "b" * 40, "5" * 64
HAPPENED: dict[str, Any] = {
    "metrics": {"accuracy": 0.75},
    "primary_metric": "accuracy",
    "best_epoch_metrics": {"accuracy": 0.75},
    "evaluation_examples": 4,
    "trainable_parameters": 3,
    "head_parameters": 2,
    "total_parameters": 10,
    "history": [{"step": 2, "epoch": 1.0, "evaluation": {"accuracy": 0.75, "loss": 0.6}}],
}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    with composer():
        return load_experiment("laptop/digits", overrides=["structure=lora,circulant", "seed=0"])


def write(folder: Path, asked: dict[str, Any], status: str = "finished", **where: Any) -> Record:
    """A made-up run of this repository's own commit, as a run leaves it."""
    name = signature(asked)
    made = {"commit": COMMIT, "dirty": False, "sources": SOURCES, "machine": {"device": "cpu"}} | where
    record = Record(folder / name / "record.json", name, status, asked, HAPPENED, made)
    record.write()
    write_predictions(record.predictions_path, [0, 1, 1, 0], [0, 1, 1, 1], [0.1, 0.2, 0.3, 2.0])
    return record


def known(sources: str, first: str | None = None) -> str | None:
    return COMMIT if sources == SOURCES else None


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ({}, True),
        ({"dirty": True}, True),  # other files than the sources were edited
        ({"dirty": True, "sources": "6" * 64}, False),
        ({"commit": "9" * 40, "dirty": True}, True),  # git was left behind when the sources were copied
        ({"sources": "6" * 64}, False),  # a commit, but not its code
        ({"sources": None}, True),  # from before there was a hash
        ({"sources": None, "dirty": True}, False),
        ({"sources": None, "commit": None}, False),  # no commit and no hash
        ({"commit": None, "dirty": True}, True),  # a copied tree with a commit's code
        ({"commit": None, "dirty": True, "sources": "6" * 64}, False),
    ],
)
def test_a_record_is_published_if_its_code_is_a_commit_s(
    where: dict[str, Any], taken: bool, experiment: Experiment, tmp_path: Path
) -> None:
    said: list[str] = []
    record = write(tmp_path / "runs", experiment.runs[0].asked, **where)
    assert promote([tmp_path / "runs"], tmp_path / "published", commit_of=known, say=said.append) == taken
    published = read_records(tmp_path / "published")
    assert list(published) == ([record.signature] if taken else [])
    if taken:
        found = published[record.signature]
        assert (found.where["commit"], found.where["dirty"]) == (COMMIT, False)
        assert found.evaluation is not None
        assert not said
    else:
        assert said == [f"{record.path} is left out: its code is not that of a commit of this repository."]


def test_records_that_are_not_whole_are_left_out_with_a_sentence(experiment: Experiment, tmp_path: Path) -> None:
    first, second = (run.asked for run in experiment.runs)
    runs, said = tmp_path / "runs", list[str]()
    write(runs, first, status="interrupted")
    without = write(runs, second)
    without.predictions_path.unlink()
    foreign = write(runs, first | {"seed": 1})
    replace(foreign, asked=first | {"seed": 2}).write()
    (runs / "torn").mkdir()
    (runs / "torn" / "record.json").write_text('{"signature": "to')
    assert promote([runs], tmp_path / "published", commit_of=known, say=said.append) == 0
    assert len(said) == 3
    assert any("torn" in line and "not a whole record" in line for line in said)
    assert any("its predictions are not there" in line for line in said)
    assert any("its signature is not that of its question" in line for line in said)


def test_a_published_record_stays_as_it_is(experiment: Experiment, tmp_path: Path) -> None:
    asked = experiment.runs[0].asked
    first = write(tmp_path / "here", asked)
    promote([tmp_path / "here"], tmp_path / "published", commit_of=known)
    second = write(tmp_path / "there", asked, machine={"device": "cuda:0"})
    assert promote([tmp_path / "there"], tmp_path / "published", commit_of=known) == 1
    (kept,) = read_records(tmp_path / "published").values()
    assert kept.where == first.where != second.where


def test_restored_records_are_what_was_published_and_a_sweep_finds_them(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in experiment.runs:
        write(tmp_path / "elsewhere", run.asked)
    published, runs, said = tmp_path / "published", tmp_path / "outputs" / "runs", list[str]()
    assert promote([tmp_path / "elsewhere"], published, commit_of=known) == 2
    (published / "torn.json").write_text("{")
    assert [run.status() for run in experiment.runs] == ["missing", "missing"]
    assert restore(published, runs, said.append) == 2
    assert [run.status() for run in experiment.runs] == ["finished", "finished"]
    for run in experiment.runs:
        assert run.folder.record.read_bytes() == (published / f"{run.signature}.json").read_bytes()
        assert run.folder.predictions.read_bytes() == (published / f"{run.signature}.predictions.json").read_bytes()
    assert [line for line in said if "torn.json is left out" in line] == said
    assert restore(published, runs, said.append) == 0  # nothing is left to do


def test_what_is_here_already_or_worked_on_is_left_alone(experiment: Experiment, tmp_path: Path) -> None:
    first, second = (run.asked for run in experiment.runs)
    for asked in (first, second):
        write(tmp_path / "elsewhere", asked)
    promote([tmp_path / "elsewhere"], tmp_path / "published", commit_of=known)
    own = write(tmp_path / "runs", first, commit=OTHER)
    said: list[str] = []
    with Claim(tmp_path / "runs" / signature(second)):
        assert restore(tmp_path / "published", tmp_path / "runs", said.append) == 0
    assert "is being worked on" in said[0]
    kept = read_record(own.path)
    assert kept is not None
    assert kept.where["commit"] == OTHER


def test_runs_of_one_task_on_several_kinds_of_machines_are_named(experiment: Experiment, tmp_path: Path) -> None:
    first, second = (run.asked for run in experiment.runs)
    write(tmp_path, first, machine={"device": "cpu"})
    write(tmp_path, second, machine={"device": "cpu"})
    assert mixed_machines([experiment], read_records(tmp_path)) == []
    write(tmp_path, second, machine={"device": "cuda:0", "device_name": "NVIDIA H100"})
    (line,) = mixed_machines([experiment], read_records(tmp_path))
    assert "NVIDIA H100 and cpu" in line


# --- the hash of the sources ------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repository"
    for name in ("surm/a.py", "conf/b.yaml", "scripts/c.py", "docs/d.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    at(folder, monkeypatch)
    return folder


def at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "REPOSITORY", folder.resolve())
    provenance._sources_of_commit.cache_clear()


def code() -> dict[str, Any]:
    return provenance.code.__wrapped__()  # a process asks once


def test_a_folder_has_the_hash_of_its_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = code()
    assert (found["commit"], found["dirty"]) == (git(repository, "rev-parse", "HEAD"), False)
    blobs = (git(repository, "rev-parse", f"HEAD:{name}") for name in ("conf/b.yaml", "scripts/c.py", "surm/a.py"))
    text = "".join(
        f"{name} {blob}\n" for name, blob in zip(("conf/b.yaml", "scripts/c.py", "surm/a.py"), blobs, strict=True)
    )
    assert found["sources"] == hashlib.sha256(text.encode()).hexdigest()
    assert provenance.commit_of(found["sources"]) == found["commit"]

    (repository / "surm" / "__pycache__").mkdir()
    (repository / "surm" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert code()["sources"] == found["sources"]
    (repository / "surm" / "a.py").write_text("edited")
    edited = code()
    assert (edited["commit"], edited["dirty"]) == (found["commit"], True)
    assert provenance.commit_of(edited["sources"]) is None
    git(repository, "commit", "-qam", "second")
    assert provenance.commit_of(edited["sources"]) == git(repository, "rev-parse", "HEAD")
    assert provenance.commit_of(found["sources"]) == found["commit"]  # an older one


def test_a_copied_tree_is_never_clean_and_keeps_the_hash(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = code()
    for copy in (tmp_path / "copy", repository / "docs" / "copy"):  # the second inside another repository
        shutil.copytree(repository, copy, ignore=shutil.ignore_patterns(".git", "docs"))
        at(copy, monkeypatch)
        assert code() == {"commit": None, "dirty": True, "sources": there["sources"]}


@pytest.mark.parametrize(
    ("machine", "seconds"), [({"device": "cpu"}, 7.0), ({"device": "cuda", "device_name": "X"}, None)]
)
def test_what_a_run_takes_here_is_told_by_machines_of_this_kind(
    machine: dict[str, str],
    seconds: float | None,
    experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(status, "PUBLISHED", tmp_path / "published")
    asked = experiment.runs[0].asked
    record = write(tmp_path / "outputs" / "runs", asked, machine=machine)
    replace(record, happened=HAPPENED | {"seconds": 7.0}).write()
    assert status.Measured().seconds(asked) == seconds
