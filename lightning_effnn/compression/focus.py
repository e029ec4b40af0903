"""Focused quantisation: per layer, powers of two around two means, or plain powers of two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_effnn._tables import ReportTable
from lightning_effnn.compression.mixture import Mixture, Points, fit_mixture
from lightning_effnn.formats import NumberFormat, PowerOfTwo, RecentralizedPowerOfTwo, declare_format
from lightning_effnn.formats.recentralized import MAX_BITS, MIN_BITS
from lightning_effnn.quantization.selection import chosen_weights
from lightning_effnn.quantization.sites import check_finite

Assignment = Literal["hard", "sampled"]
Alpha = Literal["fit", "one"]
_Array = np.ndarray[Any, np.dtype[np.float64]]

_SHAPE_STEPS = range(-2, 4)
"""Largest exponents tried: the largest step from a mean is sigma times 2**-2 to 2**3."""
_PEAK_STEPS = range(4)
"""Binary places below the peak tried for the largest plain power."""
_ALPHA_STARTS = (1.0, 0.75, 0.875, 1.1875, 1.375)
"""Each leads to another local minimum; a factor of two is covered by the means tried."""
_REFINED = 8
_ALPHA_ROUNDS = 16
_SAMPLED_ROUNDS = 2
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Focused:
    """A quantised weight, and what was chosen for it and why.

    Attributes:
        weight: the quantised tensor, of the shape, dtype and device of the original; zeros stayed zero.
        format: whose levels it holds.
        mixture: of the non-zero weights.
        separation: of the mixture's lobes, see :attr:`Mixture.separation`.
        reason: why this format, in a few words.
        mse: mean squared error over the non-zero weights.
        mse_focused, mse_shift: what the recentralised and the plain format have, each with the nearest
            level, on the weights the mixture was fitted to; ``None`` where it cannot be had.
    """

    weight: Tensor
    format: PowerOfTwo | RecentralizedPowerOfTwo
    mixture: Mixture
    separation: float
    reason: str
    mse: float
    mse_focused: float | None
    mse_shift: float

    @property
    def codes(self) -> Tensor:
        """The codes of ``weight``; 0 is zero in either format."""
        return self.format.encode(self.weight)


@dataclass(frozen=True, slots=True)
class LayerFocus:
    """What :func:`focus_model_` chose for one weight; attributes as in :class:`Focused`.

    Attributes:
        name: qualified name of the parameter.
        elements, nonzero: how many numbers it has, and how many were not zero before.
    """

    name: str
    elements: int
    nonzero: int
    format: NumberFormat
    separation: float
    reason: str
    mse: float
    mse_focused: float | None
    mse_shift: float

    @property
    def focused(self) -> bool:
        """Whether the recentralised format was chosen."""
        return isinstance(self.format, RecentralizedPowerOfTwo)


def focus(
    weight: Tensor,
    bits: int = 5,
    separation: float = 2.0,
    assignment: Assignment = "hard",
    seed: int | torch.Generator = 0,
    alpha: Alpha = "fit",
) -> Focused:
    r"""Quantise one pruned weight to powers of two around its lobes' means, or to plain ones.

    A two-component mixture is fitted to the non-zero weights. Where its :attr:`~Mixture.separation` is at
    least ``separation`` the weights are recentralised; else they get plain powers of two. So they do where
    there are no two lobes: all zero, one sign, means not on both sides of zero.

    Within a format the parameters of least squared error are taken from a small set. Recentralised:
    :math:`\sigma` from the mixture, each mean the power of two below or above its component's mean, the
    largest step around it :math:`2^{-2} \sigma` to :math:`2^3 \sigma`, :math:`\alpha` by least squares in
    turn with the choice of levels, from the best starts between 0.75 and 1.375. Plain: the largest power,
    from the one nearest to the peak down to an eighth of it.

    Deterministic; the same on every process that has the same weights and seed.

    Args:
        weight: floating-point tensor of any shape, finite.
        bits: 3 to 7, of both formats.
        separation: threshold, at least 0; ``math.inf`` gives plain powers of two everywhere.
        assignment: ``"hard"`` takes the nearest of all levels, which has the least error and may turn small
            weights into zeros. ``"sampled"`` draws each weight's component from its posterior, as the paper
            does, and takes the nearest level of that component.
        seed: of the draws; or a generator on the CPU, which goes on from where it is.
        alpha: ``"fit"`` or ``"one"``, without the scale.

    Raises:
        TypeError: if ``weight`` is not a floating-point tensor.
        ValueError: if an argument is out of range or ``weight`` not finite.

    Source: Zhao et al. (2019), "Focused Quantization for Sparse CNNs", arXiv 1903.03046, section 3.

    >>> weight = torch.tensor([-0.5, -0.52, -0.4, 0.0, 0.0, 0.26, 0.25, 0.3])
    >>> found = focus(weight, alpha="one")
    >>> found.weight
    tensor([-0.5000, -0.5156, -0.3750,  0.0000,  0.0000,  0.2656,  0.2500,  0.3125])
    >>> str(found.format), found.reason
    ('focus5', 'separation 3.96 >= 2')
    >>> focus(weight.abs()).reason
    'one sign only'
    """
    _check(bits, separation, assignment, alpha)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"weight must be a floating-point tensor, got {getattr(weight, 'dtype', type(weight))}")
    weight = weight.detach()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight must be finite, got NaN or infinity")
    points = Points.of(weight)
    mixture = fit_mixture(points)
    sums = _Sums(points.values)
    plain, mse_shift = _best_plain(bits, sums)
    best = _best_recentralised(bits, mixture, alpha, sums)
    apart = mixture.separation
    focused = best is not None and apart >= separation
    number_format: PowerOfTwo | RecentralizedPowerOfTwo = plain
    if best is not None and focused:
        number_format = best[0]
    if isinstance(number_format, RecentralizedPowerOfTwo) and assignment == "sampled":
        quantised, number_format = _sampled(weight, number_format, mixture, seed, alpha)
    else:
        quantised = _quantized(weight, number_format)
    return Focused(
        weight=quantised,
        format=number_format,
        mixture=mixture,
        separation=apart,
        reason=_reason(mixture, best is not None, separation),
        mse=_mse(weight, quantised),
        mse_focused=None if best is None else best[1],
        mse_shift=mse_shift,
    )


def focus_model_(
    model: nn.Module,
    bits: int = 5,
    separation: float = 2.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    assignment: Assignment = "hard",
    seed: int = 0,
    alpha: Alpha = "fit",
) -> list[LayerFocus]:
    """Quantise the weights of ``model`` in place, each as :func:`focus` does, and declare their formats.

    Nothing is changed if an error is raised. The formats are found again by
    :func:`lightning_effnn.formats.declared_formats`, and by every trace of the hardware.

    Args:
        model: any module; which of its weights, see :func:`weight_sites`.
        bits, separation, assignment, alpha: as for :func:`focus`.
        include, exclude: as for :func:`weight_sites`.
        seed: of all draws together.

    Returns:
        What was chosen for each weight and why; print it with :func:`focus_table`.

    Raises:
        ValueError: if an argument is out of range, a weight is not finite (its name is given), or there is
            no weight.

    >>> model = nn.Linear(100, 20)
    >>> _ = torch.manual_seed(0), nn.init.normal_(model.weight)
    >>> with torch.no_grad():
    ...     model.weight[model.weight.abs() < 1] = 0
    >>> [(layer.name, str(layer.format)) for layer in focus_model_(model)]
    [('weight', 'focus5')]
    """
    _check(bits, separation, assignment, alpha)
    sites = chosen_weights("focus_model_", model, include, exclude)
    check_finite(sites)
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for site in sites:
        weight = site.parameter
        found = focus(weight, bits, separation, assignment, generator, alpha)
        nonzero = int(torch.count_nonzero(weight.detach()))
        with torch.no_grad():
            weight.copy_(found.weight)
        declare_format(site.module, site.parameter_name, found.format)
        layers.append(
            LayerFocus(
                name=site.name,
                elements=weight.numel(),
                nonzero=nonzero,
                format=found.format,
                separation=found.separation,
                reason=found.reason,
                mse=found.mse,
                mse_focused=found.mse_focused,
                mse_shift=found.mse_shift,
            )
        )
    return layers


def focus_table(layers: Sequence[LayerFocus]) -> ReportTable:
    """Return what :func:`focus_model_` returned as a rich table.

    >>> model = nn.Linear(4, 4)
    >>> focus_table(focus_model_(model)).row_count
    1
    """
    table = ReportTable(title="Focused quantisation", title_justify="left")
    for heading in ("weight", "format", "separation", "density", "error", "focused", "shift", "why"):
        table.add_column(heading, justify="left" if heading in ("weight", "format", "why") else "right")
    for layer in layers:
        table.add_row(
            layer.name,
            layer.format.name,
            f"{layer.separation:.2f}",
            f"{layer.nonzero / layer.elements:.2%}",
            f"{layer.mse:.2e}",
            "" if layer.mse_focused is None else f"{layer.mse_focused:.2e}",
            f"{layer.mse_shift:.2e}",
            layer.reason,
        )
    table.caption = "error: mean squared, over non-zero weights; focused and shift: what each format would have"
    return table


class _Sums:
    """Squared errors of any set of levels in the time of a few binary searches.

    The points are sorted, so those nearest to one level are neighbours: cumulated sums of their number and
    values give what each level adds.
    """

    def __init__(self, values: _Array) -> None:
        # Scaled by a power of two, so that no square leaves float64; the formats' levels are scaled likewise.
        peak = float(np.abs(values[[0, -1]]).max()) if values.size else 1.0
        self.unit = 2.0 ** math.frexp(peak)[1]
        self.values = values / self.unit
        self._cumulated = np.concatenate([[0.0], np.cumsum(self.values)])
        self._squares = float(self.values @ self.values)

    @property
    def peak(self) -> float:
        """The largest magnitude."""
        return float(np.abs(self.values[[0, -1]]).max()) * self.unit if self.values.size else 0.0

    def error(self, levels: _Array, scale: float = 1.0, rounds: int = 0) -> tuple[float, float]:
        """Mean squared error of rising ``levels`` times ``scale``, and the scale.

        In each of ``rounds`` the best scale for the levels chosen is taken first, until it stays.
        """
        levels = levels / self.unit
        middles = (levels[1:] + levels[:-1]) / 2
        error, best = self._once(levels, middles, scale)
        for _ in range(rounds):
            if abs(best - scale) < 1e-6:
                break
            scale = best
            error, best = self._once(levels, middles, scale)
        return error * self.unit**2, scale

    def _once(self, levels: _Array, middles: _Array, scale: float) -> tuple[float, float]:
        ends = np.concatenate([[0], np.searchsorted(self.values, scale * middles), [self.values.size]])
        number, total = np.diff(ends), np.diff(self._cumulated[ends])
        product, square = float(levels @ total), float(levels**2 @ number)
        error = self._squares - 2 * scale * product + scale**2 * square
        best = product / square if product > 0 and square > 0 else 1.0
        return max(error, 0.0) / max(self.values.size, 1), best


def _best_plain(bits: int, sums: _Sums) -> tuple[PowerOfTwo, float]:
    peak = PowerOfTwo(bits)
    if sums.peak:
        peak = peak.fit(torch.tensor([min(sums.peak, 3e38)], dtype=torch.float64, device="cpu"))
    best = peak, math.inf
    for step in _PEAK_STEPS:
        try:
            candidate = replace(peak, max_exponent=peak.max_exponent - step)
        except ValueError:  # below float32's normal numbers
            break
        powers = np.exp2(np.array(candidate.exponents, dtype=np.float64))
        error, _ = sums.error(np.concatenate([-powers[::-1], [0.0], powers]))
        if error < best[1]:
            best = candidate, error
    return best


def _best_recentralised(
    bits: int, mixture: Mixture, alpha: Alpha, sums: _Sums
) -> tuple[RecentralizedPowerOfTwo, float] | None:
    if not mixture.two_sided:
        return None
    starts = _ALPHA_STARTS if alpha == "fit" else (1.0,)
    tried = [
        (sums.error(np.array(candidate.levels), start)[0], candidate, start)
        for candidate in _candidates(bits, mixture)
        for start in starts
    ]
    tried.sort(key=lambda one: one[0])  # stable: the mixture's own powers of two win a tie
    best = None
    for error, candidate, scale in tried[: _REFINED if alpha == "fit" else 1]:
        if alpha == "fit":
            error, scale = sums.error(np.array(candidate.levels), scale, _ALPHA_ROUNDS)
        scaled = _with_scale(candidate, scale)
        if scaled is not None and (best is None or error < best[1]):
            best = scaled, error
    return best


def _candidates(bits: int, mixture: Mixture) -> Iterator[RecentralizedPowerOfTwo]:
    """The mixture's own powers of two first, so that they win a tie."""
    rounded = mixture.rounded()
    around = [
        sorted({rounding, 2.0 ** math.floor(math.log2(mean)), 2.0 ** math.ceil(math.log2(mean))})
        for mean, rounding in ((-mixture.means[0], -rounded.mean_negative), (mixture.means[1], rounded.mean_positive))
    ]
    pairs = itertools.product(*around)
    first = (-rounded.mean_negative, rounded.mean_positive)
    for negative, positive in sorted(pairs, key=lambda pair: pair != first):
        for step in sorted(_SHAPE_STEPS, key=abs):
            try:
                yield RecentralizedPowerOfTwo(bits, -negative, positive, rounded.sigma, step)
            except ValueError:  # lobes too narrow, too far apart in size, or out of float32's range
                continue


