"""Tables that can be printed with or without a rich console."""

from __future__ import annotations

import io

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
        Console(file=text, width=_WIDTH).print(self)
        return text.getvalue().rstrip()
