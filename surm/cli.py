"""What the scripts share: errors as one sentence, progress bars, and the commands behind `make`."""

import argparse
import errno
import statistics
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from surm import report as reporting
from surm import signature as identity
from surm import tracking
from surm.checkpoint import check_checkpoint
from surm.claim import Claimed, in_words
from surm.compose import TRAIN, Scale, compose_study, composer, entry_of, load_scale
from surm.compose import groups as config_groups
from surm.config import ApproximateConfig, ConfigError, RunConfig, ignored_line
from surm.forecast import Forecast, forecast, total
from surm.interrupt import Interrupted
from surm.plan import Experiment, Planned, PlannedPart, PlannedRun, load_scale_experiments, plan_study
from surm.processes import is_main, lone_launch
from surm.rates import default_rate
from surm.record import PUBLISHED, REPOSITORY, Record, RecordError, StorageError, write_atomically
from surm.report.records import Record as StoredRecord
from surm.report.records import label, read_records
from surm.run import run
from surm.study import run_part
from surm.sweep import Sweep
from surm.tracking import TrackingError
from surm.train import RunError

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO, errno.ENOTDIR)

console = Console(soft_wrap=True, highlight=False, quiet=not is_main())
# PEFT asks transformers for a property under its old name; nobody here can act on the warning.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


