"""One tensor as bytes, and back: the smallest of a few layouts, exact for every dtype, shape and bit pattern.

A tensor is positions and values. Positions are left out (dense: every element has a value), or are those of
the non-zeros, as a mask or as gaps. Values are codes of a declared number format, places in a palette of the
distinct bit patterns, or the numbers themselves. Codes and places are entropy-coded with frequencies of their
own for every tensor; a zero is a symbol like any other, at the cost of its information.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_effnn.compression import format_codes, positions, stores
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.streams import Reader
from lightning_effnn.compression.values import (
    Distinct,
    Part,
    Statistics,
    nonzeros_of,
    numbers_part,
    repeated_numbers_part,
    statistics_of,
    symbols_part,
    value_reader,
)
from lightning_effnn.formats import NumberFormat

Array = NDArray[Any]

_REPEATS = 4  # times that the values other than 0 must occur, on average, never to be rounded
_POSITIONS, _VALUES = ("dense", "mask", "gaps"), ("numbers", "palette", "codes")


@dataclass(frozen=True)
class EncodedTensor:
    """One tensor's bytes, and what they hold.

    Attributes:
        data: what :func:`decode_tensor` reads.
        layout: positions and values, such as ``"gaps+codes"``.
        format: what one value is stored as: ``"focus5"``, ``"palette18"``, ``"fp16"``.
        statistics: of the tensor as it was given.
    """

    data: bytes
    layout: str
    format: str
    statistics: Statistics


def encode_tensor(x: Tensor, number_format: NumberFormat | None = None, other: str = "fp32") -> EncodedTensor:
    """Return a tensor as bytes.

    With ``other="fp32"`` every tensor comes back bit for bit: -0.0, infinities and NaN with their payload
    included. Rounding, if asked for, is for floating-point tensors whose values other than 0 occur less than
    4 times on average, and which are not of a declared format.

    Args:
        x: dense tensor of any shape and dtype.
        number_format: how the values are stored; used if it gives back every one of them bit for bit.
        other: ``"fp32"`` for exact; ``"fp16"`` or ``"int8"`` (times a scale a tensor) to round.

    Raises:
        ValueError: ``other`` is none of these.

    >>> x = torch.tensor([0.5, 0.0, 0.0, -0.25] * 100)
    >>> encoded = encode_tensor(x)
    >>> len(encoded.data), encoded.layout, encoded.format
    (66, 'gaps+palette', 'palette2')
    >>> torch.equal(decode_tensor(encoded.data, (400,), torch.float32), x)
    True
    """
    if other not in stores.OTHERS:
        raise ValueError(f"other must be one of {', '.join(stores.OTHERS)}, got {other!r}")
    flat = x.detach().cpu().reshape(-1)
    raw = stores.bytes_of(flat)
    nonzero, distinct = nonzeros_of(raw)
    number = int(np.count_nonzero(nonzero))
    every = distinct if distinct is None or not distinct.zeros else distinct.with_zero(nonzero)
    if number_format is not None:
        occurring = flat if every is None else stores.from_bytes(every.patterns, flat.dtype)
        number_format = number_format if _holds(number_format, occurring) else None
    kept = number_format is not None or (distinct is not None and distinct.patterns.size * _REPEATS <= number)
    rounding = "fp32" if kept else other

    ways = [(Part("dense", 0.0, bytes), part) for part in _values(flat, every, rounding, number_format)]
    if number < flat.numel():
        where = min(_places(nonzero, number), key=lambda part: part.size)
        left = stores.from_bytes(raw[nonzero] if distinct is None or rounding != "fp32" else raw[:0], flat.dtype)
        ways += [(where, part) for part in _values(left, distinct, rounding, number_format)]
    where, what = min(ways, key=lambda way: way[0].size + way[1].size)
    head = _POSITIONS.index(where.kind) | _VALUES.index(what.kind) << 2 | what.store << 4
    return EncodedTensor(
        bytes([head]) + what.head + where.write() + what.write(),
        f"{where.kind}+{what.kind}",
        what.format,
        statistics_of(raw, distinct, flat.dtype),
    )


def decode_tensor(data: bytes, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the tensor that :func:`encode_tensor` was given.

    Args:
        data: its bytes.
        shape: its shape; nothing is known about the bytes before, so the caller bounds its product.
        dtype: its dtype.

    Raises:
        ArtifactError: the bytes are damaged, or of another shape or dtype.
    """
    reader, count = Reader(data), math.prod(shape)
    where, what, store = _read_head(reader)
    read_values = value_reader(reader, what, store, dtype)
    if where == "dense":
        values = read_values(count)
    else:
        places = (positions.decode_mask if where == "mask" else positions.decode_gaps)(reader, count)
        whole = np.zeros((count, dtype.itemsize), dtype=np.uint8)
        whole[places] = stores.bytes_of(read_values(places.size))
        values = stores.from_bytes(whole, dtype)
    reader.end()
    return values.reshape(tuple(shape))


def statistics(x: Tensor) -> Statistics:
    """Return what a tensor's values are like.

    >>> statistics(torch.tensor([0.0, -0.0, 1.0, 0.0]))
    Statistics(zeros=3, distinct=3, entropy_bytes=0.75)
    """
    raw = stores.bytes_of(x)
    return statistics_of(raw, nonzeros_of(raw)[1], x.dtype)


def describe(data: bytes, dtype: torch.dtype) -> tuple[str, str]:
    """Return layout and format of an encoded tensor without decoding it; what they are called in its report.

    Raises:
        ArtifactError: the bytes are damaged.
    """
    reader = Reader(data)
    where, what, store = _read_head(reader)
    if what == "codes":
        return f"{where}+{what}", str(format_codes.decode_format(reader))
    return f"{where}+{what}", f"palette{reader.varint()}" if what == "palette" else stores.store_name(store, dtype)


def _holds(number_format: NumberFormat, values: Tensor) -> bool:
    """Whether a format gives back every bit of all values."""
    if not values.is_floating_point():
        return False
    try:
        back = number_format.decode(number_format.encode(values)).to(values.dtype)
    except ValueError:  # NaN, or a format that cannot be encoded
        return False
    return bool(np.array_equal(stores.bytes_of(back), stores.bytes_of(values)))


def _values(x: Tensor, distinct: Distinct | None, rounding: str, number_format: NumberFormat | None) -> list[Part]:
    """The ways to write the values of ``x``; where they are few and exact, ``distinct`` alone is looked at."""
    if distinct is None:
        return [numbers_part(x, rounding)]
    numbers = repeated_numbers_part(distinct, x.dtype) if rounding == "fp32" else numbers_part(x, rounding)
    return [numbers, symbols_part(distinct, x.dtype, number_format)]


def _places(nonzero: Array, number: int) -> list[Part]:
    mask = positions.plan_mask(number, nonzero.size)
    parts = [Part("mask", mask.size, lambda: positions.encode_mask(nonzero, mask))]
    if number * 2 <= nonzero.size:  # where more are left, gaps are longer than a mask
        gaps = positions.plan_gaps(np.flatnonzero(nonzero), nonzero.size)
        parts.append(Part("gaps", gaps.size, lambda: positions.encode_gaps(gaps)))
    return parts


def _read_head(reader: Reader) -> tuple[str, str, int]:
    head = reader.byte()
    if head & 3 >= len(_POSITIONS) or head >> 2 & 3 >= len(_VALUES):
        raise ArtifactError(f"tensor of unknown layout {head}")
    return _POSITIONS[head & 3], _VALUES[head >> 2 & 3], head >> 4
