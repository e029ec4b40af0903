"""Weights that are pruned and quantised while they train, without changing the model.

The optimiser moves *latent* weights; what the network runs with is their projection: masked, and, as far as
quantisation has come, rounded to the layer's format. The projection is written into the model's own
parameters; before the optimiser steps, the latent values are put back, and after it they are taken out again. The
gradient of the projection thus reaches the latent weights unchanged (straight-through, Bengio et al., arXiv
1308.3432), cut ones too, so that they can grow back.

The model's structure, its ``state_dict`` and its optimisers stay what they were: between steps it *is* the
compressed network, for validation, checkpoints and copies alike. All that is added lives in the projector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn.compression.focus import focus
from lightning_effnn.compression.layer import Layer, select
from lightning_effnn.compression.pruning import Method, Scope, check_sparsity, cut_and_splice, thresholds
from lightning_effnn.formats import RecentralizedPowerOfTwo, declare_format
from lightning_effnn.quantization.sites import Site, check_finite, weight_sites


class Projector:
    """Holds the latent weights of a model and writes their projection into it.

    Args:
        model: its weights are projected; nothing else of it is touched.
        include, exclude: patterns, see :func:`lightning_effnn.quantization.sites.weight_sites`.
        sites: the weights, in place of what ``include`` and ``exclude`` choose; more may come, see :meth:`take`.
        method, scope: of pruning, see :mod:`pruning`.
        bits, separation: of focused quantisation, see :func:`focus`.

    Raises:
        ValueError: no prunable weight, a weight with NaN or infinity, or an argument out of range.

    >>> model = nn.Linear(8, 4)
    >>> projector = Projector(model)
    >>> projector.prune(0.5)
    >>> round(projector.sparsity, 2)
    0.5
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        sites: Sequence[Site] | None = None,
        method: Method = "dns",
        scope: Scope = "global",
        bits: int = 5,
        separation: float = 2.0,
    ) -> None:
        sites = weight_sites(model, include, exclude) if sites is None else sites
        if method not in ("dns", "magnitude"):
            raise ValueError(f"method={method!r}: one of 'dns', 'magnitude' is needed")
        self.method, self.scope = method, scope
        self.bits, self.separation = bits, separation
        self.layers: list[Layer] = []
        self._thresholds: list[Tensor] = []
        self.fraction = 0.0
        self.projected = True
        self.take(sites)

    def take(self, sites: Sequence[Site]) -> None:
        """Take these weights and no others; those that were taken before go on as they are.

        Args:
            sites: from :func:`~lightning_effnn.quantization.weight_sites`.

        Raises:
            ValueError: a weight with NaN or infinity.
        """
        check_finite(sites)
        before = {id(layer.site.parameter): layer for layer in self.layers}
        self.layers = [before.get(id(site.parameter)) or self._layer(site) for site in sites]
        self._thresholds = []  # until masks are chosen the next time

    def _layer(self, site: Site) -> Layer:
        return Layer(site, site.parameter.detach().clone(), torch.ones_like(site.parameter, dtype=torch.bool))

    # between the optimiser's steps

    @torch.no_grad()
    def restore(self) -> None:
        """Put the latent weights into the model, for the optimiser to move."""
        if self.projected and self.layers:
            torch._foreach_copy_(
                [layer.site.parameter for layer in self.layers], [layer.latent for layer in self.layers]
            )
            self.projected = False

    @torch.no_grad()
    def capture(self) -> None:
        """Take the moved latent weights out of the model and write their projection."""
        if not self.projected:
            torch._foreach_copy_(
                [layer.latent for layer in self.layers], [layer.site.parameter for layer in self.layers]
            )
            for layer, threshold in zip(self.layers, self._thresholds, strict=False):
                if self.method == "dns":  # at once: a cut weight moves on unopposed, and would return too large
                    layer.mask = cut_and_splice(layer.latent, layer.mask, threshold)
                else:  # what is cut stays cut: nothing is kept of it
                    layer.latent.copy_(select(layer.mask, layer.latent))
            self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Write the projection into the model."""
        for layer in self.layers:  # one after another: all projections at once would be another copy of the weights
            layer.site.parameter.copy_(layer.projection())
        self.declare()  # scales move from step to step
        self.projected = True

    def declare(self) -> None:
        """Declare the formats of the weights that are rounded altogether, for traces and files."""
        for layer in self.layers:
            if layer.format is not None and layer.rounded_from <= 0:
                declare_format(layer.site.module, layer.site.parameter_name, layer.format, layer.alpha)

    @torch.no_grad()
    def learn_alpha(self, lr: float) -> None:
        """One gradient step of the layers' scales, from the gradients in the model; call before :meth:`restore`.

        The gradient of a scale sums over all weights of a layer; it is divided by the root of their number, so that
        it moves about as fast as they do (Esser et al., LSQ, ICLR 2020, section 2.2).
        """
        learning = [
            (layer, layer.alpha, layer.site.parameter, layer.site.parameter.grad)
            for layer in self.layers
            if layer.alpha is not None and layer.rounded_from <= 0 and layer.site.parameter.grad is not None
        ]
        if not learning:
            return
        layers, alphas, weights, grads = zip(*learning, strict=True)
        slopes = torch._foreach_div([product.sum() for product in torch._foreach_mul(grads, weights)], alphas)
        roots = [layer.mask.sum().clamp(min=1).sqrt() for layer in layers]
        alphas = torch._foreach_sub(alphas, torch._foreach_div(torch._foreach_mul(slopes, lr), roots))
        alphas = torch._foreach_clamp_max(torch._foreach_clamp_min(alphas, 0.5), 2.0)
        for layer, alpha in zip(layers, alphas, strict=True):
            layer.alpha = alpha

    # schedule

    @torch.no_grad()
    def prune(self, sparsity: float) -> None:
        """Choose the masks anew for a share of zeros, and project.

        From now on, surgery goes on at each step with the thresholds found here, until :meth:`settle`.
        """
        check_sparsity(sparsity)
        self.capture()
        self._thresholds = thresholds([layer.latent for layer in self.layers], sparsity, self.scope)
        for layer, threshold in zip(self.layers, self._thresholds, strict=True):
            if self.method == "dns":
                layer.mask = cut_and_splice(layer.latent, layer.mask, threshold)
            else:
                layer.mask = layer.latent.abs() > threshold
        self.project()

    def settle(self) -> None:
        """Keep the masks as they are from now on."""
        self._thresholds = []

    @torch.no_grad()
    def quantize(self, fraction: float) -> None:
        """Fit each layer's format to its present weights, round the largest ``fraction`` of them, and project.

        Raises:
            ValueError: a fraction outside [0, 1].
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction={fraction!r}: a share from 0 to 1 is needed")
        self.capture()
        self.fraction = fraction
        for layer in self.layers:
            self._fit(layer, fraction)
        self.project()

    def _fit(self, layer: Layer, fraction: float) -> None:
        kept = torch.where(layer.mask, layer.latent, 0.0)
        found = focus(kept, self.bits, self.separation)
        layer.reason = found.reason
        if isinstance(found.format, RecentralizedPowerOfTwo):
            layer.take_format(replace(found.format, scale=1.0), kept.new_tensor(found.format.scale))
        else:
            layer.take_format(found.format, None)
        sizes = kept[layer.mask].abs()
        if fraction >= 1.0 or sizes.numel() == 0:
            layer.rounded_from = 0.0
        elif fraction <= 0.0:
            layer.rounded_from = float("inf")
        else:
            first = max(1, round((1.0 - fraction) * sizes.numel()))
            layer.rounded_from = float(sizes.kthvalue(first).values)

    @torch.no_grad()
    def finish(self) -> None:
        """Project whatever stands in the model now, and declare the formats.

        Weights that somebody else has written since (an average over the fit) are taken as latent.
        """
        for layer in self.layers:
            if self.projected and torch.equal(layer.site.parameter, layer.projection()):
                continue
            layer.latent.copy_(layer.site.parameter)
        self.project()

    # figures

    @property
    def sparsity(self) -> float:
        """Share of zeros in the projected weights."""
        zeros = sum(int((layer.site.parameter == 0).sum()) for layer in self.layers)
        return zeros / sum(layer.latent.numel() for layer in self.layers)

    @property
    def focused_layers(self) -> int:
        """Layers whose format is recentralised."""
        return sum(isinstance(layer.format, RecentralizedPowerOfTwo) for layer in self.layers)

    # state

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "thresholds": [threshold.clone() for threshold in self._thresholds],
            "fraction": self.fraction,
            "layers": {layer.site.name: layer.state_dict() for layer in self.layers},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore and project.

        Raises:
            ValueError: the state is of other weights; the message names those that differ.
        """
        saved, mine = set(state["layers"]), {layer.site.name for layer in self.layers}
        if saved != mine:
            raise ValueError(f"the saved state is of other weights: {', '.join(sorted(saved ^ mine))}")
        self._thresholds, self.fraction = list(state["thresholds"]), state["fraction"]
        for layer in self.layers:
            layer.load_state_dict(state["layers"][layer.site.name])
        self.project()
