"""A number format as a few bytes, and back: a closed set of classes and their parameters, never a name to import."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.streams import Reader, varint
from lightning_effnn.formats import (
    Binary,
    FixedPoint,
    FloatingPoint,
    NumberFormat,
    PowerOfTwo,
    RecentralizedPowerOfTwo,
    Ternary,
)

Array = NDArray[Any]


class _Class(NamedTuple):
    """A class and its parameters: i for an integer or flag, f for a number, + and - for a power of two of that sign."""

    build: Callable[..., NumberFormat]
    has_bits: bool
    parameters: dict[str, str]


# The place in this list is what a file holds: add at the end only, at most 8.
_CLASSES = (
    _Class(FixedPoint, True, {"scale": "f", "signed": "i"}),
    _Class(PowerOfTwo, True, {"max_exponent": "i"}),
    _Class(Ternary, False, {"scale": "f", "threshold": "f"}),
    _Class(Binary, False, {"scale": "f"}),
    _Class(FloatingPoint, False, {"exponent_bits": "i", "mantissa_bits": "i", "infinities": "i", "padding_bits": "i"}),
    _Class(
        RecentralizedPowerOfTwo,
        True,
        {"mean_negative": "-", "mean_positive": "+", "sigma": "+", "max_exponent": "i", "scale": "f"},
    ),
)
_CLASS_BITS = 3
_FLOAT32, _FLOAT64, _POWERS = range(3)  # in front of a number; from the last on it is a power of two
_MOST_EXPONENT = 200  # of a parameter: scales are within 2**-100 and 2**100
_LAYOUTS = {_FLOAT32: "<f", _FLOAT64: "<d"}


def encode_format(number_format: NumberFormat) -> bytes | None:
    """Return the format in bytes; ``None`` if it is of a class that files do not know.

    >>> encode_format(PowerOfTwo(4, max_exponent=-2)).hex()
    '2103'
    >>> decode_format(Reader(bytes.fromhex("2103")))
    PowerOfTwo(bits=4, max_exponent=-2)
    """
    for place, known in enumerate(_CLASSES):
        if type(number_format) is known.build:
            bits = number_format.bits if known.has_bits else 0
            pieces = [_encode(getattr(number_format, name), kind) for name, kind in known.parameters.items()]
            return varint(place | bits << _CLASS_BITS) + b"".join(pieces)
    return None


def decode_format(reader: Reader) -> NumberFormat:
    """Return the format that the next bytes describe.

    Raises:
        ArtifactError: there is no such class, or it refuses the parameters.
    """
    head = reader.varint()
    place, bits = head & ((1 << _CLASS_BITS) - 1), head >> _CLASS_BITS
    if place >= len(_CLASSES):
        raise ArtifactError(f"number format {place} is not known to this version")
    known = _CLASSES[place]
    parameters = {"bits": bits} if known.has_bits else {}
    parameters |= {name: _decode(reader, kind) for name, kind in known.parameters.items()}
    try:
        return known.build(**parameters)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"number format with parameters out of range: {error}") from error


def codes_of(number_format: NumberFormat) -> Array:
    """Return all codes that the format gives, rising, int64."""
    codes = torch.arange(1 << number_format.bits, device="cpu")
    refused = number_format._refused(codes)
    return codes.numpy() if refused is None else codes[~refused].numpy()


def _encode(value: Any, kind: str) -> bytes:
    if kind == "i":
        return varint(_zigzag(int(value)))
    number = float(value)
    mantissa, exponent = math.frexp(abs(number))
    if kind in "+-":
        return varint(_zigzag(exponent - 1))
    if mantissa == 0.5 and number > 0:
        return varint(_POWERS + _zigzag(exponent - 1))
    store = _FLOAT32 if struct.unpack("<f", struct.pack("<f", number))[0] == number else _FLOAT64
    return varint(store) + struct.pack(_LAYOUTS[store], number)


def _decode(reader: Reader, kind: str) -> Any:
    head = reader.varint()
    if kind == "i":
        return _unzigzag(head)
    if kind == "f" and head < _POWERS:
        return struct.unpack(_LAYOUTS[head], reader.take(struct.calcsize(_LAYOUTS[head])))[0]
    exponent = _unzigzag(head if kind in "+-" else head - _POWERS)
    if abs(exponent) > _MOST_EXPONENT:
        raise ArtifactError(f"number format with a parameter 2**{exponent}")
    return math.ldexp(-1.0 if kind == "-" else 1.0, exponent)


def _zigzag(value: int) -> int:
    return value * 2 if value >= 0 else -2 * value - 1


def _unzigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2
