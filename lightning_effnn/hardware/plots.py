"""Figures of a report. Needs matplotlib (extra ``plots``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_effnn._files import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_effnn.hardware.report import CostReport

_MOST_BARS = 40


def cost_figure(report: CostReport, depth: int = 2) -> Figure:
    """Stacked horizontal bars, one a module, one colour a place where energy goes; a matplotlib ``Figure``.

    Networks of many modules are cut to the costliest; the rest is one bar.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'lightning_effnn[plots]'") from error
    modules = report.components_by_module(depth)
    levels = list(report.by_level())
    if len(modules) > _MOST_BARS:
        ranked = sorted(modules, key=lambda m: -sum(modules[m].values()))
        rest = ranked[_MOST_BARS - 1 :]
        merged = {level: sum(modules[m].get(level, 0.0) for m in rest) for level in levels}
        modules = {m: v for m, v in modules.items() if m not in rest} | {f"{len(rest)} others": merged}
    figure = Figure(figsize=(9, 1.6 + 0.28 * max(len(modules), 4)), layout="constrained")
    axes = figure.add_subplot()
    names = [_plain(name) for name in modules]
    left = [0.0] * len(names)
    shades = matplotlib.colormaps["viridis"]
    for index, level in enumerate(levels):  # from what computes to what lies farthest from it
        widths = [module.get(level, 0.0) for module in modules.values()]
        axes.barh(names, widths, left=left, label=_plain(level), color=shades(index / max(len(levels) - 1, 1)))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("energy (uJ)")
    axes.set_title(
        f"{_plain(report.accelerator.name)}: {report.energy_uJ:,.1f} uJ, {report.macs / 1e6:,.2f} M MACs,"
        f" coverage {report.coverage:.1%}",
        loc="left",
    )
    figure.legend(loc="outside right upper", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def stacked_bars(report: CostReport, path: str | Path, depth: int = 2) -> None:
    """Write :func:`cost_figure` to a file, whole or not at all; the suffix chooses the format."""
    figure = cost_figure(report, depth)
    write_figure(path, figure)


def _plain(text: str) -> str:
    """Text between two dollars would be set as a formula."""
    return text.replace("$", r"\$")
