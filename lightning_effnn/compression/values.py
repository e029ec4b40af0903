"""The values of a tensor, ready to be written: as numbers, as places in a palette, as codes of a format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_effnn.compression import format_codes, stores, streams
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.streams import Reader
from lightning_effnn.formats import NumberFormat

Array = NDArray[Any]

MOST_CODES = 4096
"""Most distinct values of a palette besides 0, and codes of a number format."""
_MOST_CODE_BITS = 12
_SAMPLE = 1 << 16  # elements looked at first to see that a tensor has more distinct values
_WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Statistics(NamedTuple):
    """What a tensor's values are like.

    Attributes:
        zeros: elements that are 0.
        distinct: distinct bit patterns; ``None`` for more than 4096 besides 0.
        entropy_bytes: zero-order entropy of the elements, zeros included; their plain size if ``distinct`` is
            ``None``.
    """

    zeros: int
    distinct: int | None
    entropy_bytes: float


class Part(NamedTuple):
    """A way to write positions or values: about how many bytes, and the writing; values have a head in front."""

    kind: str
    size: float
    write: Callable[[], bytes]
    head: bytes = b""
    store: int = 0
    format: str = ""


class Distinct(NamedTuple):
    """The bit patterns that occur among some elements, in rising order.

    Attributes:
        patterns: unsigned integers.
        counts: how often each occurs.
        places: gives for each element which it is, uint16; an array as large as that is only made to be written.
        zeros: elements of the tensor that are not among them, being 0.
    """

    patterns: Array
    counts: Array
    places: Callable[[], Array]
    zeros: int

    def with_zero(self, nonzero: Array) -> Distinct:
        """Zero put first, and all elements of the tensor, of which ``nonzero`` says whether they were among them."""

        def places() -> Array:
            every = np.zeros(nonzero.size, dtype=np.uint16)
            every[nonzero] = self.places() + np.uint16(1)
            return every

        patterns = np.concatenate([np.zeros(1, self.patterns.dtype), self.patterns])
        return Distinct(patterns, np.append(self.zeros, self.counts), places, 0)


def _patterns(raw: Array) -> Array:
    """Each element's bits as one unsigned integer."""
    return raw.reshape(-1).view(_WIDTHS[raw.shape[1]])


def nonzeros_of(raw: Array) -> tuple[Array, Distinct | None]:
    """Whether bits are set, bool for each element, and the patterns there; ``None`` if too many, or of 16 bytes."""
    if raw.shape[1] not in _WIDTHS:
        return np.asarray(raw.any(axis=1)), None
    patterns = _patterns(raw)
    nonzero = patterns != 0
    known = _few_patterns(patterns)
    if known is None:
        return nonzero, None
    kept = [np.searchsorted(known, piece[piece != 0]).astype(np.uint16) for piece in streams.pieces(patterns)]
    places = np.concatenate([np.zeros(0, np.uint16), *kept])
    counts = streams.count_symbols(places, known.size)
    return nonzero, Distinct(known, counts, lambda: places, raw.shape[0] - places.size)


