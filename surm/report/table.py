"""A table of cells, written once and printed three times: as Markdown, as CSV and, by the template, as HTML."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

Formats = Mapping[str, tuple[str, str]]
"""Column of a frame -> its heading and its number format, which is empty for text."""


class Cell(NamedTuple):
    """One cell.

    text: what is printed.
    value: what the CSV file holds, and what a column of numbers is sorted by.
    note: small print below the text; in Markdown it is left out, and becomes a footnote where there is no text.
    link: anchor on the page of the records behind the number.
    """

    text: str = ""
    value: Any = None
    note: str = ""
    link: str = ""


class Column(NamedTuple):
    """A heading, whether numbers stand below it, and the column's name in a CSV file."""

    heading: str
    number: bool = False
    name: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, columns, and rows of as many cells."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> str:
        """The table in Markdown, with its footnotes."""
        notes: dict[str, int] = {}
        body = [
            [
                f"[{notes.setdefault(cell.note, len(notes) + 1)}]" if cell.note and not cell.text else cell.text
                for cell in row
            ]
            for row in self.rows
        ]
        text = markdown([c.heading for c in self.columns], body, right=[c.number for c in self.columns])
        footnotes = "; ".join(f"[{number}] {plain_line(note)}" for note, number in notes.items())
        return f"{text}\n{footnotes}.\n" if footnotes else text

    def csv(self) -> str:
        """The values, six significant digits each."""
        values = {
            column.name: [_no_formula(row[place].value) for row in self.rows]
            for place, column in enumerate(self.columns)
        }
        return pd.DataFrame(values).to_csv(index=False, float_format="%.6g", lineterminator="\n")

    def without_empty_columns(self) -> "Table":
        """The same without the columns in which nothing stands."""
        kept = [i for i in range(len(self.columns)) if any(row[i].text or row[i].note for row in self.rows)]
        return Table(self.caption, [self.columns[i] for i in kept], [[row[i] for i in kept] for row in self.rows])


def table_of(
    frame: pd.DataFrame,
    formats: Formats,
    caption: str = "",
    *,
    notes: Mapping[str, Callable[[Mapping[Any, Any]], str]] | None = None,
    link: Callable[[Mapping[Any, Any]], str] = lambda _: "",
) -> Table:
    """The table of a frame; a missing value is an empty cell.

    Args:
        frame: one line for each row.
        formats: the frame's columns to print, in their order.
        caption: printed on the page.
        notes: of a column, the small print of its cells, from their row.
        link: the anchor of a row's numbers.
    """
    columns = [Column(heading, bool(form), name) for name, (heading, form) in formats.items()]

    def cell(row: Mapping[Any, Any], name: str, form: str) -> Cell:
        value = row[name]
        if pd.isna(value):
            return Cell()
        note = notes[name](row) if notes and name in notes else ""
        return Cell(format(value, form), value, note, link(row) if form else "")

    rows = [[cell(row, name, form) for name, (_, form) in formats.items()] for row in frame.to_dict("records")]
    return Table(caption, columns, rows)


def _no_formula(value: Any) -> Any:
    """A text that a spreadsheet would compute begins with an apostrophe, as spreadsheets mark text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def plain(text: str) -> str:
    """A text for Markdown in which records speak: no HTML and no link, whatever they say."""
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text).replace("](", "]\\(")


def plain_line(text: str) -> str:
    """The same as one line: a heading, an entry of a list."""
    return " ".join(plain(text).splitlines())


def _plain_cell(text: str) -> str:
    text = re.sub(r"\\(?=[\\|])|\\$", r"\\\\", text)  # a backslash of the text escapes nothing
    return plain_line(text).replace("|", "\\|")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[bool] | None = None) -> str:
    """A Markdown table; `right` says which columns are aligned to the right."""
    rule = ["---:" if aligned else "---" for aligned in right or [False] * len(header)]
    lines = [[_plain_cell(cell) for cell in header], rule, *([_plain_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
