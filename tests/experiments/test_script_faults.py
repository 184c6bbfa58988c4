"""Options of the scripts: what cannot be done is one line on stderr, and nothing is written."""

import argparse
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.command import options, run
from surm.experiments.cli import console, experiment_parser
from surm.records.storage import check_output
from surm.shared.errors import ConfigError, StorageError, UserError
from surm.shared.options import count, share
from surm.studies.weights import analyse
from surm.training import device

REPOSITORY = Path(__file__).resolve().parents[2]
SIGNATURE = "0123456789ab"


@pytest.mark.sample(4)
@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "x", "1e3", "²", "1001", "9" * 30, " 3"])
def test_a_count_is_a_whole_number_within_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
        count(1000)(text)
    assert count(1000)("1000") == 1000


@pytest.mark.sample(4)
@pytest.mark.parametrize("text", ["0", "7", "-0.1", "nan", "inf", "x", "", "1,5"])
def test_a_share_is_above_0_and_at_most_1(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="share"):
        share(text)
    assert share("1") == 1


@pytest.mark.sample(4)
@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--seeds", "x"], ["--nothing"], ["--only"], ["stray"]])
def test_a_bad_option_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        experiment_parser("x").parse_args(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert said.count("\n") == 1


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "arguments",
    [
        *(["--save", name] for name in ("../../x", "/x", "a/b", "", "..", "ü", "~x")),
        *([option, value] for option in ("--threads", "--width", "--tokens", "--rounds") for value in ("0", "9" * 12)),
        ["--device", "gpu"],
        ["--only", "circulnt"],
        ["--peft", "peft"],
        ["--peft", "os:path"],
        ["--kwargs", "{}"],
        ["--peft", "peft:LoraConfig", "--kwargs", "[1]"],
        ["--draw", "nowhere.json"],
    ],
)
def test_a_benchmark_refuses_in_one_sentence(arguments, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, SystemExit)) as ended:
        run(options().parse_args(arguments))
    said = capsys.readouterr().err.strip() if isinstance(ended.value, SystemExit) else str(ended.value)
    assert said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "name",
    [
        f"../runs/{SIGNATURE}",
        f"{SIGNATURE}/",
        "",
        ".",
        "..",
        "/",
        "x" * 12,
        SIGNATURE.upper(),
        f"{SIGNATURE}0",
        "0" * 11,
    ],
)
def test_a_signature_is_twelve_hexadecimal_digits(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="12 digits"):
        analyse(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sample(4)
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", "[" * 100_000, '{"signature": 1}', "9" * 5000])
def test_a_damaged_record_is_one_sentence_of_analyse(content: str, tmp_path: Path) -> None:
    file = tmp_path / "runs" / SIGNATURE / "record.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        analyse(SIGNATURE, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_an_output_folder_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(tmp_path / "nowhere")
    for folder in (file, file / "deeper", link, "", " ", "~", "~user/x", tmp_path / ("x" * 300), "/dev/null"):
        with pytest.raises(ConfigError) as caught:
            check_output(folder)
        assert "\n" not in str(caught.value)
    if os.getuid():
        tmp_path.chmod(0o500)
        with pytest.raises(ConfigError, match="read-only"):
            check_output(tmp_path / "new")
        tmp_path.chmod(0o700)
    check_output(tmp_path / "a" / "new" / "one")
    assert sorted(tmp_path.iterdir()) == [file, link]


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", ["link to a folder", "link to nowhere", "file", "open to all", "another user's"])
def test_the_folder_of_gpu_locks_is_this_users_alone(kind: str, tmp_path: Path, monkeypatch) -> None:
    folder, elsewhere = tmp_path / "locks", tmp_path / "elsewhere"
    match kind:
        case "link to a folder":
            elsewhere.mkdir()
            folder.symlink_to(elsewhere)
        case "link to nowhere":
            folder.symlink_to(elsewhere)
        case "file":
            folder.touch()
        case "open to all":
            folder.mkdir()
            folder.chmod(0o777)
        case _:
            folder.mkdir()
            owner = os.getuid()
            monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(StorageError, match="this user alone"):
        device.own_gpu(folder)
    assert not elsewhere.exists() or list(elsewhere.iterdir()) == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "command",
    [
        ["analyse.py", f"run=../runs/{SIGNATURE}"],
        pytest.param(["tune.py", "--fraction", "7"], marks=pytest.mark.slow),
        pytest.param(["benchmark.py", "--save", "../../x"], marks=pytest.mark.slow),
        pytest.param(["train.py", "seed=${seed}"], marks=pytest.mark.slow),
        pytest.param(["train.py", "--cfg", "job", "seed=x"], marks=pytest.mark.slow),
        pytest.param(["analyse.py", "--help"], marks=pytest.mark.slow),
    ],
)
def test_a_script_says_one_line_and_writes_nothing(command: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    script = [sys.executable, str(REPOSITORY / "scripts" / command[0]), *command[1:]]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "arguments",
    [
        *(["--processes", number] for number in ("x", "-1", "0", "1.5", "9" * 12)),
        *(["--structure", name] for name in ("circulnt", "", "circulant+", "circulant+nope")),
        ["--form", "both"],
        ["--file", "nope"],
        ["--source", "nowhere"],
        *(["--json", file] for file in (".", "/dev/null/deeper.json")),
        ["--nothing"],
        ["stray"],
    ],
    ids=" ".join,
)
def test_the_conformance_of_peft_refuses_in_one_line(arguments, tmp_path, monkeypatch, capsys) -> None:
    file = REPOSITORY / "scripts" / "peft_conformance.py"
    monkeypatch.setattr(sys, "argv", [file.name, *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file), run_name="__main__")
    said = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err.strip()
    assert said.startswith("Error: ")
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folders", [["nowhere"], ["outputs/runs", "nowhere"], ["file"]], ids=str)
def test_an_upload_of_records_that_are_not_there_is_refused(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["records.py", "wandb-sync", "--records", *folders])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "scripts" / "records.py"), run_name="__main__")
    assert re.fullmatch(r"Error: RECORDS=.*: there is no such folder; .*results/runs\.", ended.value.code)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["a [/nope] b", "placement.parts=[q]", "[red]", "[link=x]", "[", "\\[x]", "[/]"])
def test_what_is_said_of_others_is_no_markup(text: str, capsys) -> None:
    console.print(f"failed: {text}")
    assert capsys.readouterr().out == f"failed: {text}\n"
