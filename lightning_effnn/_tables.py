"""Tables that can be printed with or without a rich console, and shown in notebooks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

from rich.console import Console
from rich.table import Table

_WIDTH = 140


class ReportTable(Table):
    """A rich table that is its text: ``print(table)`` shows it too.

    >>> table = ReportTable("layer", "bits")
    >>> table.add_row("conv1", "4")
    >>> print(table)
    ┏━━━━━━━┳━━━━━━┓
    ┃ layer ┃ bits ┃
    ┡━━━━━━━╇━━━━━━┩
    │ conv1 │ 4    │
    └───────┴──────┘
    """

    def __str__(self) -> str:
        text = io.StringIO()
        # Left to itself, rich would show it in a notebook and leave the text empty, or colour it.
        console = Console(file=text, width=_WIDTH, force_jupyter=False, force_terminal=False, color_system=None)
        console.print(self)
        return text.getvalue().rstrip()


def html_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML, its texts escaped.

    >>> html_table("costs", ["module"], [["<lambda>"]])
    '<table><caption>costs</caption><tr><th>module</th></tr><tr><td>&lt;lambda&gt;</td></tr></table>'
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{body}</table>"
