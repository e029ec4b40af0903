"""Powers of two: a sign and an exponent, so that multiplying is a shift."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_effnn.formats import _checks
from lightning_effnn.formats._carrier import FLOAT32, FLOAT64, Carrier, carrier_of
from lightning_effnn.formats._nearest import Keys
from lightning_effnn.formats.base import FormatKind, NumberFormat

MAX_BITS = 8
"""More bits would need exponents below float32's smallest normal number."""
_LEAST_EXPONENT, _MOST_EXPONENT = -126, 127  # float32's normal numbers


@dataclass(frozen=True)
class PowerOfTwo(NumberFormat):
    r"""Zero and signed powers of two with consecutive exponents.

    .. math:: \{0\} \cup \{\pm 2^e : e_{max} - n < e \le e_{max}\}, \qquad n = 2^{b-1} - 1

    The nearest level is taken on the linear scale; a number midway between two levels goes to the one of
    larger magnitude, so :math:`|x| = 1.5 \cdot 2^e` gives :math:`2^{e+1}` and half the smallest power
    gives that power. The top bit of a code is the sign, the rest 0 for zero and
    :math:`e - e_{max} + n` for a power; the code of minus zero, :math:`2^{b-1}`, does not exist. The
    gradient passes where :math:`|x| < 1.5 \cdot 2^{e_{max}}`.

    Args:
        bits: 2 to 8, the sign included.
        max_exponent: :math:`e_{max}`, in [2**(bits - 1) - 128, 127]: all powers are normal float32.

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if one is out of range.

    Source: Zhou et al. (2017), "Incremental Network Quantization", arXiv 1702.03044, with the unused
    codes spent on more exponents, as in Zhao et al. (2019), "Focused Quantization for Sparse CNNs",
    arXiv 1903.03046.

    >>> PowerOfTwo(4).quantize(torch.tensor([0.7, -0.8, 0.001, 5.0]))
    tensor([ 0.5000, -1.0000,  0.0000,  1.0000])
    >>> PowerOfTwo(4).exponents
    range(-6, 1)
    """

    max_exponent: int = 0
    kind: ClassVar[FormatKind] = "power_of_two"

    def __post_init__(self) -> None:
        bits = _checks.integer("bits", self.bits, 2, MAX_BITS)
        least = self._least_max_exponent(bits)
        exponent = _checks.integer("max_exponent", self.max_exponent, least, _MOST_EXPONENT)
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "max_exponent", exponent)

    @property
    def name(self) -> str:
        """``"pow2_4"``; the exponents' place is not part of it."""
        return f"pow2_{self.bits}"

    @property
    def exponents(self) -> range:
        """The exponents there are, smallest first."""
        return range(self.max_exponent - (1 << (self.bits - 1)) + 2, self.max_exponent + 1)

    def fit(self, x: Tensor) -> PowerOfTwo:
        """Return this format with the power nearest to the largest magnitude of ``x`` as its largest.

        A tensor of zeros keeps the exponents. Source: as for the class, equation 5.

        Args:
            x: floating-point tensor of any shape, finite, not empty.

        Raises:
            TypeError: if ``x`` is not a floating-point tensor.
            ValueError: if ``x`` is empty or not finite.

        >>> PowerOfTwo(4).fit(torch.tensor([-0.2, 0.1]))
        PowerOfTwo(bits=4, max_exponent=-2)
        """
        peak = _checks.magnitudes(x).max().item()
        if peak == 0:
            return self
        mantissa, exponent = math.frexp(peak)  # mantissa in [0.5, 1)
        nearest = exponent if mantissa >= 0.75 else exponent - 1
        least = self._least_max_exponent(self.bits)
        return replace(self, max_exponent=min(max(nearest, least), _MOST_EXPONENT))

    def rounder(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Keys:
        """Return what gives levels as :meth:`quantize` does, its table made once: for loops, without gradients.

        A number's level follows from its sign, its exponent and the first bit of its mantissa.

        Args:
            device, dtype: of the tensors to come.

        >>> rounder = PowerOfTwo(4).rounder(torch.device("cpu"))
        >>> rounder(torch.tensor([0.7, -0.8, 0.001]))
        tensor([ 0.5000, -1.0000,  0.0000])
        """
        carrier = FLOAT64 if dtype == torch.float64 else FLOAT32
        return Keys(self.quantize(Keys.representatives(carrier, device)), carrier)

    @staticmethod
    def _least_max_exponent(bits: int) -> int:
        return (1 << (bits - 1)) - 2 + _LEAST_EXPONENT

    def _inside(self, x: Tensor) -> Tensor:
        return x.abs() < 1.5 * 2.0**self.max_exponent

    def _round(self, x: Tensor) -> Tensor:
        """What the codes give, in a fraction of the time: on the bits, without a comparison.

        Magnitudes are in the order of their bits, and a negative number shifted by its width is all ones.
        """
        carrier = carrier_of(x)
        sign = 8 * x.element_size() - 1
        bits = x.view(carrier.integer)
        magnitude = bits & ~(-1 << sign)
        missing = (carrier.infinity - magnitude) >> sign
        kept = (_bits_of_power(self.exponents[0] - 1, carrier) - 1 - magnitude) >> sign
        # Half a unit of the exponent field carries into it from 1.5 * 2**e on.
        power = magnitude.clamp_(max=_bits_of_power(self.max_exponent, carrier)).add_(1 << (carrier.mantissa_bits - 1))
        power = power.bitwise_and_(-1 << carrier.mantissa_bits).clamp_(min=_bits_of_power(self.exponents[0], carrier))
        level = power.bitwise_or_(bits & (-1 << sign)).bitwise_and_(kept)
        quiet_nan = carrier.infinity | (1 << (carrier.mantissa_bits - 1))
        return level.bitwise_or_(missing.bitwise_and_(quiet_nan)).view(carrier.dtype)

    def _to_codes(self, x: Tensor) -> Tensor:
        carrier = carrier_of(x)
        # Half a unit of the exponent field added to the bits carries into it from 1.5 * 2**e on; it
        # also lifts half the smallest normal number, a subnormal, to the exponent above.
        magnitude = x.abs().view(carrier.integer).to(torch.int64)
        half = 1 << (carrier.mantissa_bits - 1)
        exponent = ((magnitude + half) >> carrier.mantissa_bits) - carrier.bias
        power = (exponent - self.exponents[0] + 1).clamp(max=len(self.exponents))
        # Between half of the smallest power and that power, the exponent may be one too small.
        smallest = 2.0 ** self.exponents[0]
        power = torch.where(x.abs() * 2 >= smallest, power.clamp(min=1), 0)
        return power + ((x < 0) & (power > 0)) * (1 << (self.bits - 1))

    def _from_codes(self, codes: Tensor) -> Tensor:
        sign = 1 << (self.bits - 1)
        power = codes & (sign - 1)
        biased = power + (self.exponents[0] - 1 + FLOAT32.bias)
        levels = (biased << FLOAT32.mantissa_bits).to(torch.int32).view(torch.float32)
        levels = torch.where(codes >= sign, -levels, levels)
        return torch.where(power > 0, levels, 0.0)

    def _refused(self, codes: Tensor) -> Tensor:
        return codes == 1 << (self.bits - 1)


def _bits_of_power(exponent: int, carrier: Carrier) -> int:
    """The bits of a power of two; below the normal numbers, as far as to half of the smallest."""
    return max(exponent + carrier.bias << carrier.mantissa_bits, 1 << (carrier.mantissa_bits - 1))
