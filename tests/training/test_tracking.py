import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
import yaml

import surm.training.tracking
from surm.config.compose import composer
from surm.data import primary_metric
from surm.experiments import upload
from surm.experiments.plan import Scale, load_experiment
from surm.experiments.upload import experiments_of, sync, tracking_options, wandb_sync
from surm.records.record import Record, unrun
from surm.records.storage import write_json
from surm.shared.errors import ConfigError, TrackingError
from surm.shared.paths import CONFIG_DIRECTORY, PUBLISHED
from surm.training.tracking import WandbTracker, start_tracker
from tests.tools.wandb_stand_ins import TRACKING, logged, server, stranger_to_wandb

__all__ = ["server", "stranger_to_wandb"]  # fixtures

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
FINISHED = Record(Path("a1b2c3d4e5f6.json"), "a1b2c3d4e5f6", "finished", ASKED, HAPPENED, {})


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
    tags = {"tiny_vit", "digits", "kronecker", "laptop", "smoke", "laptop_digits"}
    assert run["identity"] == ("a1b2c3d4e5f6", "laptop_digits", "tiny_vit/digits/kronecker/seed 7", "surm", tags)
    assert run["machine"] == ("", "", "")
    assert run["config"] == ASKED
    assert run["history"] == HISTORY
    assert run["summary"].items() >= (SUMMARY | {"status": status, "loss": 0.5}).items()
    assert not run["summary"].keys() & {"history", "error"}
    assert run["exit_code"] == exit_code
    assert capfd.readouterr() == ("", "")


GROUPS = {"a1b2c3d4e5f6": ["laptop_digits", "full_digits"]}


def test_sync_uploads_each_finished_run_once_in_the_group_of_its_experiment(tmp_path):
    live = start(tmp_path, "aaaaaaaaaaaa")
    live.finish(HAPPENED, "finished")
    records = [
        FINISHED,
        FINISHED,
        replace(FINISHED, signature="aaaaaaaaaaaa"),
        replace(FINISHED, signature="bbbbbbbbbbbb", status="interrupted"),
    ]
    options = TRACKING | {"project": "archive", "tags": []}
    assert sync(records, options, groups=GROUPS, directory=tmp_path) == ["a1b2c3d4e5f6"]
    assert sync(records, options, groups=GROUPS, directory=tmp_path) == []

    run = logged(tmp_path, "a1b2c3d4e5f6")
    tags = {"tiny_vit", "digits", "kronecker", "laptop_digits", "full_digits"}
    assert run["identity"] == ("a1b2c3d4e5f6", "laptop_digits", "tiny_vit/digits/kronecker/seed 7", "archive", tags)
    assert run["config"] == ASKED
    assert run["history"] == HISTORY
    assert run["summary"].items() >= (SUMMARY | {"status": "finished"}).items()
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


def test_what_is_online_is_not_written_again_offline(tmp_path):
    (tmp_path / "a1b2c3d4e5f6.online").touch()
    assert sync([FINISHED], TRACKING, groups={}, directory=tmp_path) == []


def test_an_offline_upload_that_broke_is_written_anew(tmp_path, monkeypatch):
    log = WandbTracker.log

    def break_at_40(self, row, step):
        if step == 40:
            raise KeyboardInterrupt
        log(self, row, step)

    with monkeypatch.context() as patched:
        patched.setattr(WandbTracker, "log", break_at_40)
        with pytest.raises(KeyboardInterrupt):
            sync([FINISHED], TRACKING, groups={}, directory=tmp_path)
    wandb.teardown()
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert sync([FINISHED], TRACKING, groups={}, directory=tmp_path) == ["a1b2c3d4e5f6"]
    assert logged(tmp_path, "a1b2c3d4e5f6")["history"] == HISTORY  # `logged` takes exactly one folder


