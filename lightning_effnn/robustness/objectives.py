r"""What an attack raises and a defence lowers: smooth measures of how dense activations are.

A count of non-zeros has no gradient. With ``kind="l0"`` it is replaced by

.. math:: \sum_i \frac{|x_i|}{|x_i| + \sigma}

which counts an element as soon as it is clearly larger than :math:`\sigma`, and pulls hardest at zero, where a neuron
is switched on or off. ``"l2"`` is the sum of squares, the paper's objective, and ``"linf"`` the largest magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from lightning_effnn.robustness.activations import Activations, per_input

Kind = Literal["l0", "l2", "linf"]
KINDS: tuple[str, ...] = get_args(Kind)
SIGMA = 0.1


def smooth_l0(x: Tensor, inputs: int, sigma: float = SIGMA) -> Tensor:
    """Return the smooth share of non-zeros, one for each input: ``[inputs]`` in [0, 1].

    At zero the gradient is that of a number just above it.

    Args:
        x: a layer's input, its first axis a multiple of ``inputs``.
        inputs: number of inputs of the model.
        sigma: magnitude, relative to the root mean square, that counts as half a non-zero, above 0.

    Source: Geman and Reynolds (1992), "Constrained restoration and the recovery of discontinuities"; the smooth count
    of Cinà et al. (2023), "Energy-latency attacks via sponge poisoning", arXiv 2203.08147, has squares in place of
    magnitudes, and no gradient at zero.

    >>> smooth_l0(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), 1, sigma=2**0.5)
    tensor([0.2500])
    """
    if not inputs or len(x) % inputs:
        per_input(x, inputs)  # refuses it
    wide = torch.float32 if x.dtype == torch.float16 else None  # whose range squares leave
    half = sigma * torch.linalg.vector_norm(x.detach(), dtype=wide).float() / x.numel() ** 0.5 + 1e-12
    counts = _smooth_count(x, half)
    return counts if len(x) == inputs else counts.view(inputs, -1).mean(1)


class _SmoothCount(torch.autograd.Function):
    """Mean of |x| / (|x| + half) over all axes but the first; written out, as it runs over every activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Tensor) -> Tensor:
        """Return ``[len(x)]``."""
        inverse = x.abs().add_(half).reciprocal_()
        ctx.save_for_backward(x, inverse, half)
        return 1 - half * inverse.mean(tuple(range(1, x.dim()))).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of ``x``."""
        x, inverse, half = ctx.saved_tensors
        scale = (gradients[0] * half * (len(x) / x.numel())).to(x.dtype)
        slope = inverse.square().copysign_(x)
        return slope.mul_(scale.view(-1, *[1] * (x.dim() - 1))), None


_smooth_count = cast("Callable[[Tensor, Tensor], Tensor]", _SmoothCount.apply)


def measure(x: Tensor, inputs: int, kind: Kind = "l0", sigma: float = SIGMA) -> Tensor:
    """Return one number for each input: :func:`smooth_l0`, mean of squares, or largest magnitude.

    Args:
        x, inputs, sigma: as for :func:`smooth_l0`.
        kind: ``"l0"``, ``"l2"`` or ``"linf"``.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "l0":
        return smooth_l0(x, inputs, sigma)
    rows = per_input(x, inputs).float()
    if kind == "l2":
        return rows.square().mean(1)
    if kind == "linf":
        return rows.abs().amax(1)
    raise ValueError(f"objective is {kind!r}: use one of {', '.join(map(repr, KINDS))}, 'energy'")


class Density:
    """Weighted mean, over the layers of a model, of a measure of what goes into them.

    Args:
        model: any module.
        kind: ``"l0"``, ``"l2"`` or ``"linf"``.
        sigma: of ``"l0"``.
        weights: of each layer by its name, 0 or more; equal if None. See :func:`layer_weights`.

    Raises:
        ValueError: an unknown kind, sigma not above 0, names that are no layers, weights that are all 0.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> Density(model)(torch.rand(3, 4)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        model: nn.Module,
        kind: Kind = "l0",
        sigma: float = SIGMA,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"objective is {kind!r}: use one of {', '.join(map(repr, KINDS))}, 'energy'")
        if not sigma > 0:
            raise ValueError(f"sigma is {sigma!r}: use a number above 0")
        self.model, self.kind, self.sigma = model, kind, sigma
        self.activations = Activations(model)
        weights = dict.fromkeys(self.activations.names, 1.0) if weights is None else dict(weights)
        unknown = set(weights) - set(self.activations.names)
        if unknown:
            names = ", ".join(self.activations.names)
            raise ValueError(f"weights name {sorted(unknown)[0]!r}, which is no layer: {names}")
        total = sum(weights.values())
        if min(weights.values()) < 0 or total <= 0:
            raise ValueError(f"weights are {weights}: use numbers of 0 or more, at least one above 0")
        self.weights = {name: weight / total for name, weight in weights.items() if weight}

    def __call__(self, x: Tensor) -> Tensor:
        """Run the model on ``x`` and return its measure, one for each input: ``[B]``.

        Args:
            x: ``[B, ...]``.
        """
        with self.activations.collecting() as found:
            self.model(x)
        return self.of(found, len(x))

    def of(self, found: Mapping[str, list[Tensor]], inputs: int) -> Tensor:
        """Return the measure of activations that were collected; layers that didn't run count for nothing.

        Args:
            found: from :meth:`~lightning_effnn.robustness.activations.Activations.collecting`.
            inputs: number of inputs of the model.
        """
        total: Tensor | float = 0.0
        for name, weight in self.weights.items():
            for x in found[name]:
                total = total + weight / len(found[name]) * measure(x, inputs, self.kind, self.sigma)
        if isinstance(total, float):
            raise ValueError(f"none of the layers {', '.join(self.weights)} ran")
        return total


def layer_weights(energies: Mapping[str, float]) -> dict[str, float]:
    """Return weights of layers in proportion to what zeros in their inputs save; equal ones if they save nothing.

    Args:
        energies: what each layer saves, from :meth:`~lightning_effnn.robustness.energy.DensityEnergy.savings_uJ`.

    >>> layer_weights({"a": 3.0, "b": 1.0})
    {'a': 0.75, 'b': 0.25}
    """
    total = sum(max(0.0, value) for value in energies.values())
    if total <= 0:
        return dict.fromkeys(energies, 1 / len(energies))
    return {name: max(0.0, value) / total for name, value in energies.items()}


def check_images(x: Tensor, low: float = 0.0, high: float = 1.0) -> None:
    """Refuse what is no batch of inputs in a range.

    Args:
        x: to check.
        low, high: least and largest value.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: no input, or values outside the range or not finite.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is {kind}: floating-point inputs in [{low:g}, {high:g}] are needed")
    if x.dim() < 2 or not x.numel():
        raise ValueError(f"x has the shape {tuple(x.shape)}: a batch [B, ...] of one or more inputs is needed")
    least, most = float(x.detach().min()), float(x.detach().max())
    if not (low - 1e-6 <= least and most <= high + 1e-6) or not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError(
            f"x lies in [{least:g}, {most:g}]: inputs in [{low:g}, {high:g}] are needed; put a normalisation"
            " into the model (modules.Normalized), or give low and high"
        )
