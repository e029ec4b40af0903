"""``effnn hw``: the accelerators, with their main figures."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_effnn import hardware
from lightning_effnn.cli._errors import UsageError


def list_accelerators(names: Sequence[str], console: Console) -> None:
    """Print one row for each accelerator: all presets, or the names and YAML files given."""
    summaries = [load_accelerator(name).summary() for name in (names or hardware.presets())]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, leading=1)
    for column in summaries[0]:
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for summary in summaries:
        table.add_row(*(Text(str(value)) for value in summary.values()))  # no markup
    console.print(table)


def load_accelerator(name_or_path: str) -> hardware.Accelerator:
    """Return a preset or the user's own accelerator; what is wrong with it is the message."""
    try:
        return hardware.Accelerator.load(name_or_path)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
