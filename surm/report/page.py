"""The report: what the paper says, what is published here and what this run found, then tables and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from surm.records.record import Record, read_records
from surm.report import html, primary
from surm.report.base import Section, Source, figure_path
from surm.report.claims import describe, papers_beside, read_claims, read_registrations, registered_plan, remarks_on
from surm.report.comparison import OneTask
from surm.report.decide import decide
from surm.report.figures import accuracy_over_parameters
from surm.report.further import further_plans
from surm.report.plan import Plan, StudyPlan
from surm.report.reportable import check_reportable
from surm.report.sections import make_section
from surm.report.table import markdown, plain_line
from surm.report.verdict import Claim
from surm.report.view import View, in_order, place
from surm.shared.paths import PAPER

HEADER = ["", "paper", "published here", "verdict", "this run", "verdict"]


def build(
    plans: Sequence[Plan],
    published: Path = Path("results/runs"),
    runs: Path | Sequence[Path] = Path("outputs/runs"),
    output: Path = Path("outputs"),
    *,
    label: str = "",
    evidence: bool = True,
    name: str = "all",
    paper: Path = PAPER,
    options: str = "",
    further: bool = False,
) -> Path:
    """Write tables, figures, `report.md` and `report.html` of this machine's runs below `output`; return the former.

    A page opens with the primary claims, then the paper's sentences, the numbers published here and this run's, side by
    side, with a verdict on each of the latter two. Seeds beyond the planned ones count wherever every other setting is
    equal, but in tables whose seeds are registered.

    Args:
        plans: what was planned.
        published: folder of committed records.
        runs: folder of this machine's records, or several.
        output: receives `tables/`, `figures/`, `report.md` and `report.html`.
        label: printed with the numbers.
        evidence: False forbids verdicts; the label says why.
        name: of the figure that has a panel for each comparison, `figures/<name>_accuracy_over_parameters.png`.
        paper: folder of the paper's claims; those beside it hold other papers'.
        options: of `make reproduce`, which the page prints where a run is missing.
        further: add a section for the runs and studies that no plan asks for.
    """
    folders = [runs] if isinstance(runs, Path) else runs
    ours, theirs = read_records(*folders, check=check_reportable), read_records(published, check=check_reportable)
    papers = papers_beside(paper)
    claims, registrations = read_claims(*papers), read_registrations(*papers)
    plans = [*plans, *further_plans(plans, ours)] if further else plans
    plans = [registered_plan(plan, registrations, claims) for plan in plans]
    sources = [
        Source("published", "published here", theirs, paper, label, evidence, [published]),
        Source("run", "this run", ours, paper, label, evidence, folders),
    ]
    there = [make_section(_as_published(plan, theirs), sources[0]) for plan in plans]
    here = [make_section(plan, sources[1]) for plan in plans]
    decide(there, claims, registrations)
    decide(here, claims, registrations)
    _write_tables(here, output, claims)
    _draw_figures(here, output, name)
    damaged = [*theirs.complaints, *ours.complaints]
    command = f"make reproduce {options}".strip()
    main = primary.rows(there, here, claims, published.parent)
    view = View(list(zip(sources, (there, here), strict=True)), claims, damaged, command, main)
    html.write(output / "report.html", view)
    words = output / primary.FILE.with_suffix(".md")
    words.parent.mkdir(parents=True, exist_ok=True)
    words.write_text(primary.table(main), encoding="utf-8")
    pairs = sorted(zip(there, here, strict=True), key=lambda pair: place(pair[1]))
    rows = [row for pair in pairs for row in _claims_and_scores(*pair, claims)]
    return _write_markdown(output, label, HEADER, rows, here, damaged, primary.table(main))


def publish(
    plans: Sequence[Plan],
    records: Path = Path("results/runs"),
    output: Path = Path("results"),
    *,
    name: str = "all",
    paper: Path = PAPER,
    draw: bool = True,
) -> Path:
    """Write the same below `output`, from committed records alone; return the page's path. draw: the figures, too."""
    stored = read_records(records, check=check_reportable)
    source = Source("published", "published here", stored, paper)
    papers = papers_beside(paper)
    claims, registrations = read_claims(*papers), read_registrations(*papers)
    sections = [make_section(registered_plan(plan, registrations, claims), source) for plan in plans]
    decide(sections, claims, registrations)
    _write_tables(sections, output, claims)
    if draw:
        _draw_figures(sections, output, name)
    answers = primary.answers_of(sections, claims)
    primary.write(output / primary.FILE, answers)
    main = [
        primary.PrimaryRow(claim, {source.name: answers.get(name, primary.Answer("not run"))})
        for name, claim in claims.items()
        if claim.registered == "primary"
    ]
    rows = [row[:4] for section in in_order(sections) for row in _claims_and_scores(section, section, claims)]
    return _write_markdown(output, "", HEADER[:4], rows, sections, stored.complaints, primary.table(main))


def _as_published(plan: Plan, published: Mapping[str, Record]) -> Plan:
    """The plan for the published column: of a study, whatever is published, which may be more draws than planned."""
    if not isinstance(plan, StudyPlan):
        return plan
    parts = [record for record in published.values() if record.is_study]
    whole = sorted(record.signature for record in parts if record.asked["study"]["name"] == plan.study)
    return replace(plan, signatures=whole)


def _write_markdown(
    output: Path,
    label: str,
    header: list[str],
    rows: list[list[str]],
    sections: Sequence[Section],
    damaged: Sequence[str],
    main: str = "",
) -> Path:
    opening = ["# Report\n", f"**{plain_line(label)}**\n"] if label else ["# Report\n"]
    opening += ["\n".join(f"* {plain_line(line)}" for line in damaged) + "\n"] if damaged else []
    opening += [main] if main else []
    texts = [section.markdown() for section in in_order(sections)]
    page = output / "report.md"
    page.write_text("\n".join([*opening, markdown(header, rows), *texts]), encoding="utf-8")
    return page


def _write_tables(sections: Sequence[Section], output: Path, claims: Mapping[str, Claim]) -> None:
    for section in sections:
        section.write(output, claims)


def _draw_figures(sections: Sequence[Section], output: Path, name: str) -> None:
    """The figures of each section, and one with a panel for each comparison on one task, once one has run."""
    for section in sections:
        section.draw(output)
    compared = [section for section in sections if isinstance(section, OneTask) and section.finished]
    if compared:
        picture = accuracy_over_parameters([section.task for section in compared])
        picture.write(figure_path(output, name, picture.kind), compared[0].source.doubt)


def _claims_and_scores(published: Section, run: Section, claims: Mapping[str, Claim]) -> list[list[str]]:
    """Rows of the opening table for one section: its claims, then every method's score."""
    rows = [[f"**{run.plan.title}**", *[""] * 5]]
    for name in run.plan.claims:
        claim = claims[name]
        verdicts = [section.judge(claim) for section in (published, run)]
        cells = [cell for verdict in verdicts for cell in (verdict.found, str(verdict))]
        remarks = "".join(f" *{remark}.*" for remark in remarks_on(claim))
        rows.append([describe(claim), f"{claim.sentence} ({claim.place}){remarks}", *cells])
    there, here = published.scores(), run.scores()
    none = "no finished run"
    methods = {**here, **there}
    return rows + [[name, "not in the paper", there.get(name, none), "", here.get(name, none), ""] for name in methods]
