"""How choices settle, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_effnn._files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]


def plot_choices(history: History, options: Mapping[str, Sequence[Any]], path: str | Path) -> None:
    """Write the picture of :func:`choices_figure`.

    Args:
        history, options: as there.
        path: of the picture; it appears whole or not at all.

    Raises:
        ValueError, ImportError: as there.
    """
    figure = choices_figure(history, options)
    write_whole(path, lambda beside: figure.savefig(beside, dpi=120))


def choices_figure(history: History, options: Mapping[str, Sequence[Any]]) -> Figure:
    """Draw, for each choice, the option that is ahead in each epoch and how sure the controller is of it.

    Needs matplotlib (extra ``plots``).

    Args:
        history: for each epoch ``{"chosen": {choice: option}, "probability": {choice: of that option}}``.
        options: of each choice; those with one option are left out.

    Raises:
        ValueError: an empty history, or no choice with two options.
        ImportError: without matplotlib; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a figure of choices needs matplotlib: pip install 'lightning_effnn[plots]'") from error
    open_choices = [name for name, names in options.items() if len(names) > 1]
    if not history or not open_choices:
        raise ValueError(f"{len(history)} epochs and {len(open_choices)} open choices: nothing to draw")
    figure = Figure(figsize=(10, 0.4 * len(open_choices) + 1.5), layout="constrained")
    axes = figure.subplots()
    sure = [[float(epoch["probability"][name]) for epoch in history] for name in open_choices]
    image = axes.imshow(sure, aspect="auto", vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, label="probability of the option ahead")
    for row, name in enumerate(open_choices):
        names = [epoch["chosen"][name] for epoch in history]
        changes = [0, *(n for n in range(1, len(names)) if names[n] != names[n - 1])]
        changes = [n for n, following in zip(changes, [*changes[1:], len(names)], strict=True)
                   if following - n > len(names) / 25]  # a word needs room  # fmt: skip
        for column in changes:
            bright = sure[row][column] > 0.6
            axes.text(column, row, f" {names[column]}", va="center", fontsize=7, color="white" if bright else "black")
    axes.set_yticks(range(len(open_choices)), open_choices, fontsize=8)
    axes.set_xlabel("epoch")
    return figure
