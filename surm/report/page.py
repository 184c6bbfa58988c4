"""The page: what the paper says, what is published here and what this run found, then tables and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from surm.report import figures, tables
from surm.report.experiments import Experiment, ExperimentPlan, gather
from surm.report.records import read_records
from surm.report.verdicts import Claim, describe, judge, read_claims

HEADER = ["", "paper", "published here", "verdict", "this run", "verdict"]


def build(
    experiments: Sequence[ExperimentPlan],
    published: Path = Path("results/runs"),
    runs: Path = Path("outputs/runs"),
    output: Path = Path("outputs"),
    *,
    label: str,
    name: str = "all",
    paper: Path = Path("results/paper"),
) -> Path:
    """Write tables, figures and `report.md` of this machine's runs below `output`; return the page's path.

    The page opens with the paper's sentences, the numbers published here and this run's, side by side, with a verdict
    on each of the latter two. Seeds beyond the planned ones count wherever every other setting is equal.

    Args:
        experiments: what was planned.
        published, runs: folders of committed records and of this machine's.
        output: receives `tables/`, `figures/` and `report.md`.
        label: printed with the numbers; one that ends in "not evidence" forbids verdicts.
        name: of the figure that has a panel for each experiment, `figures/<name>_accuracy_over_parameters.png`.
        paper: folder of the paper's claims.
    """
    ours, theirs = read_records(runs), read_records(published)
    here = [gather(plan, ours, known=theirs, label=label) for plan in experiments]
    there = [gather(plan, theirs, known=ours, label=label) for plan in experiments]
    _write_tables_and_figures(here, output, name)

    claims = read_claims(paper)
    rows = [row for pair in zip(there, here, strict=True) for row in _comparison(*pair, claims)]
    return _write_page(output, label, HEADER, rows, here)


def publish(
    experiments: Sequence[ExperimentPlan],
    records: Path = Path("results/runs"),
    output: Path = Path("results"),
    *,
    label: str = "",
    name: str = "all",
    paper: Path = Path("results/paper"),
) -> Path:
    """Write the same tables, figures and page below `output`, from committed records alone; return the page's path."""
    stored = read_records(records)
    there = [gather(plan, stored, known={}, label=label) for plan in experiments]
    _write_tables_and_figures(there, output, name)
    claims = read_claims(paper)
    rows = [row[:4] for experiment in there for row in _comparison(experiment, experiment, claims)]
    return _write_page(output, label, HEADER[:4], rows, there)


def _write_page(
    output: Path, label: str, header: list[str], rows: list[list[str]], experiments: Sequence[Experiment]
) -> Path:
    opening = ["# Report\n", f"**{label}**\n"] if label else ["# Report\n"]
    page = output / "report.md"
    page.write_text("\n".join([*opening, tables.markdown(header, rows), *map(_section, experiments)]), encoding="utf-8")
    return page


def _write_tables_and_figures(experiments: Sequence[Experiment], output: Path, name: str) -> None:
    for experiment in experiments:
        tables.write(experiment, output / "tables")
        figures.accuracy_over_parameters(
            [experiment], figures.figure_path(output, experiment.plan.name, "accuracy_over_parameters")
        )
        figures.learning_curves(experiment, figures.figure_path(output, experiment.plan.name, "learning_curves"))
    figures.accuracy_over_parameters(experiments, figures.figure_path(output, name, "accuracy_over_parameters"))


def _comparison(published: Experiment, run: Experiment, claims: Mapping[str, Claim]) -> list[list[str]]:
    """Rows of the opening table for one experiment: its claims, then every method's score."""
    rows = [[f"**{run.plan.title}**", *[""] * 5]]
    for name in run.plan.claims:
        claim = claims[name]
        verdicts = [judge(claim, experiment) for experiment in (published, run)]
        cells = [cell for verdict in verdicts for cell in (verdict.found, str(verdict))]
        rows.append([describe(claim), f"{claim.sentence} ({claim.place})", *cells])
    methods = dict.fromkeys(method.name for experiment in (run, published) for method in experiment.methods)
    scores = [[name, "not in the paper", _score(published, name), "", _score(run, name), ""] for name in methods]
    return rows + scores


def _score(experiment: Experiment, name: str) -> str:
    method = experiment.method(name)
    if method is None:
        return "no finished run"
    mean = method.mean
    interval = f"[{mean.low:.2f}, {mean.high:.2f}]" if mean.low is not None else f"({mean.reason})"
    return f"{mean.value:.2f} % {interval}, {mean.seeds} seeds"


def _section(experiment: Experiment) -> str:
    name = experiment.plan.name
    pictures = [f"![{kind.replace('_', ' ')}](figures/{name}_{kind}.png)\n" for kind in figures.KINDS]
    return "\n".join([f"## {experiment.plan.title}\n", tables.to_markdown(experiment), *pictures])
