"""Weights & Biases: live logging of a run, its trained adapter, and the upload of runs that ran without it.

A run is never lost to its tracking: the record on disk is the result, W&B holds a copy under the same signature.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from surm.shared.errors import TrackingError, first_line

_LOG = logging.getLogger(__name__)

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}  # 255 is W&B's own code for Ctrl-C
FINISH_TIMEOUT = 120.0  # seconds; without a limit, a lost connection would hold a finished run forever
UPLOAD_TIMEOUT = 1800.0  # seconds, where the trained parameters go along: all of a model's, for full fine-tuning


class Tracker(Protocol):
    """What the training loop tells while it runs."""

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Add a row of the history; rows of one step are merged, nested names joined with `/`."""

    def log_adapter(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Store what a finished run saved in its folder, where `tracking.log_adapter` asks for it.

        That is `adapter/` in PEFT's format, else `trained.safetensors`; `metrics` join the artifact's metadata.
        """

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        """Close the run with the record's `happened` block; `status` is finished, interrupted or failed."""


class NoTracker:
    """The tracker of `tracking=none`."""

    def log(self, row: Mapping[str, Any], step: int) -> None:
        pass

    def log_adapter(self, folder: Path, metrics: Mapping[str, float]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        pass


class WandbTracker:
    """A run at W&B. Whatever goes wrong there after the start is one warning: training goes on without it.

    Args:
        run: an open `wandb.Run`.
        marker: written once W&B has the whole finished run, so that `sync` leaves it alone.
        adapter: name and metadata of the artifact that `log_adapter` makes; None: it makes none.
    """

    def __init__(self, run: Any, marker: Path, adapter: tuple[str, Mapping[str, Any]] | None = None) -> None:
        self._run = run
        self._marker = marker
        self._adapter = adapter
        self._alive = True

    def log(self, row: Mapping[str, Any], step: int) -> None:
        if self._alive and step >= self._run.starting_step:  # W&B holds the steps before: a run resumed there
            try:
                self._run.log(_flat(row), step=step)
            except Exception as error:  # a lost connection or service shows as many types
                self._give_up(error)

    def log_adapter(self, folder: Path, metrics: Mapping[str, float]) -> None:
        if not self._alive or self._adapter is None:
            return
        import wandb

        name, metadata = self._adapter
        try:
            artifact = wandb.Artifact(name, type="adapter", metadata={**metadata, "metrics": dict(metrics)})
            saved = folder.resolve()  # W&B reads it there when it uploads: it is immutable, so it needs no copy
            if (saved / "adapter").is_dir():
                artifact.add_dir(str(saved / "adapter"), policy="immutable")
            else:
                artifact.add_file(str(saved / "trained.safetensors"), policy="immutable")
            self._run.log_artifact(artifact)
        except Exception as error:
            _LOG.warning("W&B did not take the adapter (%s): the run is not affected.", error)

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        if self._alive:
            values = {name: value for name, value in summary.items() if name != "history"}
            try:
                self._run.summary.update(_flat(values) | {"status": status})
                self._run.finish(exit_code=EXIT_CODES[status])
                if status == "finished":
                    self._marker.touch()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._alive = False
        _LOG.warning(
            "W&B stopped (%s): the run is not affected, and `make wandb-sync` can upload its record later.",
            str(error) or type(error).__name__,
        )


def start_tracker(
    tracking: Mapping[str, Any],
    *,
    signature: str,
    group: str | None,
    config: Mapping[str, Any],
    directory: Path,
    tags: Sequence[str] = (),
) -> Tracker:
    """Start the tracker that `tracking` asks for; a run resumed here is resumed at W&B.

    Args:
        tracking: the configuration's `tracking` node (name, mode, project, entity, tags, log_adapter).
        signature: identity of the run, and its id at W&B.
        group: experiment that the run was started for.
        config: the record's `asked` block; names of model, dataset and method, and the group, also become tags.
        directory: holds W&B's own files and the markers of `sync`; the same for all runs.
        tags: beside those and the ones of `tracking`.

    Raises:
        TrackingError: online, without an account on this machine or without a way to the server; or for a project
            name or a tag that W&B does not take.
    """
    if tracking["name"] == "none":
        return NoTracker()
    import pydantic  # both take a second to import and belong to the research extra
    import wandb

    directory.mkdir(parents=True, exist_ok=True)  # W&B falls back to a temporary folder where this one is missing
    labels = [config[axis]["name"] for axis in ("model", "dataset", "structure")]
    settings = wandb.Settings(
        mode=tracking["mode"],
        silent=True,
        console="off",
        save_code=False,
        x_disable_machine_info=True,  # neither git remote nor machine load
        host="",
        finish_timeout=UPLOAD_TIMEOUT if tracking["log_adapter"] else FINISH_TIMEOUT,
        finish_timeout_raises=True,
    )
    wandb.setup(settings)
    try:
        # asked here, since `init` would stop a whole sweep at an interactive prompt
        if tracking["mode"] == "online" and not wandb.login(prompt=False):
            raise TrackingError(_way_out("no account is set up on this machine"))
        run = wandb.init(
            project=tracking["project"],
            entity=tracking["entity"],
            id=signature,
            resume="allow",
            group=group,
            name="/".join([*labels, f"seed {config['seed']}"]),
            config=dict(config),
            tags=list(dict.fromkeys([*labels, *([group] if group else []), *tracking["tags"], *tags])),
            dir=directory,
            reinit="create_new",  # several runs of a sweep may share this process
            settings=settings,
        )
    except wandb.errors.CommError as error:
        raise TrackingError(_way_out(first_line(error))) from error
    except wandb.errors.UsageError as error:
        raise TrackingError(_refused(str(error))) from error
    except pydantic.ValidationError as error:
        raise TrackingError(_refused(error.errors()[0]["msg"])) from error
    _LOG.info("W&B: %s", run.url if tracking["mode"] == "online" else run.settings.sync_dir)
    adapter = (f"adapter-{signature}", config) if tracking["log_adapter"] else None
    return WandbTracker(run, marker(directory, signature, tracking["mode"]), adapter)


def marker(directory: Path, signature: str, mode: str) -> Path:
    return directory / f"{signature}.{mode}"


def _way_out(reason: str) -> str:
    return f"tracking.mode=online cannot use W&B ({reason}): run `wandb login`, or set tracking.mode=offline."


def _refused(reason: str) -> str:
    return f"W&B does not take these settings of tracking ({reason.rstrip('.')}): correct them, or set tracking=none."


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined with `/`, by which W&B sorts panels into sections; what is None is left out."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat
