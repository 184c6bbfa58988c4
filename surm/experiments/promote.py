"""Records from outputs/runs to results/runs, and back: which are taken, and what is said of the others."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from surm.experiments.cli import console
from surm.experiments.plan import Experiment, training_runs
from surm.records import provenance
from surm.records.claim import Claim
from surm.records.provenance import kind_of_machine
from surm.records.record import Record, read_record, read_records
from surm.records.recorded import RunFolder, canonical, signature
from surm.records.storage import write_atomically
from surm.shared.errors import Claimed, RecordError


def promote(
    folders: Sequence[Path],
    published: Path,
    planned: Collection[str] = (),
    *,
    commit_of: Callable[[str, str | None], str | None] = provenance.commit_of,
    say: Callable[[str], None] = console.print,
) -> int:
    """Copy the records and predictions of finished runs of a clean tree, and the planned parts of studies.

    A record that is published already stays as it is. One of a tree without git is taken if its sources are those of a
    commit, which it then names.

    Args:
        folders: of records, as `read_records` takes them.
        published: the folder to copy to.
        planned: signatures of the parts of studies to copy.
        commit_of: the commit whose sources have a hash, if there is one; its second argument is where to look first.
        say: prints a sentence for what is left out although it looks finished.

    Returns:
        How many of the records are published now.
    """
    records, count = read_records(*folders), 0
    for complaint in records.complaints:
        say(complaint)
    for record in records.values():
        wanted = record.signature in planned if record.is_study else record.finished and _is_evidence(record)
        if not record.finished or not wanted:
            continue
        target = published / f"{record.signature}.json"
        if not target.exists():
            if reason := _unfit(record):
                say(f"{record.path} is left out: {reason}.")
                continue
            commit = _commit(record, commit_of)
            if commit is None:
                say(f"{record.path} is left out: its code is not that of a commit of this repository.")
                continue
            if not record.is_study:
                beside = target.with_name(f"{record.signature}.predictions.json")
                write_atomically(beside, record.predictions_path.read_bytes())
            if record.where.get("commit") == commit:
                write_atomically(target, record.path.read_bytes())
            else:
                where = record.where | {"commit": commit, "dirty": False}
                replace(record, path=target, where=where).write()
        count += 1
    return count


def _unfit(record: Record) -> str:
    """Why a finished record is not to be published or taken over, whatever its code; empty if nothing is wrong."""
    if signature(record.asked) != record.signature:
        return "its signature is not that of its question"
    if not record.is_study and record.evaluation is None:
        return record.damage.partition(": ")[0] or "its predictions are not there"
    return ""


def _commit(record: Record, commit_of: Callable[[str, str | None], str | None]) -> str | None:
    """The commit whose code a record was made with; None where it was made with other code."""
    where = record.where
    commit, sources, dirty = where.get("commit"), where.get("sources"), where.get("dirty")
    if sources is None:  # a record from before there was a hash of the sources
        return commit if dirty is False else None
    if commit is not None and dirty is not False:
        return None
    return commit_of(sources, commit)


def mixed_machines(experiments: Iterable[Experiment], records: Mapping[str, Record]) -> list[str]:
    """A sentence for each task of an experiment whose runs, which are paired, come from several kinds of machines."""
    found = []
    for experiment in experiments:
        kinds: dict[str, set[str]] = {}
        for run in training_runs([experiment]):
            if record := records.get(run.signature):
                column = [run.asked[axis] for axis in ("model", "dataset")]
                kinds.setdefault(canonical(column), set()).add(kind_of_machine(record.where))
        found += [
            f"{experiment.name}: runs of one task come from {' and '.join(sorted(several))}: run the task's pairs "
            "on one kind of machine."
            for several in kinds.values()
            if len(several) > 1
        ]
    return found


def restore(published: Path, runs: Path, say: Callable[[str], None] = console.print) -> int:
    """Copy published records and predictions back to where runs look for them, so that a sweep fills only the gaps.

    A folder with a finished record stays as it is, and so does one that a process works on.

    Args:
        published: the folder to copy from.
        runs: of runs, one folder for each signature.
        say: prints a sentence for what is left out.

    Returns:
        How many were copied.

    Raises:
        FileNotFoundError: `published` is no folder.
        StorageError: a file cannot be written.
    """
    if not published.is_dir():
        raise FileNotFoundError(f"{published} is no folder of records.")
    records, count = read_records(published), 0
    for file, reason in records.damaged.items():
        say(f"{file} is left out: it is not a whole record ({reason}).")
    for record in records.values():
        if reason := _unfit(record) if record.finished else f"it is {record.status}":
            say(f"{record.path} is left out: {reason}.")
            continue
        folder = RunFolder(runs / record.signature)
        if _has_finished(folder):
            continue
        try:
            with Claim(folder.path):
                if _has_finished(folder):  # by another process, since the look above
                    continue
                if not record.is_study:
                    write_atomically(folder.predictions, record.predictions_path.read_bytes())
                write_atomically(folder.record, record.path.read_bytes())
                folder.checkpoint.unlink(missing_ok=True)
        except Claimed as elsewhere:
            say(f"left alone: {elsewhere}")
            continue
        count += 1
    return count


def _has_finished(folder: RunFolder) -> bool:
    try:
        record = read_record(folder.record)
    except RecordError:
        return False
    return record is not None and record.finished


def _is_evidence(run: Record) -> bool:
    """Random models, and runs that have not seen every training example once, prove nothing."""
    whole = run.asked["trainer"].get("max_steps") is None or run.happened["history"][-1]["epoch"] >= 1
    return whole and not run.asked["model"]["name"].startswith("tiny_")
