"""Which scale loses least: the range of a tensor that minimises the squared error of rounding."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SCALE, MAX_SCALE = 2.0**-100, 2.0**100
"""What the formats accept as a scale."""

_SAMPLES = 1 << 13
_SAMPLES_PER_CHANNEL = 1 << 9
_MOST_SAMPLES = 1 << 18
_COARSE = tuple(2.0**-e for e in range(9))
_FINE = tuple(2.0 ** (e / 4) for e in (0, -3, -2, -1, 1, 2, 3))


def channels_first(x: Tensor, axis: int | None) -> Tensor:
    """Return ``x`` as one row for each scale, [1, n] without an axis.

    >>> channels_first(torch.zeros(2, 3, 4), 1).shape
    torch.Size([3, 8])
    """
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)


def least_error_scale(rows: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    r"""Return the step for each row with which the levels low to high lose least.

    .. math:: s^* = \arg\min_{s = c\, s_{max}} \sum_i (s\, \mathrm{clamp}(\mathrm{round}(x_i / s), l, h) - x_i)^2

    where :math:`s_{max}` is the smallest step that clips nothing and c runs over powers of 2 down to 1/256, then
    over quarters of an octave around the best. The error is that of an evenly spaced sample (8192 of a tensor; at
    least 512 a row where there are several), which bounds the cost, and of the two extremes of all elements.

    Args:
        rows: [rows, n] finite, floating point, n > 0.
        low, high: the smallest and the largest integer, low <= 0 < high.

    Returns:
        Steps, float32 [rows], 1 where a row has no value to scale; and where there was one, bool [rows].

    Source: the grid is that of Banner et al. (2019), "Post training 4-bit quantization of convolutional networks
    for rapid-deployment", NeurIPS, section 2, with the error of the data instead of a Laplace distribution's.

    >>> steps, found = least_error_scale(torch.tensor([[-1.0, 0.5, 7.0], [0.0, 0.0, 0.0]]), -8, 7)
    >>> steps, found
    (tensor([1., 1.]), tensor([ True, False]))
    """
    least, most = rows.amin(1), rows.amax(1)  # aminmax takes twenty times as long
    largest = torch.fmax(most / high, least / low) if low else most / high
    found = largest > 0
    largest = torch.where(found, largest.clamp(MIN_SCALE, MAX_SCALE), 1.0)
    sample, extremes = _sample(rows), torch.stack((least, most), 1)
    best = largest
    for factors in (_COARSE, _FINE):
        steps = torch.fmin(best * best.new_tensor(factors).unsqueeze(1), largest).clamp_(min=MIN_SCALE)
        errors = _errors(sample, steps, low, high)
        if sample.shape != rows.shape:  # a sample misses a few far elements, which are what clipping is about
            errors += _errors(extremes, steps, low, high) * (2 / rows.shape[1])
        best = steps.gather(0, errors.argmin(0, keepdim=True)).squeeze(0)
    return best.float(), found


def mean_magnitude(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale for each row with which its signs lose least: the mean magnitude.

    Args and results are those of :func:`least_error_scale`.

    Source: Rastegari et al. (2016), "XNOR-Net", arXiv 1603.05279, section 3.1.

    >>> mean_magnitude(torch.tensor([[-3.0, 1.0]]))
    (tensor([2.]), tensor([True]))
    """
    means = rows.abs().mean(1)
    found = means > 0
    return torch.where(found, means.clamp(MIN_SCALE, MAX_SCALE), 1.0).float(), found


def _errors(sample: Tensor, steps: Tensor, low: int, high: int) -> Tensor:
    """Squared errors [candidates, rows] of the sample [rows, n] with each of the steps [candidates, rows]."""
    wide = steps.unsqueeze(2)
    levels = (sample * (1.0 / wide)).round_().clamp_(low, high).mul_(wide)
    return levels.sub_(sample).square_().mean(2)


def _sample(rows: Tensor) -> Tensor:
    count, n = rows.shape
    wanted = _SAMPLES if count == 1 else max(_SAMPLES_PER_CHANNEL, _MOST_SAMPLES // count)
    stride = -(-n // wanted)
    # An odd stride doesn't keep step with axes of even length, so all channels and positions have their share.
    return rows[:, :: stride + 1 - stride % 2].contiguous()
