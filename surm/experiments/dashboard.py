"""The W&B project's workspace: scores by method, metric against parameters, curves and cost, from what runs log.

A workspace has one set of runs for all its panels, so an experiment is a saved view of its own, beside one of all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb_workspaces import expr

from surm.experiments.plan import Experiment, TrainingRun, training_runs
from surm.records.storage import write_json
from surm.shared.errors import ConfigError, TrackingError, first_line

STRUCTURE = "structure.name"  # of a run's configuration
COSTS = {"seconds_per_step": "Seconds per step", "peak_memory_bytes": "Peak memory, bytes"}


def build_views(experiments: Sequence[Experiment], name: str, *, project: str, entity: str) -> list[ws.Workspace]:
    """One saved view of all experiments, grouped by experiment and structure, and one of each experiment.

    Args:
        experiments: those that train a model are shown; studies log no run.
        name: of the view of all, which a single experiment does not need.
        project: at W&B, as `tracking.project`.
        entity: user or team that owns the project.

    Raises:
        ConfigError: none of the experiments trains a model.
    """
    members = {experiment.name: runs for experiment in experiments if (runs := training_runs([experiment]))}
    if not members:
        names = ", ".join(experiment.name for experiment in experiments)
        raise ConfigError(f"{names}: a study logs no run at W&B; choose an experiment that trains a model.")
    chosen = {f"{name}: all experiments": members} if len(members) > 1 else {}
    chosen |= {experiment: {experiment: runs} for experiment, runs in members.items()}
    return [
        ws.Workspace(
            name=title,
            project=project,
            entity=entity,
            sections=_sections(shown),
            settings=ws.WorkspaceSettings(max_runs=sum(map(len, shown.values()))),
            runset_settings=ws.RunsetSettings(
                filters=_runs_of(list(shown)),
                groupby=[ws.Metric("Group"), ws.Config(STRUCTURE)] if len(shown) > 1 else [],
            ),
        )
        for title, shown in chosen.items()
    ]


def _sections(members: dict[str, list[TrainingRun]]) -> list[ws.Section]:
    runs = [run for planned in members.values() for run in planned]
    metrics = list(dict.fromkeys(run.metric for run in runs))
    several, shown = len(members) > 1, len(runs)

    def bars(metric: str, title: str) -> wr.BarPlot:
        # Bars of several experiments follow the grouping of the run table.
        by = None if several else wr.Config(STRUCTURE)
        return wr.BarPlot(
            title=title,
            metrics=[metric],
            groupby=by,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=shown,
            max_bars_to_show=shown,
        )

    def curve(metric: str) -> wr.LinePlot:
        return wr.LinePlot(
            title=metric,
            y=[metric],
            groupby=wr.Config(STRUCTURE),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=shown,
        )

    def against_parameters(metric: str) -> wr.ScatterPlot:
        return wr.ScatterPlot(
            title=f"{metric} against trainable parameters",
            x=wr.SummaryMetric("trainable_parameters"),
            y=wr.SummaryMetric(f"metrics/{metric}"),
            log_x=True,
        )

    evaluations = [f"evaluation/{metric}" for metric in [*metrics, "loss"]]
    sections: dict[str, list[Any]] = {
        "Scores by experiment and method" if several else "Scores by method": [
            bars(f"metrics/{metric}", metric) for metric in metrics
        ],
        "Metric against trainable parameters": [against_parameters(metric) for metric in metrics],
        "Curves by structure": [curve(name) for name in ["loss", *evaluations]],
        "Cost": [bars(name, title) for name, title in COSTS.items()],
    }
    return [ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()]


def _runs_of(experiments: list[str]) -> Any:
    """The runs of experiments, whichever they were started for, without those of a search for a learning rate."""
    # The library writes a filter's key as given, and W&B keeps an entry of the configuration below its `value`.
    reported = ws.Config("dataset.value.evaluate_on").isin(["test"])
    return expr.And(expr.Or(ws.Metric("Group").isin(experiments), ws.Tags().isin(experiments)), reported)


def write_views(views: Sequence[ws.Workspace], file: Path) -> None:
    """Write what W&B would store, without a server: a JSON list of its own views."""
    write_json(file, [view._spec for view in views])


def save_views(views: Sequence[ws.Workspace]) -> list[str]:
    """Save the views at W&B as new ones.

    Returns:
        Their addresses.

    Raises:
        TrackingError: no account on this machine, no way to the server, or a project that does not exist.
    """
    try:
        if not wandb.login(prompt=False):
            raise TrackingError(_way_out("no account is set up on this machine"))
        for view in views:
            view.entity = view.entity or wandb.Api().default_entity or ""
            view.save()  # type: ignore[no-untyped-call]
    except (wandb.errors.Error, WandbApiFailedError, ValueError) as error:
        raise TrackingError(_way_out(first_line(error))) from error
    return [view.url for view in views]


def _way_out(reason: str) -> str:
    return f"the workspace cannot be saved at W&B ({reason}): run `wandb login`, or write it with --json FILE."
