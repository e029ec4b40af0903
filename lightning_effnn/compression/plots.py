"""Histograms of weights with their levels. Needs matplotlib (extra ``plots``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_effnn.compression.projector import Projector

_MOST_LAYERS = 24


def weight_figure(projector: Projector) -> Figure:
    """One panel a layer: latent weights that are kept, and how many lie on each level; a matplotlib ``Figure``.

    Networks of many layers show the largest.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'lightning_effnn[plots]'") from error
    ranked = sorted(projector.layers, key=lambda layer: -layer.latent.numel())[:_MOST_LAYERS]
    layers = [layer for layer in projector.layers if any(layer is other for other in ranked)]
    columns = min(4, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * rows), layout="constrained")
    for index, layer in enumerate(layers):
        axes = figure.add_subplot(rows, columns, index + 1)
        kept = layer.latent[layer.mask].detach().float().cpu()
        axes.hist(kept.numpy(), bins=80, color="0.75")
        weight = layer.site.parameter.detach().float().cpu()
        values, counts = torch.unique(weight[weight != 0], return_counts=True)
        if len(values) <= 2**projector.bits:
            axes.vlines(values.numpy(), 0, counts.numpy(), color="C0", linewidth=1)
        zeros = 1 - kept.numel() / layer.latent.numel()
        name = str(layer.declared() or "not rounded")
        axes.set_title(f"{layer.site.name}\n{name}, {zeros:.1%} zeros", fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        axes.set_yscale("symlog")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