def _with_scale(number_format: RecentralizedPowerOfTwo, scale: float) -> RecentralizedPowerOfTwo | None:
    # float32, so that a file need not hold more
    try:
        return replace(number_format, scale=float(np.float32(scale)))
    except ValueError:
        return None


def _sampled(
    weight: Tensor, number_format: RecentralizedPowerOfTwo, mixture: Mixture, seed: int | torch.Generator, alpha: Alpha
) -> tuple[Tensor, RecentralizedPowerOfTwo]:
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    # Drawn on the CPU: the same numbers whatever the device of the weights.
    draws = torch.rand(weight.shape, generator=generator, device=generator.device).to(weight.device)
    component = draws < mixture.posterior(weight)
    for _ in range(_SAMPLED_ROUNDS if alpha == "fit" else 0):
        levels = number_format.quantize_assigned(weight, component).double()
        square = float(levels.square().sum())
        factor = float((weight.double() * levels).sum()) / square if square else 1.0
        scaled = _with_scale(number_format, number_format.scale * factor) if factor > 0 else None
        number_format = scaled or number_format
    return number_format.quantize_assigned(weight, component), number_format


def _reason(mixture: Mixture, possible: bool, separation: float) -> str:
    if max(mixture.weights) == 0:
        return "all weights are zero"
    if min(mixture.weights) == 0:
        return "one sign only"
    if not mixture.two_sided:
        return "no lobe on each side of zero"
    if not possible:
        return "the lobes' sizes differ too much"
    relation = ">=" if mixture.separation >= separation else "<"
    return f"separation {mixture.separation:.3g} {relation} {separation:g}"


