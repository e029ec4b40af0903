"""How choices settle, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_effnn._files import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]


def plot_choices(history: History, options: Mapping[str, Sequence[object]], path: str | Path) -> None:
    """Write the picture of :func:`choices_figure`.

    Args:
        history, options: as there.
        path: of the picture; it appears whole or not at all.

    Raises:
        ValueError, ImportError: as there.
    """
    figure = choices_figure(history, options)
    write_figure(path, figure)


def choices_figure(history: History, options: Mapping[str, Sequence[object]]) -> Figure:
    """Draw, for each choice, the option that is ahead in each epoch and how sure the controller is of it.

    Needs matplotlib (extra ``plots``).

    Args:
        history: for each epoch ``{"epoch": number, "chosen": {choice: option}, "probability": {choice: of that
            option}}``, in rising order of epochs; without numbers they are counted from 0.
        options: of each choice; those with one option are left out.

    Raises:
        ValueError: an empty history, epochs that don't rise, or no choice with two options.
        ImportError: without matplotlib; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a figure of choices needs matplotlib: pip install 'lightning_effnn[plots]'") from error
    open_choices = [name for name, names in options.items() if len(names) > 1]
    if not history or not open_choices:
        raise ValueError(f"{len(history)} epochs and {len(open_choices)} open choices: nothing to draw")
    epochs = [epoch.get("epoch", number) for number, epoch in enumerate(history)]
    if any(after <= before for before, after in pairwise(epochs)):
        raise ValueError(f"epochs of a history must rise, got {epochs}")
    edges = [epoch - 0.5 for epoch in (*epochs, epochs[-1] + 1)]  # what holds in one holds until the next is told
    figure = Figure(figsize=(10, 0.4 * len(open_choices) + 1.5), layout="constrained")
    axes = figure.subplots()
    sure = [[float(epoch["probability"][name]) for epoch in history] for name in open_choices]
    rows = [row - 0.5 for row in range(len(open_choices) + 1)]
    image = axes.pcolormesh(edges, rows, sure, vmin=0, vmax=1, cmap="Blues")
    axes.invert_yaxis()
    figure.colorbar(image, label="probability of the option ahead")
    for row, name in enumerate(open_choices):
        for first, last, option in _runs([epoch["chosen"][name] for epoch in history]):
            ends = last == len(history) - 1  # the option that is chosen has its name, whatever room there is
            narrow = edges[last + 1] - edges[first] <= (edges[-1] - edges[0]) / 25
            if ends or not narrow:
                at, side = (last, "right") if ends and narrow else (first, "left")
                place, color = edges[at + (side == "right")], "white" if sure[row][at] > 0.6 else "black"
                axes.text(place, row, f" {option} ", va="center", ha=side, fontsize=7, color=color)
    axes.set_yticks(range(len(open_choices)), open_choices, fontsize=8)
    axes.set_xlabel("epoch")
    return figure


def _runs(options: Sequence[object]) -> list[tuple[int, int, Any]]:
    """First and last place of each stretch of one option, and the option."""
    starts = [n for n, option in enumerate(options) if n == 0 or option != options[n - 1]]
    return [(start, end - 1, options[start]) for start, end in pairwise([*starts, len(options)])]