def test_an_online_upload_that_broke_goes_on_without_a_row_twice(tmp_path, server):
    history = [{"step": step, "loss": 1 / step} for step in (10, 20, 30, 40)]
    history.append({"step": 40, "evaluation": {"accuracy": 0.75}})
    record = replace(FINISHED, happened=HAPPENED | {"history": history})
    options = TRACKING | {"mode": "online", "project": "archive"}
    assert sync([record], options, groups=GROUPS, directory=tmp_path) == ["a1b2c3d4e5f6"]
    assert (server.run["name"], server.run["project"], server.run["groupName"]) == (
        "a1b2c3d4e5f6",
        "archive",
        "laptop_digits",
    )
    complete = [(row["_step"], row["loss"], row.get("evaluation/accuracy")) for row in server.history]
    assert complete == [(10, 0.1, None), (20, 0.05, None), (30, 1 / 30, None), (40, 0.025, 0.75)]
    assert sync([record], options, groups=GROUPS, directory=tmp_path) == []

    del server.history[2:]  # as if the connection had been lost there
    (tmp_path / "a1b2c3d4e5f6.online").unlink()
    wandb.teardown()
    assert sync([record], options, groups=GROUPS, directory=tmp_path) == ["a1b2c3d4e5f6"]
    assert [(row["_step"], row["loss"], row.get("evaluation/accuracy")) for row in server.history] == complete


@pytest.mark.slow
def test_make_wandb_sync_takes_its_options_from_conf_and_groups_from_the_plans(tmp_path, monkeypatch, capsys):
    with composer():
        (planned,) = load_experiment("laptop/digits", seeds=1, overrides=["structure=lora"]).runs
    record = json.loads((PUBLISHED / f"{planned.signature}.json").read_text())
    monkeypatch.chdir(tmp_path)
    write_json(Path("published") / f"{planned.signature}.json", record)
    write_json(Path("published") / "cccccccccccc.json", record | {"signature": "cccccccccccc"})  # of no experiment
    monkeypatch.setattr(upload, "groups", lambda: {"experiment": ["full/digits"]})  # of some 30
    monkeypatch.setattr(upload, "load_scale", lambda name: Scale(name, ["laptop/digits", "laptop/psd_fit"]))
    settings = ["tracking.mode=offline", "tracking.project=archive", "tracking.tags=[old]"]

    def uploads(only: str | None) -> str:
        chosen = {"scale": "laptop", "seeds": None, "only": only, "records": [Path("published")]}
        wandb_sync(argparse.Namespace(**chosen, set=settings))
        return capsys.readouterr().out

    assert "1 of 1 finished runs" in uploads("laptop_digits")
    _, group, _, project, tags = logged(Path("outputs/wandb"), planned.signature)["identity"]
    assert (group, project) == ("laptop_digits", "archive")
    assert tags == {"builtin_vit", "digits", "lora", "old", "laptop_digits"}
    assert "1 of 2 finished runs" in uploads(None)
    assert logged(Path("outputs/wandb"), "cccccccccccc")["identity"][1] == ""


@pytest.mark.slow
def test_a_run_belongs_to_the_experiments_that_plan_it_the_chosen_first(monkeypatch):
    monkeypatch.setattr(upload, "load_scale", lambda name: Scale(name, ["laptop/digits"]))
    monkeypatch.setattr(upload, "groups", lambda: {"experiment": ["full/digits", "full/textile"]})
    with composer():
        chosen = load_experiment("full/digits", seeds=1, overrides=["structure=lora"])
        elsewhere = load_experiment("full/textile", seeds=1, overrides=["structure=lora"])
    shared, textile = (unrun(run.signature, run.asked) for run in (chosen.runs[0], elsewhere.runs[0]))
    assert experiments_of([shared], [chosen])[shared.signature] == ["full_digits"]
    found = experiments_of([shared, textile], [])
    assert found[shared.signature] == ["laptop_digits", "full_digits"]
    assert found[textile.signature] == ["full_textile"]


def test_options_of_tracking_are_those_of_conf_and_of_the_command():
    stated = yaml.safe_load((CONFIG_DIRECTORY / "tracking/wandb.yaml").read_text())
    options, others = tracking_options(["trainer.epochs=2", "tracking.project=mine", "tracking.log_adapter=true"])
    assert options == stated | {"project": "mine", "log_adapter": True}
    assert others == ["trainer.epochs=2"]
    with pytest.raises(ConfigError, match=r"tracking\.projects=mine"):
        tracking_options(["tracking.projects=mine"])


