"""The page itself: the template filled, and everything that it needs inside."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from surm.report.view import STATES, View

TEMPLATE = Path(__file__).parent / "template"
SIGNS = {"agrees": "✓", "disagrees": "✗", "depends on the reading": "±", "undecided": "?", "no record": "○"}
# Text of records and of other publications is printed, never followed: no link, no image, no HTML.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "image"])


def write(path: Path, view: View) -> Path:
    """Write one HTML file that shows records without server or network; the same records give the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = _markdown
    page = environment.get_template("page.html.jinja").render(
        view=view, states=STATES, signs=SIGNS, style=_inline("style.css"), script=_inline("page.js")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _inline(name: str) -> Markup:
    return Markup((TEMPLATE / name).read_text(encoding="utf-8"))


def _markdown(text: str) -> Markup:
    """Markdown as HTML; a table scrolls on its own."""
    html = _MARKDOWN.render(text)
    table = '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
    return Markup(html.replace("<table>", table).replace("</table>", "</table></div>"))
