"""Argument checks that the formats share; every message names argument, accepted range and value."""

from __future__ import annotations

import math
import operator
import struct

from torch import Tensor

from lightning_effnn.formats._carrier import carried

MIN_SCALE = 2.0**-100
MAX_SCALE = 2.0**100
"""Range of a scale. Inside it every level of up to 16 bits, and 1 / scale, is a normal float32: none is
lost to underflow, overflow or flushed subnormals, on any device."""


def integer(name: str, value: int, low: int, high: int) -> int:
    """Return ``value`` as an ``int``, or raise unless it is an integer in [low, high]."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer in [{low}, {high}], got {value!r}")
    if not low <= number <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {number}")
    return number


def scale(name: str, value: float) -> float:
    """Return ``value`` as a ``float``, or raise unless it is in [MIN_SCALE, MAX_SCALE]."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a positive number, got {value!r}") from None
    if not MIN_SCALE <= number <= MAX_SCALE:  # also refuses NaN
        raise ValueError(f"{name} must be in [2**-100, 2**100], got {number}")
    return number


def clamped_scale(value: float) -> float:
    """Return the accepted scale nearest to ``value``; 1 where ``value`` is 0 and any scale would do."""
    return min(max(value, MIN_SCALE), MAX_SCALE) if value > 0 else 1.0


def floating(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is a floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a floating-point tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got dtype {x.dtype}")


def magnitudes(x: Tensor) -> Tensor:
    """Return ``|x|`` in float32 or float64, or raise unless ``x`` is floating, finite and not empty."""
    floating("x", x)
    if x.numel() == 0:
        raise ValueError(f"x must have at least one element to fit a format to, got shape {tuple(x.shape)}")
    result = carried(x.detach()).abs()
    if not math.isfinite(result.max().item()):
        raise ValueError("x must be finite to fit a format to, got NaN or infinity")
    return result


def float32(value: float) -> float:
    """Return the float32 nearest to ``value``."""
    return float(struct.unpack("f", struct.pack("f", value))[0])
