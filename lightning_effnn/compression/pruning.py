"""Which weights to keep: gradual magnitude pruning and dynamic network surgery.

Both aim at a share of zeros. *Magnitude* keeps the largest weights (Zhu and Gupta, arXiv 1710.01878). *Dynamic network
surgery* (Guo et al., NeurIPS 2016, arXiv 1608.04493) has two thresholds: below the lower one a weight is cut, above the
higher one a cut weight is spliced back, in between it stays what it was, so that a weight cut by mistake returns
once it has grown, and none flickers at the threshold.

The *scope* says what is compared: magnitudes within each ``"layer"``, which then all get the same share of zeros;
magnitudes of the whole network (``"global"``), where each layer keeps at least a third of the average density, so
that one with large weights (an embedding) can't have all others cut; or, over the whole network, each square's share in
the squares of its layer that are no smaller (``"lamp"``: Lee et al., ICLR 2021, arXiv 2010.07611), which cuts small
layers less and large ones more.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_effnn.compression._pieces import pieces, sample
from lightning_effnn.quantization.selection import chosen_weights
from lightning_effnn.quantization.sites import check_finite

Method = Literal["dns", "magnitude"]
Scope = Literal["lamp", "global", "layer"]
SPLICE = 1.1
"""The higher threshold as a multiple of the lower one: 10 % of hysteresis."""
FLOOR = 1 / 3
"""Least density of a weight under one global threshold, as a part of the density of all: no layer is cut altogether."""
_ALL = 1 << 21
"""Weights that are all looked at for a threshold."""
_SAMPLE = 1 << 13
"""Elements of a weight that are, where there are more."""
_CLOSE, _CORRECTIONS = 5e-4, 5
"""How near to the asked share of zeros samples have to come, and in how many rounds at most."""


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was pruned: per weight its number of elements and of zeros, by name."""

    elements: Mapping[str, int]
    zeros: Mapping[str, int]

    @property
    def sparsity(self) -> float:
        """Share of zeros among all elements."""
        total = sum(self.elements.values())
        return sum(self.zeros.values()) / total if total else 0.0

    def layer_sparsity(self, name: str) -> float:
        """Share of zeros of one weight."""
        return self.zeros[name] / self.elements[name]


def cubic_sparsity(final: float, progress: float, initial: float = 0.0) -> float:
    """Sparsity at ``progress`` in [0, 1] of a gradual schedule: fast at first, slow at the end.

    ``final + (initial - final) (1 - progress)^3`` (arXiv 1710.01878, equation 1).

    >>> [round(cubic_sparsity(0.9, p), 3) for p in (0.0, 0.5, 1.0)]
    [0.0, 0.787, 0.9]
    """
    progress = min(max(progress, 0.0), 1.0)
    return final + (initial - final) * (1.0 - progress) ** 3


