"""Two Gaussians for the two lobes that pruning leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_effnn.formats.recentralized import nearest_power_of_two

_Array = np.ndarray[Any, np.dtype[np.float64]]
_SAMPLES = 200_000
"""Elements looked at in one tensor. The means' standard error is then a few thousandths of the deviation."""
_GROUPS = 4096
"""Neighbours in sorted order count as one point beyond this many: 1/4096 of a lobe is no wider than its tail."""
_ITERATIONS = 200
_TOLERANCE = 1e-7
"""Change of the mean log-likelihood at which EM has converged."""
_FLOOR = 1e-3
"""Least deviation of a component over the root mean square of all points."""
_WIDEST = 2.0**-8
"""Least shared sigma over the larger mean in :meth:`Mixture.rounded`; as in the format's own fit."""


class Rounded(NamedTuple):
    """A mixture in powers of two."""

    mean_negative: float
    mean_positive: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Mixture:
    r"""Two Gaussian components in one dimension, the negative first.

    .. math:: p(w) = \sum_{c \in \{-, +\}} \lambda_c \, \mathcal{N}(w; \mu_c, \sigma_c^2)

    Attributes:
        weights: :math:`\lambda_-, \lambda_+`, which sum to 1; a component that is not there has 0 (both
            have if there were no points).
        means: :math:`\mu_- \le \mu_+`.
        sigmas: :math:`\sigma_-, \sigma_+`.
        deviation: standard deviation of all points.
    """

    weights: tuple[float, float]
    means: tuple[float, float]
    sigmas: tuple[float, float]
    deviation: float

    @property
    def two_sided(self) -> bool:
        """Whether there are two components, one on each side of zero."""
        return min(self.weights) > 0 and self.means[0] < 0 < self.means[1]

    @property
    def separation(self) -> float:
        r"""How far the lobes are apart: squared Wasserstein distance over the variance of all points.

        .. math:: W = \frac{(\mu_+ - \mu_-)^2 + (\sigma_+ - \sigma_-)^2}{\sigma^2}

        :math:`\sigma` is the deviation of all non-zero weights, not of a component: equal lobes without
        width have :math:`W = 4`. With one component or none it is 0.

        Source: arXiv 1903.03046, section 3.2.
        """
        if min(self.weights) <= 0 or self.deviation <= 0:
            return 0.0
        means, sigmas = self.means[1] - self.means[0], self.sigmas[1] - self.sigmas[0]
        return (means / self.deviation) ** 2 + (sigmas / self.deviation) ** 2  # in this order nothing underflows

    def posterior(self, x: Tensor) -> Tensor:
        """Return the probability that each element belongs to the positive component.

        Args:
            x: floating-point tensor of any shape.

        Returns:
            Tensor of the shape of ``x``, float64 for float64 and float32 for all else.

        >>> mixture = Mixture((0.5, 0.5), (-1.0, 1.0), (0.5, 0.5), 1.1)
        >>> mixture.posterior(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([3.3535e-04, 5.0000e-01, 9.9966e-01])
        """
        x = x.detach()
        x = x if x.dtype == torch.float64 else x.float()
        if min(self.weights) <= 0:
            return torch.full_like(x, float(self.weights[1] > 0))
        negative, positive = (
            math.log(weight / sigma) - ((x - mean) / sigma).square() / 2
            for weight, mean, sigma in zip(self.weights, self.means, self.sigmas, strict=True)
        )
        return torch.sigmoid(positive - negative)

    def rounded(self) -> Rounded:
        """Return the powers of two nearest to the means and to the pooled deviation of the components.

        The deviation is at least 1/256 of the larger mean: a power of two around a mean is then close
        enough to be added to it.

        Raises:
            ValueError: if the mixture is not :attr:`two_sided`.

        >>> Mixture((0.5, 0.5), (-0.3, 0.45), (0.1, 0.14), 0.4).rounded()
        Rounded(mean_negative=-0.25, mean_positive=0.5, sigma=0.125)
        """
        if not self.two_sided:
            raise ValueError(f"rounding needs a component on each side of zero, got weights {self.weights}, "
                             f"means {self.means}")  # fmt: skip
        negative, positive = nearest_power_of_two(-self.means[0]), nearest_power_of_two(self.means[1])
        pooled = math.sqrt(sum(w * s * s for w, s in zip(self.weights, self.sigmas, strict=True)))
        return Rounded(-negative, positive, nearest_power_of_two(max(pooled, _WIDEST * max(negative, positive))))


