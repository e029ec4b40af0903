"""Pictures of solutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_effnn._files import write_figure
from lightning_effnn.pde.residuals import Residuals

SIDE = 160
"""Points along each axis."""


def plot_solution(residuals: Residuals, path: str | Path) -> None:
    """Draw each field, the equation's residual, and, where there is a reference, that and the error.

    Of more than two coordinates the others are held in the middle of the domain.

    Args:
        residuals: of a trained field.
        path: of the picture, whose ending says its kind.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'lightning_effnn[plots]'") from error
    problem = residuals.problem
    dim = len(problem.domain.names)
    points, axes = _grid(residuals)
    inside = problem.domain.contains(points)
    rows: list[tuple[str, list[tuple[str, Tensor, str]]]] = []
    with torch.no_grad():
        found = residuals.solution(points)
    known = problem.solution(points) if problem.reference is not None else None
    with torch.no_grad():
        block = residuals.block(residuals.terms[0], points, torch.zeros_like(points))
        rest = torch.stack([r.square() for r in residuals.at(block)]).sum(0).sqrt()
    for k, name in enumerate(problem.fields):
        panels = [(name, found[:, k], "viridis")]
        if known is not None:
            panels += [("reference", known[:, k], "viridis"), ("error", (found - known)[:, k], "RdBu")]
        rows.append((name, [*panels, ("residual", rest, "magma")]))
    figure = Figure(figsize=(3.4 * len(rows[0][1]), 2.9 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for r, (_, panels) in enumerate(rows):
        for c, (title, values, colours) in enumerate(panels):
            plot = figure.add_subplot(len(rows), len(panels), r * len(panels) + c + 1)
            shown = values.masked_fill(~inside, float("nan")).cpu().numpy()
            _panel(figure, plot, shown, axes, dim, colours, centred=title == "error")
            plot.set_title(title)
            plot.set_xlabel(problem.domain.names[axes[0][0]])
            if dim > 1:
                plot.set_ylabel(problem.domain.names[axes[1][0]])
    write_figure(path, figure, dpi=110)


def _grid(residuals: Residuals) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Return points ``[N, d]`` of a picture, and its axes; time is drawn to the right."""
    domain = residuals.problem.domain
    order = sorted(range(len(domain.names)), key=lambda axis: domain.names[axis] != "t")[:2]
    lines = [(axis, torch.linspace(domain.low[axis], domain.high[axis], SIDE, dtype=torch.float64)) for axis in order]
    meshes = torch.meshgrid(*(line for _, line in lines), indexing="ij")
    middle = [(a + b) / 2 for a, b in zip(domain.low, domain.high, strict=True)]
    points = torch.tensor(middle, dtype=torch.float64).repeat(meshes[0].numel(), 1)
    for (axis, _), mesh in zip(lines, meshes, strict=True):
        points[:, axis] = mesh.flatten()
    return points.to(residuals.like), lines


def _panel(
    figure: Any, plot: Any, values: Any, axes: list[tuple[int, Tensor]], dim: int, colours: str, *, centred: bool
) -> None:
    if dim == 1:
        plot.plot(axes[0][1].numpy(), values)
        return
    limit = float(np.nanmax(np.abs(values))) if centred else None
    image = plot.pcolormesh(
        axes[0][1].numpy(), axes[1][1].numpy(), values.reshape(SIDE, SIDE).T, cmap=colours, shading="auto",
        rasterized=True, vmin=None if limit is None else -limit, vmax=limit,
    )  # fmt: skip
    figure.colorbar(image, ax=plot, format="%.1e" if centred else None)
