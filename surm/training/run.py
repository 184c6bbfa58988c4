"""One run: find its record, or claim it, train, and leave one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from surm.config.run import Run
from surm.config.schema import RunConfig
from surm.data import data_hash
from surm.models import weights_hash
from surm.records.claim import Claim
from surm.records.provenance import code, where
from surm.records.record import Record
from surm.shared.errors import ConfigError, Interrupted, RecordError, RunError, StorageError, UserError, first_line
from surm.shared.processes import is_main, main_decides
from surm.training.device import accelerator, out_of_memory
from surm.training.interrupt import stop_at_signal
from surm.training.loop import Loop, Report
from surm.training.setup import check_fit
from surm.training.tracking import NoTracker, Tracker, start_tracker


def execute(run: Run, *, report: Report | None = None, say: Callable[[str], None] = print) -> Record:
    """Run, resume or find a run; the same question is answered once.

    Args:
        run: what is asked.
        report: called after each step, for progress bars.
        say: prints one line.

    Returns:
        The run's record, with status `finished`.

    Raises:
        DataError, ModelError, ConfigError: files or settings that cannot be used; nothing is written.
        Claimed: another process works on it.
        RecordError: data or weights differ from those of the finished run, or a file is damaged.
        StorageError: a file cannot be written; an older checkpoint is as before.
        RunError: the loss is no longer finite; the record says so.
        Interrupted: a signal came; the checkpoint is written, or, in the last step, the finished record.
    """
    config = run.config
    code()  # as it is now, before anything is done with it
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = accelerator(config)
    if not is_main():
        say = report = _silent
    claim = Claim(run.folder.path)
    with _set_up(config):  # nothing is written before all of it is there
        check_fit(run)
        hashes = {
            "data": data_hash(config.dataset.name, **config.dataset.origin()),
            "weights": weights_hash(config.model.name, **config.model.origin()),
        }
        record = main_decides(partial(_finished, run, hashes))
        loop = Loop(run, device, claim, report, say) if record is None else None
    try:
        if loop is not None:
            record = main_decides(partial(_begin, run, claim, hashes))
            if record is None:
                return _carry_out(run, device, hashes, claim, loop)
        assert record is not None
        say(f"run {run.signature} is finished already: {run.folder.record}")
        return record
    finally:
        claim.release()


@contextmanager
def _set_up(config: RunConfig) -> Iterator[None]:
    """Whatever data, model or method raise while they are made ready, as one sentence; nothing has been written.

    Raises:
        ConfigError: they cannot be used.
        RunError: the device has no room for the model.
    """
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError:
        raise RunError(out_of_memory(config)) from None
    except Exception as error:  # libraries and formats of files have exceptions of their own, so that no list is whole
        raise ConfigError(
            f"model={config.model.name} dataset={config.dataset.name}: set-up fails with {type(error).__name__} "
            f"({first_line(error)}); see that the files of both are whole and that the settings fit them."
        ) from error


def _begin(run: Run, claim: Claim, hashes: dict[str, str]) -> Record | None:
    """None with the run claimed for this process, or the record that another has finished since the first look."""
    claim.take()
    return _finished(run, hashes)


def _finished(run: Run, hashes: dict[str, str]) -> Record | None:
    record = run.finished_record()
    if record is None:
        return None
    for what, now in hashes.items():
        then = record.where.get("content_hashes", {}).get(what, "not kept")
        if then != now:
            raise RecordError(
                f"run {record.signature} is finished with other {what}: its hash was {then[:16]}, that of what is "
                f"given now is {now[:16]}; restore the {what} or move the run's folder away."
            )
    return record


def _carry_out(
    run: Run,
    device: Accelerator,
    hashes: dict[str, str],
    claim: Claim,
    loop: Loop,
) -> Record:
    """Train, and leave the record of whatever happened."""
    config = run.config
    tracker: Tracker = NoTracker()
    if is_main():
        tracker = start_tracker(
            vars(config.tracking),
            signature=run.signature,
            group=config.table.name,
            config=run.asked,
            directory=Path(config.output_dir) / "wandb",
        )
    loop.log = tracker.log
    try:
        loop.resume()
    except RecordError:  # the record of what was reached stays
        if is_main():
            tracker.finish(loop.happened(), "interrupted")
        raise
    status, error = "failed", None
    try:
        with stop_at_signal(loop.stop):
            loop.train()
        status = "finished"
    except (Interrupted, RecordError, StorageError):
        status = "interrupted"
        raise
    except (RunError, torch.OutOfMemoryError) as failure:
        error = out_of_memory(config) if isinstance(failure, torch.OutOfMemoryError) else str(failure)
        run.folder.checkpoint.unlink(missing_ok=True)  # it leads here again
        raise RunError(error) from None
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        raise
    finally:
        record = Record(
            run.folder.record,
            run.signature,
            status,
            run.asked,
            loop.happened() | {"rate_source": run.rate_source or "given", "error": error},
            where(str(device.device), hashes, processes=device.num_processes),
        )
        if is_main():
            claim.confirm()
            if record.finished:
                loop.save_results()
            record.write()
            if record.finished:
                run.folder.checkpoint.unlink(missing_ok=True)
                tracker.log_adapter(run.folder.path, record.happened["metrics"])
            tracker.finish(record.happened, record.status)
    if loop.stop.requested:  # in its last step: a sweep must not go on with the next run
        raise Interrupted(f"run {run.signature} is finished; nothing after it was started.")
    return main_decides(lambda: record)


def _silent(*_: Any) -> None:
    """What the other processes of a run say and report."""
