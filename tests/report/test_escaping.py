"""Whatever a title, a method or a task is called: a table stays a table, and nothing of it is executed."""

import csv
import io
import re

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from surm.report.drawing import save
from surm.report.page import build
from surm.report.plan import ComparisonPlan
from surm.report.svg import to_svg
from surm.report.table import Cell, Column, Table, plain, plain_line
from tests.report import made_up

EVIL = {
    "tag": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "closing": "</h1></table>",
    "comment": "<!-- hidden",
    "instruction": "<?php ?>",
    "link": "[y](javascript:alert(1))",
    "picture": "![x](http://example.org/x.png)",
    "pipe": "a|b||c",
    "backslash and pipe": "a\\|b\\",
    "lines": "a\nb\r\nc\n\n# d\n* e",
    "dollar": "costs $5",
    "mathematics": "$\\alpha$ and $x_1$",
    "no mathematics": "a $\\unknown{ $ b",
    "power": "$10^{",
    "formula": '=HYPERLINK("http://example.org", "x")',
    "sum": "+1+1",
    "difference": "-1-1",
    "command": "@SUM(A1)",
    "tab": "\t=1",
    "quotes": "\"a\" 'b' `c`",
    "umlaut": "Grüße, 模型, 🙂",
}
evil = pytest.mark.parametrize("text", EVIL.values(), ids=EVIL.keys())


def read_markdown(text: str) -> str:
    """As a viewer that lets HTML through shows it."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@evil
def test_a_table_in_markdown_keeps_its_cells(text: str) -> None:
    cells = [Cell(text), Cell(note=text), Cell("1.0", 1.0)]
    html = read_markdown(Table("", [Column(text), Column("b"), Column("c", number=True)], [cells, cells]).markdown())
    assert len(re.findall("<tr>", html)) == 3
    assert len(re.findall("<t[hd][ >]", html)) == 9
    assert set(re.findall(r"<(\w+)", html)) <= {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "p",
        "em",
        "strong",
        "code",
    }


@evil
def test_a_heading_is_one_line_without_html(text: str) -> None:
    html = read_markdown(f"# {plain_line(text)}\n")
    assert html.count("\n") == 1
    assert set(re.findall(r"<(\w+)", html)) <= {"h1", "code"}
    assert not re.search(r"<(script|img|a|!--|\?)", read_markdown(plain(text)))


@evil
def test_no_cell_of_a_csv_file_is_a_formula(text: str) -> None:
    table = Table("", [Column("", name="name"), Column("", name="value")], [[Cell(text, text), Cell("-1", -1.5)]])
    header, (name, value) = csv.reader(io.StringIO(table.csv(), newline=""))
    assert header == ["name", "value"]
    assert not name.startswith(("=", "+", "-", "@", "\t"))
    assert name.removeprefix("'") == text
    assert value == "-1.5"  # a number stays one


@evil
def test_a_figure_prints_it_as_it_is(text: str, tmp_path) -> None:
    def draw() -> Figure:
        figure = Figure()
        axes = figure.subplots()
        axes.plot([1, 10], [1, 10], label=text or None)
        axes.set(title=text, xlabel=text, xscale="log")
        axes.set_yticks([1], [text])
        figure.legend()
        return figure

    save(draw(), tmp_path / "figure.png")
    svg = to_svg(draw(), "figure", text, text)
    assert "<script" not in svg
    assert "<img" not in svg
    if "$" in text:
        shown = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert sum(text in one.replace("&gt;", ">") for one in shown) == 4


@pytest.mark.slow
@evil
def test_a_page_of_such_names_is_written(text: str, tmp_path) -> None:
    """As the name of a method, a data set, a model, a metric, a baseline, an error, a title and a label."""
    runs = tmp_path / "runs"
    names = {
        "primary_metric": text,
        "metrics": {text: 0.5},
        "best_epoch_metrics": {text: 0.5},
        "baselines": {text: 0.1},
    }
    request = made_up.asked({"name": f"peft_{text}"}, dataset=text, model=text)
    finished = made_up.write_run(runs, request, np.arange(9), np.ones(9, bool), history=[], **names)
    failed = made_up.asked({"name": "bitfit"}, dataset=text, model=text)
    signatures = [
        finished,
        made_up.write_run(runs, failed, np.arange(9), np.ones(9, bool), status="failed", error=text),
    ]
    page = build([ComparisonPlan("e", text, signatures)], tmp_path / "none", runs, tmp_path / "out", label=text)
    written = page.with_suffix(".html").read_text(encoding="utf-8")
    assert written.count("<script>") == 1
    assert "<img" not in written
    markdown = read_markdown(page.read_text(encoding="utf-8"))
    assert not re.search(r"<(script|img (?!src=.figures/)|a |!--|\?)", markdown.replace('<img src="figures', ""))
