"""What is made of records: the report, and the published results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surm.config.compose import composer
from surm.experiments.cli import console
from surm.experiments.plan import (
    Experiment,
    Planned,
    Scale,
    find_experiment,
    load_scale,
    load_scale_experiments,
    scales,
)
from surm.experiments.promote import mixed_machines, promote
from surm.methods.names import data_name
from surm.records.record import read_records
from surm.records.storage import check_output
from surm.report import page as reporting
from surm.report import primary
from surm.report.plan import ComparisonPlan, GridPlan, Plan, StudyPlan
from surm.shared.paths import PUBLISHED, REPOSITORY, RESULTS
from surm.studies.entry import compose_study


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
    check_output(output)
    variables = [f"SCALE={scale.name}"] if scale.name != "laptop" and scale.name in scales() else []
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
        console.print(f"\n{plan.title}\n")
        stored = (
            path for folder in folders for name in plan.signatures for path in (folder / name, folder / f"{name}.json")
        )
        if any(path.exists() for path in stored):  # of a run, or as published
            print((page.parent / "tables" / f"{plan.name}.md").read_text())
        else:
            print("No record of this machine; the page shows what is published.\n")
    html = page.with_suffix(".html")
    console.print(f"Report: {html}, {page}; tables: {page.parent / 'tables'}; figures: {page.parent / 'figures'}")
    if main := (page.parent / primary.FILE.with_suffix(".md")).read_text():
        console.print("\nThe primary claims\n")
        print(main)
    return html


def report_studies(parts: Sequence[Planned]) -> None:
    """The report of each study that some parts belong to."""
    studies: dict[str, list[Planned]] = {}
    for part in parts:
        studies.setdefault(part.table.name or part.study, []).append(part)
    for name, own in studies.items():
        table = own[0].table
        if table.name is None:  # not asked for by an experiment file: the study's own title and claims
            with composer():
                table = compose_study([f"experiment={find_experiment(name, 'full')}"]).table
        report([Experiment(name, table.title, table.claims, own)], Scale(name, []), Path(own[0].output_dir))


def report_plan(experiment: Experiment) -> Plan:
    """What the report is told of an experiment."""
    signatures, first = [run.signature for run in experiment.runs], experiment.runs[0]
    name, title, claims = experiment.name, experiment.title, experiment.claims
    if first.study:
        return StudyPlan(name, title, signatures, claims, study=first.study)
    asked = {run.signature: run.asked for run in experiment.runs}
    if len({_column(question) for question in asked.values()}) == 1 and not experiment.published:
        return ComparisonPlan(name, title, signatures, claims, asked=asked)
    return GridPlan(name, title, signatures, claims, asked=asked, published=experiment.published)


def _column(question: dict[str, Any]) -> tuple[Any, ...]:
    """What the scores of one column of a table have in common."""
    model, dataset = question["model"], question["dataset"]
    return model["name"], model.get("image_size"), data_name(dataset), dataset.get("fraction")


def publish(folders: Sequence[Path] = ()) -> None:
    """Promote records to `results/runs` and rebuild the committed tables and figures from what is there.

    Args:
        folders: hold the records, such as those brought from another machine; by default outputs/runs.

    Raises:
        FileNotFoundError: one of them is no folder.
    """
    if lacking := [str(folder) for folder in folders if not folder.is_dir()]:
        raise FileNotFoundError(f"{', '.join(lacking)} is no folder of records: give folders like outputs/runs.")
    published = load_scale_experiments(load_scale("published"))
    planned = {run.signature for experiment in published for run in experiment.runs}
    promoted = promote(folders or [Path("outputs/runs")], PUBLISHED, planned)
    plans = [report_plan(experiment) for experiment in published]
    reporting.publish(plans, PUBLISHED, RESULTS, name="published")
    console.print(f"{promoted} finished records of a clean tree are in {PUBLISHED.relative_to(REPOSITORY)}.")
    for line in mixed_machines(published, read_records(PUBLISHED)):
        console.print(line)
