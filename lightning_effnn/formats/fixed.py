"""Fixed point: integers times a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_effnn.formats import _checks
from lightning_effnn.formats._carrier import carried, carrier_of
from lightning_effnn.formats.base import FormatKind, NumberFormat

MAX_BITS = 64
MAX_CODED_BITS = 32
"""Wider integers are priced (indices, accumulators), not computed with: float64 does not hold them."""
_FLOAT32_BITS = 16
"""Up to here float32 arithmetic finds every integer again after scaling by any number."""


@dataclass(frozen=True, init=False)
class FixedPoint(NumberFormat):
    r"""Integers of a given width, times a scale.

    .. math:: Q(x) = s \cdot \mathrm{clamp}(\mathrm{round}(x / s), l, h)

    with :math:`[l, h] = [-2^{b-1}, 2^{b-1} - 1]` signed and :math:`[0, 2^b - 1]` unsigned; ties go to the
    even integer, codes are two's complement. Without fraction bits or a scale the numbers are plain
    integers, ``s = 1``; :meth:`fit` takes the scale from data. A learned or per-channel scale stays
    outside: ``FixedPoint(8).quantize(x / scale) * scale`` has a gradient for it.

    For up to 16 bits levels are float32 and :math:`x / s` is computed as ``x * (1 / s)`` in the precision
    of ``x`` (at least float32), as ``torch.fake_quantize_per_tensor_affine`` does: a scale that is no
    power of two can move a tie by one unit in the last place. Above 16 bits all is float64.

    Args:
        bits: 1 to 64. One signed bit is {-s, 0}. Formats above 32 bits have a width and a name only;
            ``quantize``, ``encode`` and ``decode`` refuse them.
        fraction_bits: :math:`s = 2^{-f}`, f in [-100, 100]; not together with ``scale``.
        scale: :math:`s`, in [2**-100, 2**100].
        signed: whether there are negative numbers.

    Raises:
        TypeError: if ``bits`` or ``fraction_bits`` is not an integer, or ``scale`` not a number.
        ValueError: if one is out of range, or both ``fraction_bits`` and ``scale`` are given.

    Source: Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", arXiv 1712.05877, with zero point 0.

    >>> q4_4 = FixedPoint(8, fraction_bits=4)
    >>> q4_4.quantize(torch.tensor([0.1, -3.0, 100.0]))
    tensor([ 0.1250, -3.0000,  7.9375])
    >>> str(q4_4), q4_4 == FixedPoint(8, scale=0.0625), str(FixedPoint(4, signed=False))
    ('int8', True, 'uint4')
    """

    scale: float
    signed: bool
    kind: ClassVar[FormatKind] = "fixed"

    def __init__(
        self, bits: int, fraction_bits: int | None = None, scale: float | None = None, signed: bool = True
    ) -> None:
        # Written out so that ``scale`` is a number once built, however it was given.
        if fraction_bits is not None and scale is not None:
            raise ValueError(f"give fraction_bits or scale, not both, got fraction_bits={fraction_bits}, scale={scale}")
        if fraction_bits is not None:
            scale = 2.0 ** -_checks.integer("fraction_bits", fraction_bits, -100, 100)
        object.__setattr__(self, "bits", _checks.integer("bits", bits, 1, MAX_BITS))
        object.__setattr__(self, "scale", _checks.scale("scale", 1.0 if scale is None else scale))
        object.__setattr__(self, "signed", bool(signed))

    @property
    def name(self) -> str:
        """``"int8"``, ``"uint4"``; the scale is not part of it."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def fraction_bits(self) -> int | None:
        """:math:`-\\log_2` of the scale; ``None`` if the scale is not a power of two."""
        mantissa, exponent = math.frexp(self.scale)
        return 1 - exponent if mantissa == 0.5 else None

    @property
    def integer_range(self) -> tuple[int, int]:
        """The smallest and the largest integer, before scaling."""
        if self.signed:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1

    def fit(self, x: Tensor) -> FixedPoint:
        """Return this format with the scale that puts the largest element on the largest integer.

        Signed formats take the largest magnitude, unsigned ones the largest value, below which negative
        elements saturate at 0. A tensor without such an element gives scale 1.

        Args:
            x: floating-point tensor of any shape, finite, not empty.

        Raises:
            TypeError: if ``x`` is not a floating-point tensor.
            ValueError: if ``x`` is empty or not finite.

        >>> FixedPoint(4).fit(torch.tensor([-3.5, 1.0]))
        FixedPoint(bits=4, scale=0.5, signed=True)
        """
        largest_magnitude = _checks.magnitudes(x).max()  # checks x too
        peak = float(largest_magnitude if self.signed else carried(x.detach()).max())
        _, high = self.integer_range
        return replace(self, scale=_checks.clamped_scale(peak / max(high, 1)))

    def _integers(self, x: Tensor) -> Tensor:
        """The nearest integers before clamping, as floating-point numbers."""
        self._refuse_wide()
        carrier = carrier_of(x, wide=self.bits > _FLOAT32_BITS)
        return torch.round(x.to(carrier.dtype) * (1.0 / self.scale))

    def _round(self, x: Tensor) -> Tensor:
        return self._scaled(self._integers(x).clamp(*self.integer_range))

    def _inside(self, x: Tensor) -> Tensor:
        integers = self._integers(x)
        low, high = self.integer_range
        return (integers >= low) & (integers <= high)

    def _to_codes(self, x: Tensor) -> Tensor:
        integers = self._integers(x).clamp(*self.integer_range).to(torch.int64)
        return integers & ((1 << self.bits) - 1)

    def _from_codes(self, codes: Tensor) -> Tensor:
        self._refuse_wide()
        _, high = self.integer_range
        return self._scaled(torch.where(codes > high, codes - (1 << self.bits), codes))

    def _scaled(self, integers: Tensor) -> Tensor:
        dtype = torch.float64 if self.bits > _FLOAT32_BITS else torch.float32
        return (integers.to(dtype) + 0.0) * self.scale  # + 0.0 turns -0.0 into the one zero there is

    def _refuse_wide(self) -> None:
        if self.bits > MAX_CODED_BITS:
            raise ValueError(f"bits must be at most {MAX_CODED_BITS} to quantize, encode or decode, got {self.bits}")
