"""Tables as text, for ``str``."""

from __future__ import annotations

import io

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
