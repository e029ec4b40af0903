"""Floating point: IEEE 754 layouts of any width, bfloat16, TensorFloat-32 and the 8-bit formats."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_effnn.formats import _checks
from lightning_effnn.formats._carrier import FLOAT32, FLOAT64, carrier_of
from lightning_effnn.formats.base import FormatKind, NumberFormat


@dataclass(frozen=True)
class FloatingPoint(NumberFormat):
    r"""A sign, an exponent and a mantissa.

    With exponent field :math:`E` of :math:`e` bits, mantissa field :math:`M` of :math:`m` bits and bias
    :math:`\beta = 2^{e-1} - 1`:

    .. math:: \pm 2^{E - \beta} (1 + M / 2^m) \text{ for } E > 0, \qquad
              \pm 2^{1 - \beta} M / 2^m \text{ for } E = 0 \text{ (subnormal)}

    Rounding is to nearest, ties to even. Both zeros exist and keep their sign. Codes are the bit
    patterns; NaN keeps its sign and the leading bits of its payload.

    With infinities an exponent of ones is infinity or NaN, as IEEE 754 has it, numbers too large become
    infinite and the gradient is the identity everywhere, all as in torch's casts. Without, only the
    pattern of ones is NaN, and what is too large, infinity included, saturates at :attr:`max_value` with
    gradient zero. (OCP allows saturation and NaN; torch's cast to ``float8_e4m3fn`` gives NaN, which
    would turn one outlier into a lost run.)

    Args:
        exponent_bits: 2 to 11.
        mantissa_bits: 1 to 52, the leading one not counted.
        infinities: whether there are infinities; ``False`` is for at most 7 exponent bits.
        padding_bits: zero bits stored after the mantissa, 0 to 32, at most 64 bits in all.

    Raises:
        TypeError: if a number of bits is not an integer.
        ValueError: if one is out of range.

    Source: IEEE 754-2019, section 3.4; Micikevicius et al. (2022), "FP8 Formats for Deep Learning",
    arXiv 2209.05433, and "OCP 8-bit Floating Point Specification (OFP8)", revision 1.0, for 8 bits.

    >>> FP8_E4M3.quantize(torch.tensor([1.07, -1000.0]))
    tensor([   1.1250, -448.0000])
    >>> FP16.encode(torch.tensor([1.0, -0.0]))
    tensor([15360, 32768], dtype=torch.int32)
    >>> FloatingPoint(3, 2).name, FloatingPoint(3, 2).max_value
    ('fp6_e3m2', 14.0)
    """

    bits: int = field(init=False, repr=False)
    exponent_bits: int
    mantissa_bits: int
    infinities: bool = True
    padding_bits: int = 0
    kind: ClassVar[FormatKind] = "float"
    _stores_nan: ClassVar[bool] = True

    def __post_init__(self) -> None:
        most_exponent_bits = 11 if self.infinities else 7
        exponent = _checks.integer("exponent_bits", self.exponent_bits, 2, most_exponent_bits)
        mantissa = _checks.integer("mantissa_bits", self.mantissa_bits, 1, 52)
        padding = _checks.integer("padding_bits", self.padding_bits, 0, min(32, 63 - exponent - mantissa))
        object.__setattr__(self, "bits", 1 + exponent + mantissa + padding)

    @property
    def name(self) -> str:
        """``"fp32"``, ``"bf16"``; unnamed layouts read ``"fp6_e3m2"``, with ``"fn"`` for no infinities."""
        if self in _NAMES:
            return _NAMES[self]
        # OCP calls its format without infinities plain E4M3, so the IEEE one has to say what it is.
        suffix = "_ieee" if (self.bits, self.exponent_bits, self.mantissa_bits) == (8, 4, 3) else ""
        suffix = suffix if self.infinities else "fn"
        return f"fp{self.bits}_e{self.exponent_bits}m{self.mantissa_bits}{suffix}"

    @property
    def bias(self) -> int:
        """What is added to an exponent before it is stored."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def max_value(self) -> float:
        """The largest finite number."""
        if self.infinities:
            return math.ldexp(2 - 2.0**-self.mantissa_bits, self.bias)
        return math.ldexp(2 - 2.0 ** (1 - self.mantissa_bits), self.bias + 1)

    @property
    def min_normal(self) -> float:
        """The smallest positive number with a full mantissa."""
        return math.ldexp(1.0, 1 - self.bias)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the nearest level of every element; ``x`` itself if its dtype is part of this format.

        Shapes, gradient and errors are those of :meth:`NumberFormat.quantize`.

        >>> BF16.quantize(torch.tensor([3.14159]))
        tensor([3.1406])
        """
        _checks.floating("x", x)
        # Every value of a dtype with no more exponent and mantissa is a value of this format.
        given = _LAYOUTS.get(x.dtype)
        contained = given and given[0] <= self.exponent_bits and given[1] <= self.mantissa_bits
        return x if contained and self.infinities else super().quantize(x)

    @property
    def _wide(self) -> bool:
        return self.exponent_bits > FLOAT32.exponent_bits or self.mantissa_bits > FLOAT32.mantissa_bits

    def _round(self, x: Tensor) -> Tensor:
        carrier = carrier_of(x, self._wide)
        value = x.to(carrier.dtype)
        magnitude = value.abs()
        rounded = magnitude
        shift = carrier.mantissa_bits - self.mantissa_bits
        if shift:
            # On the bits: just under half a unit, one more if the last kept bit is odd, then cut. A
            # carry out of the mantissa raises the exponent, which is what rounding up has to do.
            pattern = magnitude.view(carrier.integer)
            pattern = pattern + ((1 << (shift - 1)) - 1) + ((pattern >> shift) & 1)
            rounded = (pattern >> shift << shift).view(carrier.dtype)
        if self.exponent_bits < carrier.exponent_bits:
            # Below the smallest normal number the step stays what it is there.
            steps = torch.round(magnitude * self._steps_per_unit)
            rounded = torch.where(magnitude < self.min_normal, steps / self._steps_per_unit, rounded)
            largest = torch.inf if self.infinities else self.max_value
            rounded = torch.where(rounded > self.max_value, largest, rounded)
        return torch.where(value.isnan(), value, torch.copysign(rounded, value))

    def _inside(self, x: Tensor) -> Tensor | None:
        if self.infinities:
            return None
        # The last mantissa is even (of ones is NaN), so half a step beyond still rounds down to it.
        half_step = math.ldexp(1.0, self.bias - self.mantissa_bits)
        return x.to(carrier_of(x, self._wide).dtype).abs() <= self.max_value + half_step

    @property
    def _steps_per_unit(self) -> float:
        return 2.0**self.mantissa_bits / self.min_normal

    def _to_codes(self, x: Tensor) -> Tensor:
        carrier = carrier_of(x, self._wide)
        value = self._round(x)
        magnitude = value.abs()
        m = self.mantissa_bits
        pattern = magnitude.view(carrier.integer).to(torch.int64) >> (carrier.mantissa_bits - m)
        codes = pattern - ((carrier.bias - self.bias) << m)
        if self.exponent_bits < carrier.exponent_bits:
            small = magnitude < self.min_normal
            steps = torch.where(small, magnitude, 0.0) * self._steps_per_unit
            codes = torch.where(small, steps.to(torch.int64), codes)
        ones = (1 << (self.exponent_bits + m)) - 1
        if self.infinities:
            infinity = ones >> m << m
            payload = pattern & ((1 << m) - 1)
            payload = torch.where(payload > 0, payload, 1 << (m - 1))  # a payload of zero is infinity
            codes = torch.where(value.isinf(), infinity, codes)
            codes = torch.where(value.isnan(), infinity | payload, codes)
        else:
            codes = torch.where(value.isnan(), ones, codes)
        sign = value.signbit().to(torch.int64) << (self.exponent_bits + m)
        return (codes | sign) << self.padding_bits

    def _from_codes(self, codes: Tensor) -> Tensor:
        carrier = FLOAT64 if self._wide else FLOAT32
        m = self.mantissa_bits
        codes = codes >> self.padding_bits
        ones = (1 << (self.exponent_bits + m)) - 1
        magnitude = codes & ones
        shift = carrier.mantissa_bits - m
        pattern = (magnitude << shift) + ((carrier.bias - self.bias) << carrier.mantissa_bits)
        if self.infinities:
            special = carrier.infinity | ((magnitude & ((1 << m) - 1)) << shift)
            pattern = torch.where(magnitude >= ones >> m << m, special, pattern)
        else:
            quiet_nan = carrier.infinity | (1 << (carrier.mantissa_bits - 1))
            pattern = torch.where(magnitude == ones, quiet_nan, pattern)
        value = pattern.to(carrier.integer).view(carrier.dtype)
        if self.exponent_bits < carrier.exponent_bits:
            small = magnitude.to(carrier.dtype) / self._steps_per_unit
            value = torch.where(magnitude < 1 << m, small, value)
        return torch.where((codes >> (self.exponent_bits + m)) & 1 > 0, -value, value)

    def _refused(self, codes: Tensor) -> Tensor | None:
        return (codes & ((1 << self.padding_bits) - 1)) != 0 if self.padding_bits else None


FP64 = FloatingPoint(11, 52)
FP32 = FloatingPoint(8, 23)
TF32 = FloatingPoint(8, 10, padding_bits=13)
"""NVIDIA's TensorFloat-32: kept in memory as fp32, so it takes 32 bits; 19 of them are multiplied."""
BF16 = FloatingPoint(8, 7)
FP16 = FloatingPoint(5, 10)
FP8_E4M3 = FloatingPoint(4, 3, infinities=False)
FP8_E5M2 = FloatingPoint(5, 2)

_NAMES = {FP64: "fp64", FP32: "fp32", TF32: "tf32", BF16: "bf16", FP16: "fp16", FP8_E4M3: "fp8_e4m3"}
_LAYOUTS = {
    torch.float64: (11, 52),
    torch.float32: (8, 23),
    torch.bfloat16: (8, 7),
    torch.float16: (5, 10),
    torch.float8_e4m3fn: (5, 3),  # its top exponent, 8, is beyond four bits with infinities
    torch.float8_e5m2: (5, 2),
}
