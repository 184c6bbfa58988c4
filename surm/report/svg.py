"""A matplotlib figure as SVG inside the page, in the page's colours and font."""

import re
from html import escape
from io import StringIO

import matplotlib as mpl
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from surm.methods.names import BLUE, GREY, WINE
from surm.report.drawing import without_mathematics

PIXELS = 4 / 3  # of the screen in a point
_SHORTEST = 0.8  # of its natural width: a narrower window scrolls the figure, so that its text stays readable
# Colours that have another shade on a dark background: variables of style.css. What is black by default inherits.
THEME = {
    "#000000": "--ink",
    "#ffffff": "--paper",
    to_hex(GREY): "--grey",
    to_hex(WINE): "--wine",
    to_hex(BLUE): "--blue",
    to_hex("0.3"): "--muted",
    to_hex("0.35"): "--muted",
    to_hex("0.5"): "--grey",
    to_hex("0.9"): "--rule",
    to_hex("0.94"): "--strip",
    to_hex("0.97"): "--strip",
}


def to_svg(figure: Figure, name: str, title: str, words: str) -> str:
    """An `<svg>` element with a title and a description for readers who cannot see it; equal figures, equal bytes.

    Args:
        figure: drawn in the colours of a white page.
        name: its id; also the salt of the ids in it, so that several figures can stand on one page.
        title: its accessible name.
        words: what it shows.
    """
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    buffer = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        without_mathematics(figure)
        figure.savefig(
            buffer, format="svg", dpi=72, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    content = text[text.index(">", text.index("<svg ")) + 1 :]
    content = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", content, flags=re.DOTALL)
    content = re.sub(r'<(g|image) id="[^"]*"', r"<\1", content)  # names of artists, the same in every figure
    content = re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), content)
    content = re.sub(r"font: (bold |700 )?([\d.]+px) [^;\"]*|; font-family: [^;\"]*", _font, content)
    for color, variable in THEME.items():
        content = content.replace(f": {color}", f": var({variable})")
    content = re.sub(r"\s*\n\s*", "\n", content)
    while (fewer := re.sub(r"<g>\n((?:(?!</?g\b).)*)</g>\n", r"\1", content, flags=re.DOTALL)) != content:
        content = fewer
    width, height = (72 * inches for inches in figure.get_size_inches())
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="{name}-title" '
        f'aria-describedby="{name}-words" style="width: {PIXELS * width:.0f}px; '
        f'min-width: {_SHORTEST * PIXELS * width:.0f}px" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-words">{escape(words)}</desc>{content}'
    )


def _font(match: re.Match[str]) -> str:
    """Size and weight of a text; its family is the page's."""
    return f"font-size: {match[2]}{'; font-weight: bold' if match[1] else ''}" if match[2] else ""
