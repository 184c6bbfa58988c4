"""What is made of records: the report, the published results, the copies at W&B."""

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surm.config.command import entry_of
from surm.config.compose import TRAIN
from surm.config.compose import groups as config_groups
from surm.experiments import upload
from surm.experiments.cli import chosen_experiments, console
from surm.experiments.plan import Experiment, PlannedPart, Scale, load_scale, load_scale_experiments
from surm.records.storage import write_atomically
from surm.records.stored import Record as StoredRecord
from surm.records.stored import read_records
from surm.report import page as reporting
from surm.report.plan import ComparisonPlan, GridPlan, Plan, StudyPlan
from surm.shared.paths import CONFIG_DIRECTORY, PUBLISHED, REPOSITORY, RESULTS


def report(
    experiments: Sequence[Experiment],
    scale: Scale,
    output: Path = Path("outputs"),
    *,
    records: Sequence[Path] = (),
    options: str = "",
) -> Path:
    """Write the tables, figures and pages, print the tables that have records, and where they are.

    Returns:
        The path of the HTML page.

    Args:
        experiments: what was planned.
        scale: what is printed with the numbers, whether they are evidence, and the name of the figure of all.
        output: receives everything.
        records: folders to read in place of `output/runs`, and what lies outside the experiments, too.
        options: variables of `make reproduce` beside SCALE, which the page prints where a run is missing.

    Raises:
        FileNotFoundError: one of `records` is no folder.
    """
    if lacking := [str(folder) for folder in records if not folder.is_dir()]:
        raise FileNotFoundError(f"{', '.join(lacking)} is no folder of records: give folders like outputs/runs.")
    chosen = scale.name != "laptop" and (CONFIG_DIRECTORY / f"scale/{scale.name}.yaml").exists()
    variables = [f"SCALE={scale.name}"] if chosen else []
    plans = [report_plan(experiment) for experiment in experiments]
    page = reporting.build(
        plans,
        PUBLISHED,
        records or output / "runs",
        output,
        label=scale.label,
        evidence=scale.evidence,
        name=scale.name,
        options=" ".join([*variables, *filter(None, [options])]),
        further=bool(records),
    )
    folders = records or [output / "runs"]
    for plan in plans:
        console.print(f"\n[bold]{plan.title}[/bold]\n")
        stored = (
            path for folder in folders for name in plan.signatures for path in (folder / name, folder / f"{name}.json")
        )
        if any(path.exists() for path in stored):  # of a run, or as published
            print((page.parent / "tables" / f"{plan.name}.md").read_text())
        else:
            print("No record of this machine; the page shows what is published.\n")
    html = page.with_suffix(".html")
    console.print(f"Report: {html}, {page}; tables: {page.parent / 'tables'}; figures: {page.parent / 'figures'}")
    return html


def report_plan(experiment: Experiment) -> Plan:
    """What the report is told of an experiment."""
    signatures, first = [run.signature for run in experiment.runs], experiment.runs[0]
    name, title, claims = experiment.name, experiment.title, experiment.claims
    if isinstance(first, PlannedPart):
        return StudyPlan(name, title, signatures, claims, study=first.task.config.study.name)
    asked = {run.signature: run.asked for run in experiment.runs}
    if len({_column(question) for question in asked.values()}) == 1:
        return ComparisonPlan(name, title, signatures, claims)
    return GridPlan(name, title, signatures, claims, asked=asked, published=experiment.published)


def _column(question: dict[str, Any]) -> tuple[str, str, float | None]:
    """What the scores of one column of a table have in common."""
    return question["model"]["name"], question["dataset"]["name"], question["dataset"].get("fraction")


def publish() -> None:
    """Promote records to `results/runs` and rebuild the committed tables and figures from what is there."""
    published = load_scale_experiments(load_scale("published"))
    planned = {run.signature for experiment in published for run in experiment.runs}
    promoted = promote(Path("outputs/runs"), PUBLISHED, planned)
    plans = [report_plan(experiment) for experiment in published]
    reporting.publish(plans, PUBLISHED, RESULTS, name="published")
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
    options, arguments.set = upload.tracking_options(arguments.set)
    chosen = chosen_experiments(arguments)
    planned = {run.signature for experiment in chosen for run in experiment.runs}
    finished = [
        vars(record)
        for record in read_records(*arguments.records).values()
        if record.finished and not record.is_study and (not arguments.only or record.signature in planned)
    ]
    directory = Path("outputs/wandb")
    left = upload.pending(finished, options["mode"], directory)
    uploaded = upload.sync(left, options, groups=_experiments_of(left, chosen), directory=directory)
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
