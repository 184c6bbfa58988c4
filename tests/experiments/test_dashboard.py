"""What W&B shows and starts: the workspace's views name what runs log, and a sweep starts the runs of a search."""

import json
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps import utils as agent

from surm.config.command import check_command
from surm.config.compose import TRAIN, compose_run, composer
from surm.config.run import Run
from surm.experiments.dashboard import build_views, save_views, write_views
from surm.experiments.plan import Experiment, load_experiment, training_runs
from surm.experiments.tune import first_rates, searches, wandb_sweeps
from surm.experiments.upload import sync
from surm.records.record import read_records
from surm.shared.errors import ConfigError, TrackingError
from surm.shared.paths import PUBLISHED, REPOSITORY
from tests.tools.wandb_stand_ins import TRACKING, Server, logged, server, stranger_to_wandb

__all__ = ["server", "stranger_to_wandb"]  # fixtures

METHODS = "structure=lora,circulant"


def experiments(*names: str) -> list[Experiment]:
    with composer():
        return [load_experiment(name, seeds=1) for name in names]


def views(*names: str) -> list[dict[str, Any]]:
    return [view._spec for view in build_views(experiments(*names), "some", project="surm", entity="me")]


def panels(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Each section's panels, as type and configuration."""
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {
        section["name"]: [panel["config"] | {"type": panel["viewType"]} for panel in section["panels"]]
        for section in sections
    }


def run_set(view: dict[str, Any]) -> dict[str, Any]:
    (found,) = view["spec"]["section"]["runSets"]
    return found


def test_there_is_a_view_of_each_experiment_with_its_own_runs_and_one_of_all_by_experiment():
    whole, digits, valence = views("laptop/digits", "laptop/valence", "laptop/psd_fit")
    assert [view["displayName"] for view in (whole, digits, valence)] == [
        "some: all experiments",
        "laptop_digits",
        "laptop_valence",
    ]
    for view, names in ((whole, ["laptop_digits", "laptop_valence"]), (digits, ["laptop_digits"])):
        belongs, reported = run_set(view)["filters"]["filters"]
        assert [(item["key"]["name"], item["op"], item["value"]) for item in belongs["filters"]] == [
            ("group", "IN", names),
            ("tags", "IN", names),
        ]
        assert belongs["filters"][1]["connector"] == "OR"
        assert (reported["key"]["name"], reported["value"]) == ("dataset.value.evaluate_on", ["test"])
        assert reported["connector"] == "AND"
    keys = [(key["section"], key["name"]) for key in run_set(whole)["grouping"]]
    assert keys == [("run", "group"), ("config", "structure.value.name")]
    assert run_set(digits)["grouping"] == []


def test_sections_hold_scores_parameters_curves_and_cost():
    (view,) = views("small/table5_glue")  # two metrics: Matthews' correlation of CoLA, accuracy of SST-2
    found = panels(view)
    assert list(found) == ["Scores by method", "Metric against trainable parameters", "Curves by structure", "Cost"]
    scores, against, curves, cost = found.values()
    assert [panel["metrics"] for panel in scores] == [["metrics/matthews"], ["metrics/accuracy"]]
    assert [(panel["xAxis"], panel["yAxis"], panel["xAxisLogScale"]) for panel in against] == [
        ("summary:trainable_parameters", "summary:metrics/matthews", True),
        ("summary:trainable_parameters", "summary:metrics/accuracy", True),
    ]
    shown = ["loss", "evaluation/matthews", "evaluation/accuracy", "evaluation/loss"]
    assert [panel["metrics"] for panel in curves] == [[name] for name in shown]
    assert {panel["type"] for panel in curves} == {"Run History Line Plot"}
    assert [panel["metrics"] for panel in cost] == [["seconds_per_step"], ["peak_memory_bytes"]]
    assert {panel["groupBy"] for panel in (*scores, *curves, *cost)} == {"structure.value.name"}


@pytest.mark.parametrize(("name", "dataset"), [("laptop/digits", "digits"), ("small/table5_glue", "glue/cola")])
def test_every_name_is_one_that_a_run_logs(tmp_path, name, dataset):
    (experiment,) = experiments(name)
    published = read_records(PUBLISHED)
    runs = [run for run in training_runs([experiment]) if run.config.dataset.name == dataset]
    record = next(published[run.signature] for run in runs if run.signature in published)
    sync([record], TRACKING, groups={record.signature: [experiment.name]}, directory=tmp_path)
    run = logged(tmp_path, record.signature)
    assert run["identity"][1] == experiment.name

    only = Experiment(experiment.name, experiment.title, experiment.claims, runs)
    (view,) = (view._spec for view in build_views([only], "some", project="surm", entity="me"))
    rows = {key for row in run["history"].values() for key in row}
    for section, found in panels(view).items():
        for panel in found:
            names = panel.get("metrics") or [panel[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")]
            known = rows if section == "Curves by structure" else run["summary"]
            assert set(names) <= set(known)
    grouped = {panel["groupBy"] for found in panels(view).values() for panel in found if "groupBy" in panel}
    filtered = run_set(view)["filters"]["filters"][1]["key"]["name"]
    for path in (*grouped, filtered):  # W&B keeps `config[first][...]` as `first.value.(...)`
        first, value, *rest = path.split(".")
        node = run["config"][first]
        for step in rest:
            node = node[step]
        assert value == "value"
        assert isinstance(node, str)


def test_a_study_alone_has_nothing_to_show():
    with pytest.raises(ConfigError, match=r"^laptop_psd_fit: a study logs no run"):
        views("laptop/psd_fit")


def test_what_is_saved_at_the_server_is_what_is_written_without_one(tmp_path, server: Server, capfd):
    built = build_views(experiments("laptop/digits", "laptop/valence"), "some", project="archive", entity="")
    addresses = save_views(built)
    write_views(built, tmp_path / "new" / "workspace.json")
    written = json.loads((tmp_path / "new" / "workspace.json").read_text())
    assert [json.loads(sent["spec"]) for sent in server.views] == [view["spec"] for view in written]
    assert {(sent["entityName"], sent["projectName"]) for sent in server.views} == {("me", "archive")}
    assert [sent["displayName"] for sent in server.views] == [view["displayName"] for view in written]
    assert len(set(addresses)) == 3
    assert all("/me/archive?nw=" in address for address in addresses)


def test_without_an_account_there_is_one_sentence_with_the_way_out():
    wandb.teardown()
    built = build_views(experiments("laptop/digits"), "some", project="surm", entity="")
    with pytest.raises(TrackingError, match=r"^[^\n]*run `wandb login`, or write it with --json FILE\.$"):
        save_views(built)


def start(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(REPOSITORY / "scripts" / script), run_name="__main__")


def test_the_script_writes_the_views_of_a_scale_for_the_project_of_the_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start("dashboard.py", monkeypatch, "--scale", "smoke", "--set", "tracking.mode=offline", "tracking.project=mine")
    written = json.loads(Path("outputs/workspace.json").read_text())
    assert [(view["displayName"], view["project"]) for view in written] == [
        ("smoke: all experiments", "mine"),
        ("smoke_digits", "mine"),
        ("smoke_phantoms", "mine"),
        ("smoke_valence", "mine"),
    ]
    assert "outputs/workspace.json" in capsys.readouterr().out


# --- sweeps ---------------------------------------------------------------------------------------------------------


def command_lines(sweep: dict[str, Any]) -> list[list[str]]:
    """What W&B's own agent runs for each point of a grid over one parameter."""
    ((name, parameter),) = sweep["parameters"].items()
    lines = []
    for value in parameter["values"]:
        words = agent.create_sweep_command_args({"args": {name: {"value": value}}})
        words |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
        command = agent.create_sweep_command(list(sweep["command"]))
        lines.append([word for part in command for word in (words[part[2:-1]] if part.startswith("${") else [part])])
    return lines


@pytest.mark.parametrize("fraction", [pytest.param(None, marks=pytest.mark.slow), 0.5])
def test_each_run_of_a_sweep_is_one_that_the_search_would_start(fraction):
    settings = [METHODS, "trainer.epochs=2", "tracking.log_adapter=true", "tracking.entity=team"]
    with composer():
        runs = training_runs([load_experiment("laptop/digits", seeds=1, overrides=settings)])
    sweeps = wandb_sweeps(runs, fraction)
    assert set(sweeps) == {("builtin_vit/digits", "lora"), ("builtin_vit/digits", "circulant")}
    for key, member in searches(runs).items():
        sweep = yaml.safe_load(yaml.safe_dump(sweeps[key]))
        assert (sweep["project"], sweep["entity"], sweep["method"]) == ("surm", "team", "grid")
        assert sweep["metric"] == {"name": "evaluation/accuracy", "goal": "maximize"}
        rates = first_rates(member.config.structure.name)
        lines = command_lines(sweep)
        assert len(lines) == len(rates) == 4
        for line, rate in zip(lines, rates, strict=True):
            assert line[:3] == ["/usr/bin/env", "python", "scripts/train.py"]
            overrides = line[3:]
            check_command(overrides, TRAIN)
            with composer():
                config = compose_run(overrides)
            assert Run.of(config).signature == member.on_selection(rate, fraction).signature
            assert (config.tracking.name, config.tracking.log_adapter) == ("wandb", True)
            assert config.table.name == "laptop_digits"


def test_the_script_writes_one_file_for_each_search_that_wandb_can_load(tmp_path, monkeypatch, capsys):
    chosen = ["--only", "laptop_digits", "--set", METHODS, "--wandb-sweep", str(tmp_path)]
    start("tune.py", monkeypatch, *chosen)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["builtin_vit_digits_circulant.yaml", "builtin_vit_digits_lora.yaml"]
    printed = capsys.readouterr().out.splitlines()
    assert sorted(shlex.split(line)[-1] for line in printed) == [str(file) for file in files]
    for file in files:
        sweep = agent.load_sweep_config(str(file))
        assert sweep is not None
        assert (REPOSITORY / sweep["program"]).exists()


def test_sweeps_follow_the_schema_of_wandb():
    schema = pytest.importorskip("sweeps.config", reason="the schema comes with wandb[sweeps], which needs numpy 1")
    with composer():
        (member,) = training_runs(
            [load_experiment("laptop/digits", seeds=1, overrides=["structure=lora", "tracking.entity=team"])]
        )
    (sweep,) = wandb_sweeps([member]).values()
    assert schema.schema_violations_from_proposed_config(sweep) == []