@dataclass(frozen=True, slots=True)
class Points:
    """Sorted non-zero weights: what stands for them in a fit.

    Attributes:
        values: float64, rising.
    """

    values: _Array

    @classmethod
    def of(cls, x: Tensor) -> Points:
        """Take the non-zero elements of ``x``; of a large tensor, elements evenly spread over it.

        Args:
            x: floating-point tensor of any shape.
        """
        flat = x.detach().reshape(-1)
        if flat.numel() > _SAMPLES:
            step = int(torch.count_nonzero(flat)) // _SAMPLES
            while step > 1 and any(math.gcd(step, size) > 1 for size in x.shape):
                step += 1  # a step that divides an axis would see a part of the channels only
            flat = flat[:: max(step, 1)]
        flat = flat[flat != 0].to("cpu", torch.float64)
        return cls(np.sort(flat.numpy()))


def fit_mixture(x: Tensor | Points) -> Mixture:
    """Fit two Gaussians to the non-zero elements of ``x`` by expectation maximisation.

    The components start as the negative and the positive elements. Deterministic, in float64 on the CPU;
    of large tensors some 200,000 elements are looked at. A component's deviation is at least a thousandth
    of the root mean square of all. One sign, one point or none give a mixture with one component or none.

    Args:
        x: floating-point tensor of any shape, finite; or its :class:`Points`.

    Raises:
        ValueError: if an element is not finite.

    Source: arXiv 1903.03046, section 3.2; Dempster, Laird and Rubin (1977) for the algorithm.

    >>> generator = torch.Generator().manual_seed(0)
    >>> noise = torch.randn(2, 5000, generator=generator)
    >>> mixture = fit_mixture(torch.cat([-0.5 + 0.1 * noise[0], torch.zeros(90000), 0.25 + 0.05 * noise[1]]))
    >>> [round(value, 1) for value in (*mixture.weights, *mixture.means, *mixture.sigmas)]
    [0.5, 0.5, -0.5, 0.2..., 0.1, 0.0...]
    """
    points = x if isinstance(x, Points) else Points.of(x)
    values = points.values
    if not values.size:
        return Mixture((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), 0.0)
    if not np.isfinite(values[[0, -1]]).all():  # NaN is sorted last
        raise ValueError("x must be finite to fit a mixture to, got NaN or infinity")
    unit = float(np.abs(values[[0, -1]]).max())  # squares of the smallest and largest floats would leave float64
    values, mass = _grouped(values / unit)
    deviation = _deviation(values, mass)
    floor = _FLOOR * math.sqrt(float(mass @ values**2))
    if values[0] > 0 or values[-1] < 0:
        mean, sigma = float(mass @ values), max(deviation, floor)
        means = (-mean, mean) if mean > 0 else (mean, -mean)
        found = ((0.0, 1.0) if mean > 0 else (1.0, 0.0)), means, (sigma, sigma)
    else:
        found = _maximise(values, mass, floor)
    weights, means, sigmas = found
    return Mixture(weights, (means[0] * unit, means[1] * unit), (sigmas[0] * unit, sigmas[1] * unit), deviation * unit)


_Pair = tuple[float, float]


def _grouped(values: _Array) -> tuple[_Array, _Array]:
    """Means of groups of neighbours, and the share of the points each has."""
    size = -(-values.size // _GROUPS)
    starts = np.arange(0, values.size, size)
    counts = np.diff(np.append(starts, values.size)).astype(np.float64)
    return np.add.reduceat(values, starts) / counts, counts / values.size


def _deviation(values: _Array, mass: _Array) -> float:
    return math.sqrt(max(float(mass @ (values - mass @ values) ** 2), 0.0))


def _maximise(values: _Array, mass: _Array, floor: float) -> tuple[_Pair, _Pair, _Pair]:
    share = np.stack([values < 0, values >= 0]).astype(np.float64)  # [2, points]
    last = -math.inf
    for _ in range(_ITERATIONS):
        joint = share * mass
        weights = np.maximum(joint.sum(1), 1e-12)
        means = joint @ values / weights
        variances = np.maximum((joint * (values - means[:, None]) ** 2).sum(1) / weights, floor**2)
        log = np.log(weights / np.sqrt(variances))[:, None] - (values - means[:, None]) ** 2 / (2 * variances[:, None])
        top = log.max(0)
        density = np.exp(log - top)
        total = density.sum(0)
        likelihood = float(mass @ (top + np.log(total)))
        share = density / total
        if likelihood - last < _TOLERANCE:
            break
        last = likelihood
    order = np.argsort(means, kind="stable")
    first, second = (int(i) for i in order)
    sigmas = np.sqrt(variances)
    weights = weights / weights.sum()
    return (
        (float(weights[first]), float(weights[second])),
        (float(means[first]), float(means[second])),
        (float(sigmas[first]), float(sigmas[second])),
    )
