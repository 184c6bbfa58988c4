import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

import surm.tracking
from surm.tracking import TrackingError, WandbTracker, start_tracker, sync

TRACKING = {"name": "wandb", "mode": "offline", "project": "surm", "entity": None, "tags": ["laptop"]}
ASKED = {
    "model": {"name": "tiny_vit", "revision": "1"},
    "dataset": {"name": "digits", "revision": "2", "evaluate_on": "test"},
    "structure": {"name": "kronecker", "factor_shape": [32, 24], "alpha": 1.0},
    "optim": {"lr": 0.003},
    "seed": 7,
}
HAPPENED = {
    "metrics": {"accuracy": 0.75},
    "primary_metric": "accuracy",
    "trainable_parameters": 27648,
    "head_parameters": 3850,
    "history": [
        {"step": 10, "epoch": 0.25, "loss": 1.5, "lr": 0.003},
        {"step": 40, "epoch": 1.0, "loss": 0.5, "lr": 0.001},
        {"step": 40, "epoch": 1.0, "evaluation": {"accuracy": 0.75}},
    ],
    "resumed_from_steps": [20],
    "error": None,
}
FINISHED = {"signature": "a1b2c3d4e5f6", "status": "finished", "asked": ASKED, "happened": HAPPENED}


@pytest.fixture(autouse=True)
def stranger_to_wandb(monkeypatch, tmp_path):
    """No account, no settings and no cache of whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))


def transaction_log(path: Path) -> list[Record]:
    """W&B's own messages in a `.wandb` file, which has the framing of a LevelDB log.

    After 7 bytes of file header come blocks of 32 KiB with fragments: checksum (4 bytes), length (2), type (1), data;
    types 1 and 4 end a message, and a block's last bytes are padding where no fragment header fits.
    """
    content, position, message, records = path.read_bytes(), 7, b"", []
    assert content.startswith(b":W&B")
    while position < len(content):
        if (left := -position % 32768) and left < 7:
            position += left
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(message))
            message = b""
    return records


def items(updates) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def logged(directory: Path, signature: str) -> dict:
    """What an offline run wrote: its identity, configuration, history by step, summary and exit code."""
    wandb.teardown()  # `finish` returns before its service has closed the file
    (path,) = directory.glob(f"wandb/offline-run-*-{signature}/*.wandb")
    records = transaction_log(path)
    run = next(record.run for record in records if record.HasField("run"))
    rows = (items(record.history.item) for record in records if record.HasField("history"))
    summary: dict = {}
    for record in records:
        if record.HasField("summary"):
            summary |= items(record.summary.update)
    (exit_code,) = [record.exit.exit_code for record in records if record.HasField("exit")]
    return {
        "identity": (run.run_id, run.run_group, run.display_name, run.project, set(run.tags)),
        "machine": (run.host, run.git.remote_url, records[0].environment.email),
        "config": {name: value for name, value in items(run.config.update).items() if name != "_wandb"},
        "history": {
            row["_step"]: {name: value for name, value in row.items() if not name.startswith("_")} for row in rows
        },
        "summary": {name: value for name, value in summary.items() if not name.startswith("_")},
        "exit_code": exit_code,
    }


HISTORY = {
    10: {"epoch": 0.25, "loss": 1.5, "lr": 0.003},
    40: {"epoch": 1.0, "loss": 0.5, "lr": 0.001, "evaluation/accuracy": 0.75},
}
SUMMARY = {
    "metrics/accuracy": 0.75,
    "primary_metric": "accuracy",
    "trainable_parameters": 27648,
    "head_parameters": 3850,
    "resumed_from_steps": [20],
}


def start(directory, signature="a1b2c3d4e5f6", **tracking):
    return start_tracker(
        TRACKING | tracking,
        signature=signature,
        group="laptop_digits",
        config=ASKED,
        tags=["smoke", "digits"],
        directory=directory,
    )


@pytest.mark.parametrize(("status", "exit_code"), [("finished", 0), ("interrupted", 255), ("failed", 1)])
def test_offline_run_holds_everything_that_was_told(tmp_path, capfd, status, exit_code):
    tracker = start(tmp_path / "logs")
    for row in HAPPENED["history"]:
        tracker.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])
    tracker.finish(HAPPENED, status)

    run = logged(tmp_path / "logs", "a1b2c3d4e5f6")
    tags = {"tiny_vit", "digits", "kronecker", "laptop", "smoke"}
    assert run["identity"] == ("a1b2c3d4e5f6", "laptop_digits", "tiny_vit/digits/kronecker/seed 7", "surm", tags)
    assert run["machine"] == ("", "", "")
    assert run["config"] == ASKED
    assert run["history"] == HISTORY
    assert run["summary"].items() >= (SUMMARY | {"status": status, "loss": 0.5}).items()
    assert not run["summary"].keys() & {"history", "error"}
    assert run["exit_code"] == exit_code
    assert capfd.readouterr() == ("", "")


def test_sync_uploads_each_finished_run_once(tmp_path):
    live = start(tmp_path, "aaaaaaaaaaaa")
    live.finish(HAPPENED, "finished")
    records = [
        FINISHED,
        FINISHED | {"signature": "aaaaaaaaaaaa"},
        FINISHED | {"signature": "bbbbbbbbbbbb", "status": "interrupted"},
    ]
    assert sync(records, project="archive", mode="offline", directory=tmp_path) == ["a1b2c3d4e5f6"]
    assert sync(records, project="archive", mode="offline", directory=tmp_path) == []

    run = logged(tmp_path, "a1b2c3d4e5f6")
    tags = {"tiny_vit", "digits", "kronecker"}
    assert run["identity"] == ("a1b2c3d4e5f6", "", "tiny_vit/digits/kronecker/seed 7", "archive", tags)
    assert run["config"] == ASKED
    assert run["history"] == HISTORY
    assert run["summary"].items() >= (SUMMARY | {"status": "finished"}).items()
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


def test_runs_of_one_process_do_not_mix(tmp_path):
    first, second = start(tmp_path, "111111111111"), start(tmp_path, "222222222222")
    first.log({"loss": 1.0}, step=1)
    second.log({"loss": 2.0}, step=1)
    first.finish({}, "finished")
    second.finish({}, "finished")
    assert logged(tmp_path, "111111111111")["history"] == {1: {"loss": 1.0}}
    assert logged(tmp_path, "222222222222")["history"] == {1: {"loss": 2.0}}


def test_no_account_is_one_sentence_with_the_way_out(tmp_path):
    with pytest.raises(TrackingError, match=r"^[^\n]*run `wandb login`, or set tracking\.mode=offline\.$"):
        start(tmp_path, mode="online")
    assert not list(tmp_path.glob("wandb/run-*"))


@pytest.mark.parametrize(
    ("setting", "reason"), [({"project": "a/b"}, "project name 'a/b'"), ({"tags": ["x" * 80]}, "80 characters")]
)
def test_refused_setting_is_one_sentence_with_the_reason(tmp_path, setting, reason):
    with pytest.raises(TrackingError) as refusal:
        start(tmp_path, **setting)
    assert reason in str(refusal.value)
    assert "login" not in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


class LostRun:
    """A run whose connection breaks at the first word; counts the attempts."""

    attempts = 0

    def log(self, row, step):
        self.attempts += 1
        raise ConnectionResetError("the server is gone")


def test_lost_connection_is_one_warning_and_leaves_the_run_to_sync(tmp_path, caplog):
    run = LostRun()
    tracker = WandbTracker(run, tmp_path / "marker")
    tracker.log({"loss": 1.0}, step=1)
    tracker.log({"loss": 1.0}, step=2)
    tracker.finish(HAPPENED, "finished")
    assert run.attempts == 1
    (message,) = caplog.messages
    assert "the server is gone" in message
    assert "make wandb-sync" in message
    assert not (tmp_path / "marker").exists()


def test_none_imports_no_wandb_and_writes_nothing(tmp_path):
    program = (
        f"import runpy, sys; from pathlib import Path; module = runpy.run_path({surm.tracking.__file__!r})\n"
        "tracker = module['start_tracker'](\n"
        "    {'name': 'none'}, signature='a', group=None, config={}, tags=[], directory=Path('logs'))\n"
        "tracker.log({'loss': 1.0}, step=1); tracker.finish({}, 'finished')\n"
        "print('wandb' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
    assert list(tmp_path.iterdir()) == []
