"""The two floating-point types all arithmetic runs in, and the layout of their bits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Carrier(NamedTuple):
    """An IEEE 754 type that torch computes in, with the integer type of the same width."""

    dtype: torch.dtype
    integer: torch.dtype
    exponent_bits: int
    mantissa_bits: int

    @property
    def bias(self) -> int:
        """What is added to an exponent before it is stored."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def infinity(self) -> int:
        """The bits of infinity: an exponent of ones; more than that is NaN."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits


FLOAT32 = Carrier(torch.float32, torch.int32, 8, 23)
FLOAT64 = Carrier(torch.float64, torch.int64, 11, 52)


def carrier_of(x: Tensor, wide: bool = False) -> Carrier:
    """Return the narrowest carrier that holds ``x`` exactly; float64 anyway if ``wide``.

    float64 is kept for tensors that need it: some devices lack it, most are slow at it.
    """
    return FLOAT64 if wide or x.dtype == torch.float64 else FLOAT32


def carried(x: Tensor) -> Tensor:
    """Return ``x`` in the narrowest carrier: 8- and 16-bit dtypes lack operators and precision."""
    return x.to(carrier_of(x).dtype)
