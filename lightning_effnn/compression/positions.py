"""Where the non-zeros of a sparse tensor are: a mask, or the distances between them.

A mask costs its entropy, but time for every zero; distances cost about the same where few are left (measured
in ``benchmarks/codec``) and take no time for zeros. Contexts such as the density of the row were tried on
pruned LeNet-5 and ResNet-20: they save 1 to 2 % of the mask before their own tables, and are not here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_effnn.compression import streams
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.streams import Reader, SymbolCode

Array = NDArray[Any]

_DETAILS = range(4)  # leading bits of a distance, after the first, that are entropy-coded


class Gaps(NamedTuple):
    """Distances, and how they are split into a symbol (magnitude and leading bits) and the bits below."""

    detail: int
    distances: Array
    alphabet: int
    code: SymbolCode
    size: float


def plan_gaps(places: Array, count: int) -> Gaps:
    """Return the smallest split of the distances between ``places``, rising positions below ``count``."""
    distances = np.diff(places, prepend=-1)
    plans = []
    for detail in _DETAILS:
        alphabet = _alphabet(count, detail)
        counts, bits = np.zeros(alphabet, dtype=np.int64), 0
        for piece in streams.pieces(distances):
            symbols, widths = _split(piece, detail)
            counts += np.bincount(symbols, minlength=alphabet)
            bits += int(widths.sum())
        code = streams.plan_symbols(counts)
        size = 1 + len(streams.varint(places.size)) + 2 + code.size + (bits + 7) // 8
        plans.append(Gaps(detail, distances, alphabet, code, size))
    return min(plans, key=lambda plan: plan.size)


def encode_gaps(plan: Gaps) -> bytes:
    """Return the number of places, and unless it is 0: detail, size, coded symbols, the bits below them."""
    number = streams.varint(plan.distances.size)
    if plan.distances.size == 0:
        return number
    split = [_split(piece, plan.detail) for piece in streams.pieces(plan.distances)]
    symbols = np.concatenate([symbols.astype(np.uint16) for symbols, _ in split])
    coded = streams.encode_symbols(symbols, plan.alphabet, plan.code)
    widths = np.concatenate([widths for _, widths in split])
    fields = streams.pack_fields(plan.distances & ((np.int64(1) << widths) - 1), widths)
    return number + bytes([plan.detail]) + streams.varint(len(coded)) + coded + fields


def decode_gaps(reader: Reader, count: int) -> Array:
    """Return the places, rising and below ``count``.

    Raises:
        ArtifactError: the bytes are damaged.

    >>> places = np.array([3, 4, 90])
    >>> decode_gaps(Reader(encode_gaps(plan_gaps(places, 100))), 100).tolist()
    [3, 4, 90]
    """
    number = reader.varint()
    if number > count // 2:  # each takes memory, and more are written as a mask
        raise ArtifactError(f"{number} distances between non-zeros of {count} elements are more than is ever written")
    if number == 0:
        return np.zeros(0, dtype=np.int64)
    detail = reader.byte()
    if detail not in _DETAILS:
        raise ArtifactError(f"no split of distances {detail}")
    coded = streams.decode_symbols(reader, reader.varint(), number, _alphabet(count, detail)).astype(np.int64)
    widths = np.maximum((coded + 1 >> detail) - 1, 0)
    extra = streams.unpack_fields(reader.take(streams.fields_size(widths)), widths)
    places = np.cumsum((coded + 1 - (widths << detail) << widths) + extra) - 1
    if places[-1] >= count:
        raise ArtifactError(f"non-zero at {places[-1]} of {count} elements")
    return places


def plan_mask(nonzeros: int, count: int) -> SymbolCode:
    """Return how a mask with so many ones is coded."""
    code = streams.plan_symbols(np.array([count - nonzeros, nonzeros]))
    return code._replace(size=code.size + 2)


def encode_mask(mask: Array, code: SymbolCode) -> bytes:
    """Return size and symbols of a mask, bool, one an element."""
    coded = streams.encode_symbols(mask.view(np.uint8), 2, code)
    return streams.varint(len(coded)) + coded


def decode_mask(reader: Reader, count: int) -> Array:
    """Return the places of the mask's ones, rising and below ``count``.

    Raises:
        ArtifactError: the bytes are damaged.
    """
    return np.flatnonzero(streams.decode_symbols(reader, reader.varint(), count, 2))


def _split(distances: Array, detail: int) -> tuple[Array, Array]:
    """Symbols of distances >= 1, and how many bits lie below each: the Elias gamma code, refined."""
    widths = np.maximum(np.frexp(distances.astype(np.float64))[1].astype(np.int64) - 1 - detail, 0)
    return (widths << detail) + (distances >> widths) - 1, widths


def _alphabet(count: int, detail: int) -> int:
    """One more than the symbol of the largest distance there can be."""
    return int(_split(np.array([max(count, 1)]), detail)[0][0]) + 1