@pytest.mark.parametrize(
    ("dataset", "metric"),
    [("digits", "accuracy"), ("glue/cola", "matthews"), ("glue/stsb", "spearman"), ("vtab/pets", "accuracy")],
)
def test_primary_metric_is_known_without_reading_the_data(dataset, metric):
    assert primary_metric(dataset) == metric


def test_the_metric_of_a_table_is_that_of_its_labels(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("sentence,score\ngood,0.5\nbad,0.25\nfine,0.75\n")
    columns = {"text": "sentence", "label": "score"}
    assert primary_metric("table", path=str(tmp_path), columns=columns) == "spearman"


def saved(folder: Path) -> Path:
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_the_adapter_is_an_artifact_where_it_is_asked_for(tmp_path):
    for signature, asked in (("111111111111", True), ("222222222222", False)):
        tracker = start(tmp_path, signature, log_adapter=asked)
        tracker.log_adapter(saved(tmp_path / signature), {"accuracy": 0.75})
        tracker.finish(HAPPENED, "finished")
    (artifact,) = logged(tmp_path, "111111111111")["artifacts"]
    assert (artifact.name, artifact.type, list(artifact.aliases)) == ("adapter-111111111111", "adapter", ["latest"])
    assert {(file.path, file.size) for file in artifact.manifest.contents} == {
        ("adapter_config.json", 2),
        ("adapter_model.safetensors", 7),
    }
    assert json.loads(artifact.metadata) == ASKED | {"metrics": {"accuracy": 0.75}}
    assert logged(tmp_path, "222222222222")["artifacts"] == []


def test_trained_parameters_without_an_adapter_are_an_artifact_of_one_file(tmp_path):
    (tmp_path / "trained.safetensors").write_bytes(b"weights")
    tracker = start(tmp_path / "logs", log_adapter=True)
    tracker.log_adapter(tmp_path, {})
    tracker.finish(HAPPENED, "finished")
    (artifact,) = logged(tmp_path / "logs", "a1b2c3d4e5f6")["artifacts"]
    assert [file.path for file in artifact.manifest.contents] == ["trained.safetensors"]


def test_an_adapter_that_cannot_be_stored_is_one_warning_and_the_run_is_whole(tmp_path, caplog):
    tracker = start(tmp_path, log_adapter=True)
    tracker.log_adapter(tmp_path / "nothing here", {})
    tracker.finish(HAPPENED, "finished")
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "adapter" in message
    assert "nothing here" in message
    assert logged(tmp_path, "a1b2c3d4e5f6")["summary"]["status"] == "finished"
    assert (tmp_path / "a1b2c3d4e5f6.offline").exists()


def test_sync_uploads_the_adapter_beside_a_record_but_none_of_published_ones(tmp_path, caplog):
    own = replace(FINISHED, path=saved(tmp_path / "runs" / "a1b2c3d4e5f6") / "record.json")
    published = replace(FINISHED, signature="dddddddddddd", path=tmp_path / "published" / "dddddddddddd.json")
    sync([own, published], TRACKING | {"log_adapter": True}, groups={}, directory=tmp_path)
    assert [artifact.name for artifact in logged(tmp_path, "a1b2c3d4e5f6")["artifacts"]] == ["adapter-a1b2c3d4e5f6"]
    assert logged(tmp_path, "dddddddddddd")["artifacts"] == []
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_run_that_an_agent_starts_joins_its_sweep_with_its_whole_configuration(tmp_path, monkeypatch):
    wandb.teardown()
    (tmp_path / "parameters.yaml").write_text("wandb_version: 1\noptim.lr: {value: 0.003}\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "parameters.yaml"))
    start(tmp_path).finish(HAPPENED, "finished")
    run = logged(tmp_path, "fromagent")
    assert run["sweep"] == "sweep1"
    assert run["config"].items() >= ASKED.items()
    assert run["identity"][:2] == ("fromagent", "laptop_digits")


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

    starting_step = 0
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
        f"import runpy, sys; from pathlib import Path; module = runpy.run_path({surm.training.tracking.__file__!r})\n"
        "tracker = module['start_tracker'](\n"
        "    {'name': 'none'}, signature='a', group=None, config={}, tags=[], directory=Path('logs'))\n"
        "tracker.log({'loss': 1.0}, step=1); tracker.finish({}, 'finished')\n"
        "print('wandb' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
    assert list(tmp_path.iterdir()) == []
