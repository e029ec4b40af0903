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
    Part,
    Statistics,
    nonzeros_of,
    numbers_part,
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
    nonzeros, distinct = nonzeros_of(raw)
    every = distinct if distinct is None or not distinct.zeros else distinct.with_zero(nonzeros, flat.numel())
    if number_format is not None:
        occurring = flat if every is None else stores.from_bytes(every.patterns, flat.dtype)
        number_format = number_format if _holds(number_format, occurring) else None
    kept = number_format is not None or (distinct is not None and distinct.patterns.size * _REPEATS <= nonzeros.size)
    rounding = "fp32" if kept else other

    dense, sparse = (
        [numbers_part(flat, rounding)],
        [numbers_part(stores.from_bytes(raw[nonzeros], flat.dtype), rounding)],
    )
    if distinct is not None and every is not None:
        dense.append(symbols_part(every, flat.dtype, number_format))
        sparse.append(symbols_part(distinct, flat.dtype, number_format))
    ways = [(Part("dense", 0.0, bytes), part) for part in dense]
    if nonzeros.size < flat.numel():
        where = min(_places(nonzeros, flat.numel()), key=lambda part: part.size)
        ways += [(where, part) for part in sparse]
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


def _places(nonzeros: Array, count: int) -> list[Part]:
    mask = positions.plan_mask(nonzeros.size, count)
    parts = [Part("mask", mask.size, lambda: positions.encode_mask(nonzeros, count, mask))]
    if nonzeros.size * 2 <= count:  # where more are left, gaps are longer than a mask
        gaps = positions.plan_gaps(nonzeros, count)
        parts.append(Part("gaps", gaps.size, lambda: positions.encode_gaps(gaps)))
    return parts


def _read_head(reader: Reader) -> tuple[str, str, int]:
    head = reader.byte()
    if head & 3 >= len(_POSITIONS) or head >> 2 & 3 >= len(_VALUES):
        raise ArtifactError(f"tensor of unknown layout {head}")
    return _POSITIONS[head & 3], _VALUES[head >> 2 & 3], head >> 4