def _few_patterns(patterns: Array) -> Array | None:
    """The patterns other than 0 that occur, rising; ``None`` for more than a palette may have."""
    known = np.unique(patterns[:: patterns.size // _SAMPLE + 1])
    for piece in streams.pieces(patterns):
        if known.size > MOST_CODES + 1:
            return None
        nearest = known[np.minimum(np.searchsorted(known, piece), known.size - 1)]
        known = np.union1d(known, piece[nearest != piece])
    known = known[known != 0]
    return None if known.size > MOST_CODES else known


def statistics_of(raw: Array, distinct: Distinct | None, dtype: torch.dtype) -> Statistics:
    """Describe a tensor of which bytes and distinct patterns are at hand."""
    if distinct is None:
        return Statistics(
            sum(int(_are_zero(piece, dtype).sum()) for piece in streams.pieces(raw)), None, float(raw.size)
        )
    bytes_ = distinct.patterns.view(np.uint8).reshape(-1, raw.shape[1])
    zeros = distinct.zeros + int(distinct.counts[_are_zero(bytes_, dtype)].sum())
    counts = np.append(distinct.counts, distinct.zeros)
    counts = counts[counts > 0].astype(np.float64)
    entropy = float((counts * np.log2(counts.sum() / counts)).sum() / 8)
    return Statistics(zeros, counts.size, entropy)


def _are_zero(raw: Array, dtype: torch.dtype) -> Array:
    """Which elements, of shape (elements, width), are 0 or -0.0."""
    if not dtype.is_floating_point or raw.size == 0:
        return np.asarray(~raw.any(axis=1))
    return np.asarray(~raw[:, :-1].any(axis=1) & (raw[:, -1] & 127 == 0))


def numbers_part(values: Tensor, rounding: str) -> Part:
    """Values, shape (elements,), as numbers, rounded if that is asked for and does no harm."""
    stored = None if rounding == "fp32" else stores.store_rounded(values, rounding)
    stored = stored or stores.store_exactly(values)
    planes = stores.plan_planes(stored.raw)
    size = planes.size + len(stored.scale)
    return Part("numbers", size, lambda: stores.encode_numbers(stored, planes), b"", stored.store, stored.name)


def repeated_numbers_part(distinct: Distinct, dtype: torch.dtype) -> Part:
    """What :func:`numbers_part` gives for elements of few values, without going through all of them."""
    stored = stores.store_exactly(stores.from_bytes(distinct.patterns, dtype))
    planes = stores.plan_planes(stored.raw, distinct.counts)

    def write() -> bytes:
        return stores.encode_numbers(stored._replace(raw=stored.raw[distinct.places()]), planes)

    return Part("numbers", planes.size, write, b"", stored.store, stored.name)


def symbols_part(distinct: Distinct, dtype: torch.dtype, number_format: NumberFormat | None) -> Part:
    """Codes of the format if there is one that files know, places in the palette if not."""
    values = stores.from_bytes(distinct.patterns, dtype)
    described = None if number_format is None else format_codes.encode_format(number_format)
    if described is not None and number_format is not None and number_format.bits <= _MOST_CODE_BITS:
        valid = format_codes.codes_of(number_format)
        symbols = np.searchsorted(valid, number_format.encode(values).numpy()).astype(np.uint16)
        kind, name, head, store, alphabet = "codes", str(number_format), described, 0, valid.size
    else:
        stored, alphabet = stores.store_exactly(values), values.numel()
        symbols = np.arange(alphabet, dtype=np.uint16)
        kind, name, store = "palette", f"palette{alphabet}", stored.store
        head = streams.varint(alphabet) + stored.raw.tobytes()
    if kind == "palette" and alphabet <= 1:
        return Part(kind, len(head), bytes, head, store, name)
    counts = np.zeros(alphabet, dtype=np.int64)
    counts[symbols] = distinct.counts
    code = streams.plan_symbols(counts)
    size = len(head) + code.size
    return Part(
        kind, size, lambda: streams.encode_symbols(symbols[distinct.places()], alphabet, code), head, store, name
    )


def value_reader(reader: Reader, kind: str, store: int, dtype: torch.dtype) -> Callable[[int], Tensor]:
    """Read the head of the values; return what reads so many of them, later."""
    if kind == "numbers":
        return lambda count: stores.decode_numbers(reader, store, count, dtype)
    if dtype.itemsize not in _WIDTHS:
        raise ArtifactError(f"a tensor of {dtype} has neither palette nor codes")
    table = _read_palette(reader, store, dtype) if kind == "palette" else _read_levels(reader, dtype)

    def read(count: int) -> Tensor:
        if table.numel() == 0 and count > 0:
            raise ArtifactError(f"palette without values for {count} elements")
        few = kind == "palette" and table.numel() <= 1
        symbols = (
            np.zeros(count, np.uint16) if few else streams.decode_symbols(reader, reader.left, count, table.numel())
        )
        return stores.from_bytes(_patterns(stores.bytes_of(table))[symbols], dtype)

    return read


def _read_palette(reader: Reader, store: int, dtype: torch.dtype) -> Tensor:
    number = reader.varint()
    if number > MOST_CODES + 1:
        raise ArtifactError(f"palette of {number} values")
    return stores.decode_plain(reader, store, number, dtype)


def _read_levels(reader: Reader, dtype: torch.dtype) -> Tensor:
    number_format = format_codes.decode_format(reader)
    if number_format.bits > _MOST_CODE_BITS or not dtype.is_floating_point:
        raise ArtifactError(f"codes of {number_format} in a tensor of {dtype}")
    return number_format.decode(torch.from_numpy(format_codes.codes_of(number_format))).to(dtype)