def _quantized(weight: Tensor, number_format: NumberFormat) -> Tensor:
    """Quantise piece by piece: looking up levels takes several times the memory of what is looked up."""
    quantised = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for piece, place in zip(
        torch.split(weight.reshape(-1), _PIECE), torch.split(quantised.view(-1), _PIECE), strict=True
    ):
        place.copy_(number_format.quantize(piece))
    return quantised


def _mse(weight: Tensor, quantised: Tensor) -> float:
    number = int(torch.count_nonzero(weight))
    pieces = zip(torch.split(weight.reshape(-1), _PIECE), torch.split(quantised.reshape(-1), _PIECE), strict=True)
    error = sum(float((piece.double() - rounded.double()).square().sum()) for piece, rounded in pieces)
    return error / number if number else 0.0


def _check(bits: int, separation: float, assignment: str, alpha: str) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be an integer in [{MIN_BITS}, {MAX_BITS}], got {bits!r}")
    if not separation >= 0:
        raise ValueError(f"separation must be a number of at least 0, got {separation!r}")
    for name, value, accepted in (("assignment", assignment, ("hard", "sampled")), ("alpha", alpha, ("fit", "one"))):
        if value not in accepted:
            raise ValueError(f"{name} must be {accepted[0]!r} or {accepted[1]!r}, got {value!r}")
