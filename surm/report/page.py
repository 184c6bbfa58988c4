"""The page: what the paper says, what is published here and what this run found, then tables and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from surm.methods.names import label as method_label
from surm.records.record import Record, read_records
from surm.report import figures, html, tables
from surm.report.base import Section
from surm.report.experiments import Plan
from surm.report.further import further_plans
from surm.report.html import Source
from surm.report.sections import Comparison, make_section
from surm.report.studies import StudyPlan
from surm.report.verdicts import Claim, describe, read_claims
from surm.shared.paths import PAPER

HEADER = ["", "paper", "published here", "verdict", "this run", "verdict"]


def build(
    plans: Sequence[Plan],
    published: Path = Path("results/runs"),
    runs: Path | Sequence[Path] = Path("outputs/runs"),
    output: Path = Path("outputs"),
    *,
    label: str,
    name: str = "all",
    paper: Path = PAPER,
    options: str = "",
    further: bool = False,
) -> Path:
    """Write tables, figures, `report.md` and `report.html` of this machine's runs below `output`; return the former.

    A page opens with the paper's sentences, the numbers published here and this run's, side by side, with a verdict
    on each of the latter two. Seeds beyond the planned ones count wherever every other setting is equal.

    Args:
        plans: what was planned.
        published: folder of committed records.
        runs: folder of this machine's records, or several.
        output: receives `tables/`, `figures/`, `report.md` and `report.html`.
        label: printed with the numbers; one that ends in "not evidence" forbids verdicts.
        name: of the figure that has a panel for each experiment, `figures/<name>_accuracy_over_parameters.png`.
        paper: folder of the paper's claims.
        options: of `make reproduce`, which the page prints where a run is missing.
        further: add a section for the runs and studies that no plan asks for.
    """
    folders = [runs] if isinstance(runs, Path) else runs
    ours, theirs = read_records(*folders, name=method_label), read_records(published, name=method_label)
    plans = [*plans, *further_plans(plans, ours)] if further else plans
    here = [make_section(plan, ours, known=theirs, label=label, paper=paper) for plan in plans]
    there = [make_section(_as_published(plan, theirs), theirs, known=ours, label=label, paper=paper) for plan in plans]
    claims = read_claims(paper)
    _write_tables_and_figures(here, output, name, claims)
    damaged = [*theirs.complaints, *ours.complaints]
    sources = [Source("published", "published here", [published], there), Source("run", "this run", folders, here)]
    html.write(output / "report.html", sources, claims, label=label, damaged=damaged, options=options)
    rows = [row for pair in zip(there, here, strict=True) for row in _comparison(*pair, claims)]
    return _write_page(output, label, HEADER, rows, here, damaged)


def _as_published(plan: Plan, published: Mapping[str, Record]) -> Plan:
    """The plan for the published column: of a study, whatever is published, which may be more draws than planned."""
    if not isinstance(plan, StudyPlan):
        return plan
    parts = [record for record in published.values() if record.is_study]
    whole = sorted(record.signature for record in parts if record.asked["study"]["name"] == plan.study)
    return replace(plan, signatures=whole)


def publish(
    plans: Sequence[Plan],
    records: Path = Path("results/runs"),
    output: Path = Path("results"),
    *,
    label: str = "",
    name: str = "all",
    paper: Path = PAPER,
    draw: bool = True,
) -> Path:
    """Write the same below `output`, from committed records alone; return the page's path. draw: the figures, too."""
    stored = read_records(records, name=method_label)
    there = [make_section(plan, stored, known={}, label=label, paper=paper) for plan in plans]
    claims = read_claims(paper)
    _write_tables_and_figures(there, output, name, claims, draw=draw)
    rows = [row[:4] for section in there for row in _comparison(section, section, claims)]
    return _write_page(output, label, HEADER[:4], rows, there, stored.complaints)


def _write_page(
    output: Path,
    label: str,
    header: list[str],
    rows: list[list[str]],
    sections: Sequence[Section],
    damaged: Sequence[str],
) -> Path:
    opening = ["# Report\n", f"**{label}**\n"] if label else ["# Report\n"]
    opening += ["\n".join(f"* {line}" for line in damaged) + "\n"] if damaged else []
    texts = [section.markdown() for section in sections]
    page = output / "report.md"
    page.write_text("\n".join([*opening, tables.markdown(header, rows), *texts]), encoding="utf-8")
    return page


def _write_tables_and_figures(
    sections: Sequence[Section], output: Path, name: str, claims: Mapping[str, Claim], *, draw: bool = True
) -> None:
    for section in sections:
        section.write_table(output, claims)
    if not draw:
        return
    for section in sections:
        section.draw(output)
    compared = [section.experiment for section in sections if isinstance(section, Comparison)]
    if compared:
        figures.accuracy_over_parameters(compared, figures.figure_path(output, name, "accuracy_over_parameters"))


def _comparison(published: Section, run: Section, claims: Mapping[str, Claim]) -> list[list[str]]:
    """Rows of the opening table for one section: its claims, then every method's score."""
    rows = [[f"**{run.plan.title}**", *[""] * 5]]
    for name in run.plan.claims:
        claim = claims[name]
        verdicts = [section.judge(claim) for section in (published, run)]
        cells = [cell for verdict in verdicts for cell in (verdict.found, str(verdict))]
        rows.append([describe(claim), f"{claim.sentence} ({claim.place})", *cells])
    there, here = published.scores(), run.scores()
    none = "no finished run"
    methods = {**here, **there}
    return rows + [[name, "not in the paper", there.get(name, none), "", here.get(name, none), ""] for name in methods]