@contextmanager
def command() -> Iterator[None]:
    """Show an expected error as one sentence with a non-zero exit code; anything else is a bug and keeps its trace."""
    try:
        yield
    except (ConfigError, RecordError, RunError, StorageError, TrackingError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}" if is_main() else 1)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        sys.exit(
            f"Error: {error.filename or 'a file'} cannot be used ({error.strerror}): see that there is room and access."
        )
    except Interrupted as stop:
        if is_main():
            print(f"Interrupted: {stop}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)


def experiment_parser(description: str | None, *, seeds: bool = True) -> argparse.ArgumentParser:
    """The options that choose experiments and settings, for `chosen_experiments`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", default="laptop", help="a file of conf/scale")
    if seeds:
        parser.add_argument("--seeds", type=int, help="number of seeds in place of the experiment's own")
    parser.add_argument("--only", metavar="EXPERIMENT", help="one experiment of conf/experiment")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for every run")
    return parser


def chosen_experiments(arguments: argparse.Namespace, *, seeds: int | None = None) -> list[Experiment]:
    """The experiments that the options of `experiment_parser` choose."""
    seeds = seeds or arguments.seeds
    scale = load_scale(arguments.scale)
    return load_scale_experiments(scale, seeds=seeds, only=arguments.only, overrides=arguments.set)


def make_options(arguments: argparse.Namespace) -> str:
    """The same choice as variables of `make`, beside SCALE and ONLY."""
    options = [f"SEEDS={arguments.seeds}"] if arguments.seeds else []
    return " ".join([*options, *([f"SET='{' '.join(arguments.set)}'"] if arguments.set else [])])


# --- running --------------------------------------------------------------------------------------------------------


def run_with_bar(config: RunConfig) -> Record:
    """One run with a bar of its own; prints the result."""
    with command(), _bars() as bars:
        if lone_launch():
            console.print("accelerate started one process: without GPUs, add --multi_gpu to have as many as asked for.")
        return _run(config, bars)


def run_study(config: ApproximateConfig) -> None:
    """All parts of one study, then its table, figures and verdicts."""
    with command():
        name, table = config.table.name, config.table
        if name is None:  # not asked for by an experiment file: the study's own title and claims
            name = config.study.name
            with composer():
                table = compose_study([f"experiment=full_{name}"]).table
        parts = plan_study(config, name)
        experiment = Experiment(name, table.title, table.claims, parts)
        failures = run_all(parts)
        report([experiment], "", experiment.name, Path(config.output_dir))
    if failures:
        sys.exit(1)


def run_member(config: RunConfig) -> None:
    """One run as a job of a Hydra sweep: what is expected to go wrong is one sentence and stops no other job.

    The record, or its absence, tells whoever started the sweep.

    Raises:
        Interrupted: the sweep was asked to stop.
    """
    with _bars() as bars:
        _attempt(PlannedRun(config.table.name or "", config), bars)


def run_all(runs: Sequence[Planned]) -> int:
    """Run what is missing, one bar over all; a failed run does not stop the others.

    Other processes may share the work: what they have claimed is waited for.

    Returns:
        The number of runs that are not finished.
    """
    sweep = Sweep(runs)
    with _bars() as bars:
        overall = bars.add_task(f"{len(sweep.runs)} runs", total=len(sweep.runs))
        for planned in sweep.runs:
            if sweep.status(planned) == "finished":
                _print_done(planned, bars.console.print)

        def launch() -> None:
            for planned in sweep.open():
                if sweep.is_open(planned):
                    _attempt(planned, bars, overall, len(sweep.runs) - len(sweep.unfinished()))

        left = sweep.finish(launch, bars.console.print)
    if left:
        console.print(f"{left} of {len(sweep.runs)} runs are not finished; the table names them.")
    return left


def run_or_none(planned: PlannedRun) -> Record | None:
    """One run of a search; None when it failed."""
    with _bars() as bars:
        record = planned.record()
        return record if record and record["status"] == "finished" else _attempt(planned, bars)


def _attempt(planned: Planned, bars: Progress, overall: Any = None, number: int = 0) -> Record | None:
    try:
        if isinstance(planned, PlannedPart):
            return _run_part(planned, bars)
        assert isinstance(planned, PlannedRun)
        return _run(planned.config, bars, overall, number)
    except Claimed as elsewhere:
        bars.console.print(f"  left alone: {elsewhere}")
    except (RunError, RecordError, StorageError) as failure:
        bars.console.print(f"  failed: {failure}")
    return None


def _run_part(planned: PlannedPart, bars: Progress) -> Record:
    say = bars.console.print
    say(f"{describe(planned.asked)}  [dim]{planned.signature}[/dim]")
    task = bars.add_task("computing", total=None)
    try:
        record = run_part(planned.asked, planned.output_dir, lambda line: bars.update(task, description=line))
    finally:
        bars.remove_task(task)
    say(f"  {record['happened']['seconds']:.0f} s  {planned.record_path}")
    return record


def _run(config: RunConfig, bars: Progress, overall: Any = None, number: int = 0) -> Record:
    say = bars.console.print
    question = identity.asked(config)
    say(f"{describe(question)}  [dim]{identity.signature(question)}[/dim]")
    for line in (ignored_line(config), _rate_line(config)):
        if line:
            say(f"  {line}")
    task = bars.add_task("loading", total=None)

    def advance(step: int, steps: int, values: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        bars.update(task, completed=step, total=steps, description=shown)
        if overall is not None:
            bars.update(overall, completed=number + step / steps)

    try:
        record = run(config, report=advance, say=say)
    finally:
        bars.remove_task(task)
    _print_result(record, Path(config.output_dir) / "runs" / record["signature"] / "record.json", say)
    return record


def _rate_line(config: RunConfig) -> str | None:
    if config.optim.lr:
        return None
    rate, source = default_rate(config)
    return f"learning rate {rate:g}: {source}"


def describe(question: dict[str, Any]) -> str:
    """One line that names a run, or a part of a study."""
    if "study" in question:
        return f"[bold]{question['study']['name']}[/bold] {part_label(question)}"
    rate, seed = question["optim"]["lr"], question["seed"]
    return f"[bold]{label(question)}[/bold] on {_place(question)}, rate {rate:g}, seed {seed}"


def _place(question: dict[str, Any]) -> str:
    """Model and data of a run."""
    data = question["dataset"]
    share = f", {100 * data['fraction']:g} %" if "fraction" in data else ""
    split = "" if data["evaluate_on"] == "test" else " (selection)"
    return f"{question['model']['name']} x {data['name']}{share}{split}"


def part_label(question: dict[str, Any]) -> str:
    """What tells a part of a study from the others: its words, and its draw or seeds."""
    settings = {key: value for key, value in question["study"].items() if key != "name"}
    return ", ".join(
        f"{key} {value}" for key, value in settings.items() if isinstance(value, str) or key in ("draw", "seeds")
    )


def _print_done(planned: Planned, say: Any) -> None:
    if isinstance(planned, PlannedPart):
        say(f"  done before: {describe(planned.asked)}  {planned.record_path}")
    else:
        _print_result(planned.record() or {}, planned.record_path, say, "done before: ")


def _print_result(record: Record, path: Path, say: Any, prefix: str = "") -> None:
    happened = record["happened"]
    metric = happened["primary_metric"]
    say(
        f"  {prefix}[bold]{metric} {happened['metrics'][metric]:.4f}[/bold] (n = {happened['evaluation_examples']})  "
        f"trainable {happened['trainable_parameters']:,} + head {happened['head_parameters']:,}  "
        f"{path}"
    )
    others = [f"{name} {value:.4f}" for name, value in happened["metrics"].items() if name != metric]
    if others:
        say(f"  beside it: {', '.join(others)}")
    if happened["baselines"]:
        baselines = ", ".join(f"{name} {value:.4f}" for name, value in happened["baselines"].items())
        say(f"  without a model: {baselines}")


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


# --- plans, reports, records ----------------------------------------------------------------------------------------


def print_plan(experiments: Sequence[Experiment]) -> None:
    """The runs, which of them are done, what they train, and what the rest costs and downloads.

    Time is that of equal or similar runs in the records; for the paper's own data, hours of one GPU by `surm.cost`.
    """
    known = {**read_records(PUBLISHED), **read_records(Path("outputs/runs"))}
    by_question: dict[str, list[float]] = {}
    for record in known.values():
        if record.finished:
            by_question.setdefault(_cost_key(record.asked), []).append(record.happened["seconds"])
    left: dict[str, float | Forecast | None] = {}
    for experiment in experiments:
        header = ("signature", "method", "on", "rate", "seed", "status", "parameters", "head", "about")
        rows, costs = [], []
        for planned in experiment.runs:
            measured = by_question.get(_cost_key(planned.asked))
            expected = forecast(planned) if isinstance(planned, PlannedRun) else None
            cost = statistics.mean(measured) if measured and expected is None else expected
            costs.append(cost)
            status = planned.status()
            if status != "finished":
                left[planned.signature] = cost
            counts = (f"{expected.trainable:,}", f"{expected.head:,}") if expected else ("", "")
            rows.append((planned.signature, *_plan_cells(planned.asked), status, *counts, _in_words(cost)))
        print(f"\n{experiment.title} ({experiment.name}): {len(experiment.runs):,} runs{_total(costs)}\n")
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        for row in (header, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nLeft: {len(left):,} different runs{_total(left.values())}.")
    _, downloads = total(cost for cost in left.values() if isinstance(cost, Forecast))
    for needed in downloads:
        print(f"  to download: {needed}")


def _in_words(cost: float | Forecast | None) -> str:
    if cost is None:
        return "not known"
    return f"{cost.gpu_hours:.3g} GPU-hours" if isinstance(cost, Forecast) else f"{cost:.0f} s"


def _total(costs: Iterable[float | Forecast | None]) -> str:
    known = list(costs)
    hours, _ = total(cost for cost in known if isinstance(cost, Forecast))
    seconds = sum(cost for cost in known if isinstance(cost, float))
    unknown = sum(cost is None for cost in known)
    parts = [f"about {hours:,.1f} GPU-hours"] if hours else []
    parts += [f"about {timedelta(seconds=round(seconds))} here"] if seconds else []
    parts += [f"{unknown} of unknown time"] if unknown else []
    return "".join(f", {part}" for part in parts)


def _plan_cells(question: dict[str, Any]) -> tuple[str, str, str, str]:
    """Method, data, rate and seed of a run; a part of a study has a name alone."""
    if "study" in question:
        return part_label(question), "", "", ""
    return label(question), _place(question), f"{question['optim']['lr']:g}", str(question["seed"])


def _cost_key(question: dict[str, Any]) -> str:
    """Runs that cost the same: model, data, method and length, whatever the rate and the seed."""
    if "study" in question:
        return str({key: value for key, value in question["study"].items() if key != "draw"})
    return str((question["model"], question["dataset"], label(question), question["trainer"]))


def report(
    experiments: Sequence[Experiment],
    note: str,
    name: str,
    output: Path = Path("outputs"),
    *,
    records: Sequence[Path] = (),
    options: str = "",
) -> Path:
    """Write the tables, figures and pages, print the tables and where they are; return the path of the HTML page.

    Args:
        experiments: what was planned.
        note: printed with the numbers; one that ends in "not evidence" forbids verdicts.
        name: of the scale, or of the experiment.
        output: receives everything.
        records: folders to read in place of `output/runs`, and what lies outside the experiments, too.
        options: variables of `make reproduce` beside SCALE, which the page prints where a run is missing.

    Raises:
        FileNotFoundError: one of `records` is no folder.
    """
    if lacking := [str(folder) for folder in records if not folder.is_dir()]:
        raise FileNotFoundError(f"{', '.join(lacking)} is no folder of records: give folders like outputs/runs.")
    scale = [f"SCALE={name}"] if name != "laptop" and (REPOSITORY / f"conf/scale/{name}.yaml").exists() else []
    plans = [experiment.for_report(note) for experiment in experiments]
    page = reporting.build(
        plans,
        PUBLISHED,
        records or output / "runs",
        output,
        label=note,
        name=name,
        paper=REPOSITORY / "results/paper",
        options=" ".join([*scale, *filter(None, [options])]),
        further=bool(records),
    )
    for plan in plans:
        console.print(f"\n[bold]{plan.title}[/bold]\n")
        print((page.parent / "tables" / f"{plan.name}.md").read_text())
    html = page.with_suffix(".html")
    console.print(f"Report: {html}, {page}; tables: {page.parent / 'tables'}; figures: {page.parent / 'figures'}")
    return html


def status(experiments: Sequence[Experiment]) -> None:
    """Count runs by state; list those not finished with who works on them, why they failed, what is damaged."""
    for experiment in experiments:
        counts: dict[str, list[Planned]] = {}
        for planned in experiment.runs:
            counts.setdefault(planned.status(), []).append(planned)
        console.print(f"{experiment.name}: " + ", ".join(f"{len(runs)} {status}" for status, runs in counts.items()))
        for state, runs in counts.items():
            for planned in runs if state != "finished" else []:
                console.print(f"  {state:12} {planned.signature}  {describe(planned.asked)}{_remark(planned)}")


def _remark(planned: Planned) -> str:
    """Who works on a run, why it failed, or which of its files is damaged."""
    holder = planned.holder()
    if holder:
        return f"  ({in_words(holder)}, last sign of life {holder['silent']:.0f} s ago)"
    try:
        record = planned.record()
        check_checkpoint(planned.record_path.with_name("checkpoint.safetensors"))
    except RecordError as damage:
        return f"  ({damage})"
    error = record["happened"].get("error") if record else None
    return f"  ({error})" if error else ""


def publish() -> None:
    """Promote records to `results/runs` and rebuild the committed tables and figures from what is there."""
    published = load_scale_experiments(load_scale("published"))
    planned = {run.signature for experiment in published for run in experiment.runs}
    promoted = promote(Path("outputs/runs"), PUBLISHED, planned)
    results = REPOSITORY / "results"
    plans = [experiment.for_report() for experiment in published]
    reporting.publish(plans, PUBLISHED, results, name="published", paper=results / "paper")
    console.print(f"{promoted} finished records of a clean tree are in {PUBLISHED.relative_to(REPOSITORY)}.")


def promote(runs: Path, published: Path, planned: Collection[str] = ()) -> int:
    """Copy the records and predictions of finished runs of a clean tree, and the planned parts of studies.

    Returns:
        How many were copied.
    """
    chosen = [
        record
        for record in read_records(runs).values()
        if record.finished
        and record.where["dirty"] is False
        and (record.signature in planned if record.is_study else _is_evidence(record))
    ]
    for record in chosen:
        write_atomically(published / f"{record.signature}.json", record.path.read_bytes())
        if not record.is_study:
            predictions = record.path.with_name("predictions.json")
            write_atomically(published / f"{record.signature}.predictions.json", predictions.read_bytes())
    return len(chosen)


def _is_evidence(run: StoredRecord) -> bool:
    """Random models, and runs that have not seen every training example once, prove nothing."""
    whole = run.asked["trainer"]["max_steps"] is None or run.happened["history"][-1]["epoch"] >= 1
    return whole and not run.asked["model"]["name"].startswith("tiny_")


def wandb_sync(arguments: argparse.Namespace) -> None:
    """Upload the finished runs that W&B has not seen; `--only` those of one experiment."""
    options, arguments.set = tracking.tracking_options(arguments.set)
    chosen = chosen_experiments(arguments)
    planned = {run.signature for experiment in chosen for run in experiment.runs}
    finished = [
        vars(record)
        for record in read_records(*arguments.records).values()
        if record.finished and not record.is_study and (not arguments.only or record.signature in planned)
    ]
    directory = Path("outputs/wandb")
    left = tracking.pending(finished, options["mode"], directory)
    uploaded = tracking.sync(left, options, groups=_experiments_of(left, chosen), directory=directory)
    console.print(f"{len(uploaded)} of {len(finished)} finished runs were uploaded now.")


def _experiments_of(records: Iterable[Mapping[str, Any]], chosen: Iterable[Experiment]) -> dict[str, list[str]]:
    """Signature -> experiments that plan the run: the chosen ones first, then others until each has one.

    Nothing but a search plans the runs on the selection slice.
    """
    found: dict[str, list[str]] = {}
    reported = {record["signature"] for record in records if record["asked"]["dataset"]["evaluate_on"] == "test"}

    def note(experiment: Experiment) -> None:
        for planned in experiment.runs:
            found.setdefault(planned.signature, []).append(experiment.name)

    for experiment in chosen:
        note(experiment)
    for name in dict.fromkeys([*load_scale("published").experiments, *config_groups()["experiment"]]):
        if not reported <= found.keys() and entry_of(name) is TRAIN:
            note(load_scale_experiments(Scale(name, [name]))[0])
    return found
