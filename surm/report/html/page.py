"""The page itself: templates filled, and everything that it needs inside."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from surm.report.html.view import STATES, Source, View
from surm.report.verdicts import Claim

HERE = Path(__file__).parent
SIGNS = {"agrees": "✓", "disagrees": "✗", "undecided": "?", "no record": "○"}
# Text of records and of other publications is printed, never followed: no link, no image, no HTML.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "image"])


def write(
    path: Path,
    sources: Sequence[Source],
    claims: Mapping[str, Claim],
    *,
    label: str = "",
    damaged: Iterable[str] = (),
    options: str = "",
) -> Path:
    """Write one HTML file that shows records without server or network; the same records give the same bytes.

    Args:
        path: of the page.
        sources: sets of records, each with its sections in one order; the last that has finished runs of a section is
            shown there, all stand beside each other in the table of claims.
        claims: the paper's claims by id.
        label: printed at the top; one that ends in "not evidence" forbids verdicts.
        damaged: a sentence for each file that could not be read.
        options: of the command that fills a gap, such as `SCALE=paper`.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"markdown": _markdown, "data": _data}
    page = environment.get_template("page.html.jinja").render(
        view=View(sources, claims, damaged, f"make reproduce {options}".strip()),
        label=label,
        states=STATES,
        signs=SIGNS,
        style=_inline("style.css"),
        script=_inline("page.js"),
        plotly=Markup(get_plotlyjs()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _inline(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _markdown(text: str) -> Markup:
    """Markdown as HTML; a table scrolls on its own."""
    html = _MARKDOWN.render(text)
    table = '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
    return Markup(html.replace("<table>", table).replace("</table>", "</table></div>"))


def _data(value: Any) -> Markup:
    """JSON for a script element, which no string in it can end."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)  # JSON has neither NaN nor infinity
    return Markup(json.dumps(finite, separators=(",", ":")).replace("<", "\\u003c"))
