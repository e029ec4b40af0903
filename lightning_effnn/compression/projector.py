"""Weights that are pruned and quantised while they train, without changing the model.

The optimiser moves *latent* weights; what the network runs with is their projection: masked, and, as far as
quantisation has come, rounded to the layer's format. The projection is written into the model's own
parameters; while an optimiser steps, they have the latent values (and where nobody else looks, their memory). The
gradient of the projection thus reaches the latent weights unchanged (straight-through, Bengio et al., arXiv
1308.3432), cut ones too, so that they can grow back.

The projector owns what it has written and nothing else: whatever anybody else writes into a weight (a checkpoint
that is loaded, a momentum encoder, an average, an optimiser that torch doesn't know) is noticed before the
projector writes again, and kept.

The model's structure, its ``state_dict`` and its optimisers stay what they were: between steps it *is* the
compressed network, for validation, checkpoints and copies alike. All that is added lives in the projector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn.compression._pieces import pieces
from lightning_effnn.compression.focus import focus
from lightning_effnn.compression.following import Following
from lightning_effnn.compression.layer import Layer, select
from lightning_effnn.compression.pruning import Method, Scope, check_sparsity, thresholds
from lightning_effnn.formats import RecentralizedPowerOfTwo
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
        self.fraction = 0.0
        self.steps = 0
        self._seen: set[int] = set()  # layers looked at since the last call of sync
        self.take(sites)

    def take(self, sites: Sequence[Site]) -> None:
        """Take these weights and no others; those that were taken before go on as they are.

        Args:
            sites: from :func:`~lightning_effnn.quantization.weight_sites`.

        Raises:
            ValueError: a weight with NaN or infinity, two parameters in one piece of memory.
        """
        check_finite(sites)
        _check_apart(sites)
        before = {id(layer.site.parameter): layer for layer in self.layers}
        grows = self.method == "dns"
        self.layers = [before.get(id(site.parameter)) or Layer.of(site, grows=grows) for site in sites]

    # around the optimiser's steps

    def follow(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> Following:
        """Follow every step that any optimiser of torch makes on these weights, until the answer is removed.

        See :mod:`lightning_effnn.compression.following`.

        Args:
            optimizers: those whose ``train()`` and ``eval()`` exchange weights (schedule-free ones).
        """
        return Following(self, optimizers)

    def of(self, parameters: Iterable[Tensor]) -> list[Layer]:
        """The layers whose weights are among ``parameters``."""
        mine = {id(layer.site.parameter): layer for layer in self.layers}
        return [mine[id(parameter)] for parameter in parameters if id(parameter) in mine]

    @torch.no_grad()
    def restore(self, layers: Sequence[Layer] | None = None, lr: float = 0.0) -> None:
        """Put the latent weights into the model, for an optimiser to move.

        What somebody else has written since is taken over first, see :meth:`Layer.adopt`.

        Args:
            layers: those that it moves; all by default.
            lr: at which the scales of these layers learn from the gradients that stand in the model.

        Raises:
            ValueError: a weight is not finite; its name and the step are given.
        """
        layers = [layer for layer in (self.layers if layers is None else layers) if layer.projected]
        changed = self._adopt(layers)
        if lr:
            self._learn_alpha(layers, lr)
        for layer in changed:
            layer.write()  # so that afterwards only what moves has to be
        for layer in layers:
            layer.restore()

    @torch.no_grad()
    def capture(self, layers: Sequence[Layer] | None = None) -> None:
        """Take the moved latent weights out of the model and write their projection, where they stand there."""
        for layer in self.layers if layers is None else layers:
            if not layer.projected:
                layer.capture()
                self._seen.add(id(layer))

    @torch.no_grad()
    def sync(self) -> None:
        """Project what somebody else has written into weights that no optimiser has moved since the last call."""
        self.capture()
        for layer in self._adopt([layer for layer in self.layers if id(layer) not in self._seen]):
            layer.write()
        self._seen.clear()

    @torch.no_grad()
    def project(self) -> None:
        """Write the projection into the model."""
        for layer in self.layers:
            layer.write()

    def _adopt(self, layers: Sequence[Layer]) -> list[Layer]:
        """Take over what somebody else has written into these layers; which of them it was."""
        if not layers:
            return []
        for layer in layers:
            layer.follow()
        device = layers[0].latent.device
        checks = torch.stack([layer.check().to(device) for layer in layers]).tolist()  # one synchronisation for all
        changed = [layer for layer, (same, _) in zip(layers, checks, strict=True) if not same and layer.adopt()]
        suspect = [layer for layer, (_, finite) in zip(layers, checks, strict=True) if not finite]
        self.check_finite([*suspect, *changed])
        return changed

    def check_finite(self, layers: Sequence[Layer] | None = None) -> None:
        """Refuse to go on with weights that are not finite.

        Raises:
            ValueError: NaN or infinity; the weights' names and the step are given.
        """
        wrong = [layer.site.name for layer in (self.layers if layers is None else layers) if not layer.finite]
        if wrong:
            raise ValueError(
                f"the training diverged: NaN or infinity in {', '.join(wrong)} after {self.steps} optimiser steps;"
                " nothing was compressed or written since"
            )

    def declare(self) -> None:
        """Declare the formats of the weights that are rounded altogether, for traces and files."""
        for layer in self.layers:
            layer.declare()

    def _learn_alpha(self, layers: Sequence[Layer], lr: float) -> None:
        """One gradient step of the layers' scales, from the gradients in the model, before weights are restored.

        The gradient of a scale sums over all weights of a layer; it is divided by the root of their number, so that
        it moves about as fast as they do (Esser et al., LSQ, ICLR 2020, section 2.2).
        """
        for layer in layers:
            grad = layer.site.parameter.grad
            if layer.alpha is None or layer.rounded_from > 0 or grad is None or grad.layout != torch.strided:
                continue
            parts = [torch.dot(g.reshape(-1), w.reshape(-1)) for g, w in pieces(grad, layer.site.parameter.detach())]
            slope = torch.stack(parts).sum() / (layer.alpha * math.sqrt(max(layer.kept, 1)))
            moved = (layer.alpha - lr * slope).clamp(0.5, 2.0)
            layer.alpha = torch.where(moved.isfinite(), moved, layer.alpha)  # a scaler may find infinite gradients

    # schedule

    @torch.no_grad()
    def prune(self, sparsity: float) -> None:
        """Choose the masks anew for a share of zeros, and project.

        From now on, surgery goes on at each step with the thresholds found here, until :meth:`settle`.
        """
        check_sparsity(sparsity)
        self._collect()
        found = thresholds([layer.latent for layer in self.layers], sparsity, self.scope)
        for layer, threshold in zip(self.layers, found, strict=True):
            layer.prune(float(threshold))

    def settle(self) -> None:
        """Keep the masks as they are from now on."""
        for layer in self.layers:
            layer.threshold = None

    @torch.no_grad()
    def quantize(self, fraction: float) -> None:
        """Fit each layer's format to its present weights, round the largest ``fraction`` of them, and project.

        Raises:
            ValueError: a fraction outside [0, 1].
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction={fraction!r}: a share from 0 to 1 is needed")
        self._collect()
        self.fraction = fraction
        for layer in self.layers:
            self._fit(layer, fraction)
        self.project()

    def _collect(self) -> None:
        """Have the present latent values of all layers, finite ones."""
        self.capture()
        self._adopt(self.layers)

    def _fit(self, layer: Layer, fraction: float) -> None:
        kept = select(layer.mask, layer.latent)
        found = focus(kept, self.bits, self.separation)
        layer.reason = found.reason
        if isinstance(found.format, RecentralizedPowerOfTwo):
            layer.take_format(replace(found.format, scale=1.0), kept.new_tensor(found.format.scale))
        else:
            layer.take_format(found.format, None)
        layer.kept = int(layer.mask.sum())
        zeros = layer.mask.numel() - layer.kept
        if fraction >= 1.0 or not layer.kept:
            layer.rounded_from = 0.0
        elif fraction <= 0.0:
            layer.rounded_from = float("inf")
        else:
            first = zeros + max(1, round((1.0 - fraction) * layer.kept))
            layer.rounded_from = float(kept.abs().flatten().kthvalue(first).values)

    @torch.no_grad()
    def finish(self) -> bool:
        """Project whatever stands in the model now, and declare the formats; False if that changes no weight.

        Weights that somebody else has written since (an average over the fit) are taken as they are.

        Raises:
            ValueError: a weight is not finite; its name and the step are given.
        """
        for layer in self.layers:
            layer.follow()
        self.capture()
        taken = [layer for layer in self.layers if layer.take()]
        self.check_finite()
        for layer in taken:
            layer.write()
        self.declare()
        return bool(taken)

    # figures

    @property
    def sparsity(self) -> float:
        """Share of zeros in the projected weights."""
        kept = sum(int(torch.count_nonzero(layer.site.parameter)) for layer in self.layers)
        return 1.0 - kept / sum(layer.latent.numel() for layer in self.layers)

    @property
    def finite(self) -> bool:
        """Whether no latent weight is NaN or infinity."""
        return all(layer.finite for layer in self.layers)

    @property
    def focused_layers(self) -> int:
        """Layers whose format is recentralised."""
        return sum(isinstance(layer.format, RecentralizedPowerOfTwo) for layer in self.layers)

    # state

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "fraction": self.fraction,
            "steps": self.steps,
            "layers": {layer.site.name: layer.state_dict() for layer in self.layers},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore and project.

        Raises:
            ValueError: the state is of other weights, or an entry is of another type or shape; the message names it.
        """
        if not isinstance(state["layers"], Mapping):
            raise ValueError(f"the saved layers are no dictionary, but a {type(state['layers']).__name__}")
        saved, mine = set(state["layers"]), {layer.site.name for layer in self.layers}
        if saved != mine:
            raise ValueError(f"the saved state is of other weights: {', '.join(sorted(saved ^ mine))}")
        self.fraction, self.steps = state["fraction"], state["steps"]
        for layer in self.layers:
            layer.load_state_dict(state["layers"][layer.site.name])
        self.project()


def _check_apart(sites: Sequence[Site]) -> None:
    """Refuse what would be two latent values of one number."""
    places: dict[int, Site] = {}
    for site in sites:
        weight = site.parameter
        place = weight.data_ptr() if type(weight.data) is Tensor and weight.numel() else 0
        first = places.setdefault(place, site) if place else site
        if first.parameter is not weight:
            raise ValueError(
                f"{first.name} and {site.name} are two parameters in one piece of memory: make them one parameter"
                f" of two modules, or exclude one"
            )