def check_sparsity(sparsity: float) -> None:
    """Refuse what is no share of zeros.

    Raises:
        ValueError: outside [0, 1).
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity={sparsity!r}: a number of at least 0 and below 1 is needed")


def update_masks(
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    sparsity: float,
    method: Method = "dns",
    scope: Scope = "global",
) -> list[Tensor]:
    """New masks of dense (latent) weights.

    Args:
        weights: any shapes; what would stand there if nothing were cut.
        masks: present masks, bool, same shapes; read by ``dns``.
        sparsity: share of weights to cut.
        method: ``dns`` or ``magnitude``.
        scope: ``lamp``, ``global`` or ``layer``, see the head of this module.

    Raises:
        ValueError: an unknown method or scope, or a sparsity outside [0, 1).

    >>> weight = torch.tensor([0.1, -0.2, 0.3, -0.4])
    >>> update_masks([weight], [torch.ones(4, dtype=torch.bool)], 0.5)[0].tolist()
    [False, False, True, True]
    """
    check_sparsity(sparsity)
    cuts = thresholds(weights, sparsity, scope)
    if method not in ("dns", "magnitude"):
        raise ValueError(f"method={method!r}: one of 'dns', 'magnitude' is needed")
    return [
        cut_and_splice(weight, mask, cut) if method == "dns" else weight.detach().abs() > cut
        for weight, mask, cut in zip(weights, masks, cuts, strict=True)
    ]


def thresholds(weights: Sequence[Tensor], sparsity: float, scope: Scope = "global") -> list[Tensor]:
    """Largest magnitude to cut of each weight, scalars; negative where nothing is to be cut.

    Up to two million weights are all looked at. Of more, samples are, and the thresholds found there are moved until
    the share of zeros, counted over all weights, is the one asked for within 0.05 %; this takes hardly any memory.

    Raises:
        ValueError: an unknown scope.
    """
    if scope not in ("lamp", "global", "layer"):
        raise ValueError(f"scope={scope!r}: one of 'lamp', 'global', 'layer' is needed")
    weights = [weight.detach() for weight in weights]
    if scope == "layer":
        return [cut for weight in weights for cut in _thresholds([weight], sparsity, "layer")]
    return _thresholds(weights, sparsity, scope)


def _thresholds(weights: Sequence[Tensor], sparsity: float, scope: Scope) -> list[Tensor]:
    total = sum(weight.numel() for weight in weights)
    asked = target = round(sparsity * total)
    if not target:
        return [weight.new_tensor(-1.0) for weight in weights]
    few = total <= _ALL
    ordered = [sample(weight, total if few else _SAMPLE).abs().sort().values for weight in weights]
    scores = [_lamp_scores(sizes) for sizes in ordered] if scope == "lamp" else ordered
    least = FLOOR * (1.0 - sparsity) if scope == "global" else 0.0
    for _ in range(1 if few else _CORRECTIONS):
        found = _cut(weights, ordered, scores, target, least, shared=scope != "lamp")
        if few:
            break
        missed = asked - sum(_no_larger(weight, cut) for weight, cut in zip(weights, found, strict=True))
        if abs(missed) <= _CLOSE * total:
            break
        target += missed
    return found


def _cut(
    weights: Sequence[Tensor],
    ordered: Sequence[Tensor],
    scores: Sequence[Tensor],
    target: int,
    least: float,
    shared: bool,
) -> list[Tensor]:
    """Cut the lowest scores until ``target`` weights are, but leave each its ``least`` share; thresholds of magnitudes.

    Args:
        ordered: magnitudes of a sample of each weight, in ascending order.
        scores: of those, in ascending order; comparable between weights.
        shared: the scores are the magnitudes: one threshold for all.
    """
    each = [weight.numel() / len(sizes) for weight, sizes in zip(weights, ordered, strict=True)]
    most = [math.floor((1.0 - least) * len(sizes)) for sizes in ordered]
    merged = torch.cat([score.to(scores[0].device) for score in scores]).sort().values

    def lost(place: int) -> list[int]:
        cut = merged[place]
        return [
            min(int(torch.searchsorted(score, cut.to(score.device), right=True)), cap)
            for score, cap in zip(scores, most, strict=True)
        ]

    def enough(place: int) -> bool:
        return sum(count * scale for count, scale in zip(lost(place), each, strict=True)) >= target - 0.5

    place = bisect_left(range(len(merged) - 1), True, key=enough)
    one = merged[place]
    return [
        sizes.new_tensor(-1.0) if not count else one.to(sizes.device) if shared and count < cap else sizes[count - 1]
        for sizes, count, cap in zip(ordered, lost(place), most, strict=True)
    ]


def _no_larger(weight: Tensor, cut: Tensor) -> int:
    larger = [
        torch.gt(piece.abs(), cut, out=torch.empty_like(piece)).sum(dtype=torch.float64)  # bools are slow to count
        for (piece,) in pieces(weight)
    ]
    return weight.numel() - int(torch.stack(larger).sum())


def _lamp_scores(ordered: Tensor) -> Tensor:
    """Each square's share in the sum of the squares from it on; of magnitudes in ascending order."""
    squares = ordered.double().square()
    no_smaller = squares.flip(0).cumsum(0).flip(0)
    return squares / no_smaller.clamp(min=torch.finfo(torch.float64).tiny)  # zeros score 0


def cut_and_splice(weight: Tensor, mask: Tensor, threshold: Tensor) -> Tensor:
    """The surgery of one step: cut below the threshold, splice back above :data:`SPLICE` times it; NaN is not cut."""
    size = weight.detach().abs()
    return (
        (size <= threshold).logical_not_().logical_and_((size <= SPLICE * threshold).logical_not_().logical_or_(mask))
    )


@torch.no_grad()
def prune_model_(
    model: nn.Module,
    sparsity: float,
    method: Method = "dns",
    scope: Scope = "global",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> PruneReport:
    """Set the smallest weights of a model to zero, in place, without training.

    Without training nothing grows back, so both methods cut the same weights; zeros that are there stay.

    Args:
        model: any module; convolutions, linear and recurrent layers, embeddings and attention are pruned.
        sparsity: share of zeros to reach, in [0, 1).
        method, scope: see :func:`update_masks`.
        include, exclude: patterns of parameter names or module class names, see :func:`weight_sites`.

    Raises:
        ValueError: sparsity outside [0, 1), no prunable weight, or a weight with NaN or infinity.

    >>> model = nn.Linear(10, 10)
    >>> round(prune_model_(model, 0.9).sparsity, 2), int((model.weight != 0).sum())
    (0.9, 10)
    """
    sites = chosen_weights("prune_model_", model, include, exclude)
    check_finite(sites)
    weights = [site.parameter for site in sites]
    present = [w != 0 for w in weights]
    for weight, mask in zip(weights, update_masks(weights, present, sparsity, method, scope), strict=True):
        weight.mul_(mask)
    return PruneReport(
        {site.name: site.parameter.numel() for site in sites},
        {site.name: int((site.parameter == 0).sum()) for site in sites},
    )
