"""Tables as text, for ``str`` and for notebooks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

from rich.console import Console
from rich.table import Table


def as_text(table: Table, width: int) -> str:
    """Return the table in plain characters, wherever it is asked for.

    Left to itself, rich would show it in a notebook and leave the text empty, and colour it where colours are forced.

    Args:
        table: what to print.
        width: of a line, in characters.

    >>> as_text(Table("a", "b"), 20).count("a")
    1
    """
    text = io.StringIO()
    console = Console(file=text, width=width, force_jupyter=False, force_terminal=False, color_system=None)
    console.print(table)
    return text.getvalue().rstrip()


def html_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML, its texts escaped.

    >>> html_table("costs", ["module"], [["<lambda>"]])
    '<table><caption>costs</caption><tr><th>module</th></tr><tr><td>&lt;lambda&gt;</td></tr></table>'
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{body}</table>"
