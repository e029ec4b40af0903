"""Ternary: sign or zero, times a scale."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_effnn.formats import _checks
from lightning_effnn.formats.base import FormatKind, NumberFormat

_TWN_THRESHOLD = 0.7
"""Threshold over mean magnitude that Li et al. derive, section 2.2."""


@dataclass(frozen=True, init=False)
class Ternary(NumberFormat):
    r"""Three levels, :math:`\{-s, 0, +s\}`, in two bits: code 0 is zero, 1 is plus, 3 is minus.

    .. math:: Q(x) = s \cdot \mathrm{sign}(x) \text{ if } |x| > t \text{, else } 0

    The default threshold :math:`t = s / 2` gives the nearest level, ties to zero. The gradient passes
    where :math:`|x| \le 1.5 s`, half a step beyond the last level.

    Args:
        scale: :math:`s`, in [2**-100, 2**100].
        threshold: :math:`t`, in [0, s) as float32 numbers, so that every level is its own nearest.

    Raises:
        TypeError: if ``scale`` or ``threshold`` is not a number.
        ValueError: if one is out of range.

    Source: Li, Zhang and Liu (2016), "Ternary Weight Networks", arXiv 1605.04711.

    >>> Ternary(0.5).quantize(torch.tensor([0.2, -0.3, 7.0]))
    tensor([ 0.0000, -0.5000,  0.5000])
    >>> Ternary(0.5, threshold=0.1).encode(torch.tensor([0.2, -0.3, 0.05]))
    tensor([1, 3, 0], dtype=torch.uint8)
    """

    bits: int = field(init=False, default=2, repr=False)
    scale: float = 1.0
    threshold: float = 0.5
    kind: ClassVar[FormatKind] = "ternary"

    def __init__(self, scale: float = 1.0, threshold: float | None = None) -> None:
        # Written out because the default threshold depends on the scale.
        scale = _checks.scale("scale", scale)
        try:
            threshold = scale / 2 if threshold is None else float(threshold)
        except (TypeError, ValueError):
            raise TypeError(f"threshold must be a number in [0, scale), got {threshold!r}") from None
        if not (0 <= threshold < scale and _checks.float32(threshold) < _checks.float32(scale)):
            raise ValueError(f"threshold must be in [0, scale) = [0, {scale}), got {threshold}")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "threshold", threshold)

    @property
    def name(self) -> str:
        """``"ternary"``; scale and threshold are not part of it."""
        return "ternary"

    def fit(self, x: Tensor) -> Ternary:
        r"""Return the ternary format that approximately minimises the squared error on ``x``.

        .. math:: t = 0.7 \, \mathrm{mean}|x|, \qquad s = \mathrm{mean}\{|x| : |x| > t\}

        A tensor of zeros gives scale 1. Source: as for the class, section 2.2.

        Args:
            x: floating-point tensor of any shape, finite, not empty.

        Raises:
            TypeError: if ``x`` is not a floating-point tensor.
            ValueError: if ``x`` is empty, not finite, or beyond the accepted scales.

        >>> Ternary().fit(torch.tensor([-3.0, 1.0, 0.0, 0.0]))
        Ternary(scale=2.0, threshold=0.7)
        """
        magnitude = _checks.magnitudes(x)
        mean = magnitude.mean().item()
        if mean == 0:
            return Ternary()
        threshold = _TWN_THRESHOLD * mean
        kept = magnitude[magnitude > threshold]
        return Ternary(_checks.clamped_scale(kept.mean().item()), threshold)

    def _inside(self, x: Tensor) -> Tensor:
        return x.abs() <= 1.5 * self.scale

    def _to_codes(self, x: Tensor) -> Tensor:
        large = x.abs() > _checks.float32(self.threshold)
        return torch.where(x < 0, 3, 1) * large

    def _from_codes(self, codes: Tensor) -> Tensor:
        return torch.where(codes == 3, -1, codes).to(torch.float32) * self.scale

    def _refused(self, codes: Tensor) -> Tensor:
        return codes == 2
