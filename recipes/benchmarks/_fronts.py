"""Fronts of size against accuracy: the area they dominate, and their picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_effnn._files import write_figure

Point = tuple[float, float]
"""Size and accuracy."""

_TAUGHT = ", taught"
"""Ends the names of kinds that are drawn hollow, in the colour of the same kind without a teacher."""


def dominated_area(points: Sequence[Point], corner: Point) -> float:
    """Return the area that points dominate, with halvings of size on one axis and accuracy on the other.

    Args:
        points: of networks; one that is larger, or less accurate, than the corner adds nothing.
        corner: largest size and lowest accuracy that count.

    Source: Zitzler and Thiele (1999), "Multiobjective evolutionary algorithms", IEEE Transactions on Evolutionary
    Computation 3 (the hypervolume indicator).

    >>> dominated_area([(4.0, 0.9), (2.0, 0.8), (8.0, 0.7)], corner=(16.0, 0.5))
    1.1
    """
    area, lowest = 0.0, corner[1]
    for size, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if size < corner[0] and accuracy > lowest:
            area += math.log2(corner[0] / size) * (accuracy - lowest)
            lowest = accuracy
    return area


def plot_fronts(panels: Mapping[str, Mapping[str, Sequence[Point]]], path: str | Path) -> None:
    """Write a picture with one panel a graph: size (logarithmic) against accuracy, one mark a kind of network.

    Args:
        panels: by title, for each kind its points; those of a kind with several are joined.
        path: of the picture; it appears whole or not at all.

    Raises:
        ImportError: without matplotlib; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a figure of fronts needs matplotlib: pip install 'lightning_effnn[plots]'") from error
    columns = min(2, max(1, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(6.4 * columns + 2, 4.2 * lines), layout="constrained")
    kinds = list(dict.fromkeys(kind for panel in panels.values() for kind in panel))
    plain = list(dict.fromkeys(kind.removesuffix(_TAUGHT) for kind in kinds))
    for axes, (title, panel) in zip(figure.subplots(lines, columns, squeeze=False).flat, panels.items(), strict=False):
        for number, kind in enumerate(kinds):
            points, color = sorted(panel.get(kind, ())), f"C{plain.index(kind.removesuffix(_TAUGHT)) % 10}"
            axes.plot([size for size, _ in points], [100 * accuracy for _, accuracy in points], label=kind,
                      marker="os^DvPX*h"[number % 9], linestyle="-" if len(points) > 1 else "none", color=color,
                      markerfacecolor="white" if kind.endswith(_TAUGHT) else color)  # fmt: skip
        axes.set_xscale("log")
        axes.set_title(title)
        axes.set_xlabel("weights, kB")
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    write_figure(path, figure)
