"""Small pieces that the codec writes: integers, bit fields, frequency tables, and coded symbols with their table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_effnn.compression import rans
from lightning_effnn.compression.errors import ArtifactError

Array = NDArray[Any]

PIECE = 1 << 20
"""Elements worked on at once: what is in between takes more memory than the tensor itself, by several times."""
_MOST_VARINT_BYTES = 9  # 63 bits
_ONE_SYMBOL = 15  # in place of a number of lanes, of which there are 13
_ORDERS = 8
_HEAD_BYTES = 1.5  # lanes and precision; the table's last byte is half empty on average
_MOST_GOLOMB_BITS = 40  # an exponential Golomb number of up to 2**16


class Reader:
    """Bytes read in order; running out of them is an :class:`ArtifactError`.

    >>> reader = Reader(bytes([172, 2, 7]))
    >>> reader.varint(), reader.byte(), reader.left
    (300, 7, 0)
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if not 0 <= size <= self.left:
            raise ArtifactError(f"stream ends early: {size} bytes wanted, {self.left} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next integer >= 0, seven bits a byte, lowest first, the top bit set where more follow."""
        value = 0
        for i in range(_MOST_VARINT_BYTES):
            byte = self.byte()
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value
        raise ArtifactError("stream holds an integer of more than 63 bits")

    def end(self) -> None:
        """Raise unless everything has been read."""
        if self.left:
            raise ArtifactError(f"stream has {self.left} bytes too many")


def varint(value: int) -> bytes:
    """Return an integer >= 0 as :meth:`Reader.varint` reads it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def pieces(values: Array) -> Iterator[Array]:
    """Views of an array, in order, along its first axis.

    >>> [piece.size for piece in pieces(np.zeros(PIECE + 3))]
    [1048576, 3]
    """
    return (values[first : first + PIECE] for first in range(0, values.shape[0], PIECE))


def count_symbols(symbols: Array, alphabet: int) -> Array:
    """Return how often each symbol in [0, alphabet) occurs, int64.

    >>> count_symbols(np.array([2, 0, 2], dtype=np.uint8), 4).tolist()
    [1, 0, 2, 0]
    """
    counts = np.zeros(alphabet, dtype=np.int64)
    for piece in pieces(symbols):  # bincount would copy all of them to int64
        counts += np.bincount(piece, minlength=alphabet)
    return counts


def pack_fields(values: Array, widths: Array) -> bytes:
    """Return ``values[i]`` in ``widths[i]`` bits each, highest bit first, one after the other.

    >>> pack_fields(np.array([1, 5]), np.array([1, 3])).hex(), unpack_fields(b"\\xd0", np.array([1, 3])).tolist()
    ('d0', [1, 5])
    """
    bits = []
    for numbers, places in zip(pieces(values), pieces(widths), strict=True):
        owner, shift = _bits_of(places)
        bits.append((numbers[owner] >> shift & 1).astype(np.uint8))
    return np.packbits(np.concatenate([np.zeros(0, np.uint8), *bits])).tobytes()


def unpack_fields(data: bytes, widths: Array) -> Array:
    """Return what :func:`pack_fields` was given, int64; ``data`` has to be of exactly that length."""
    if len(data) != fields_size(widths):
        raise ArtifactError(f"bit fields take {fields_size(widths)} bytes, found {len(data)}")
    owner, shift = _bits_of(widths)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=owner.size).astype(np.int64)
    values = np.zeros(widths.size, dtype=np.int64)
    np.add.at(values, owner, bits << shift)
    return values


def fields_size(widths: Array) -> int:
    """Bytes that fields of these widths take together."""
    return (int(widths.sum()) + 7) // 8


class SymbolCode(NamedTuple):
    """How a run of symbols is coded: its frequencies, and the bytes it takes with their table."""

    frequencies: Array
    size: float


def plan_symbols(counts: Array) -> SymbolCode:
    """Return the code with which symbols that occur ``counts`` times are smallest, their table included.

    Few symbols do not repay an exact table; many do.
    """
    present, count = int((counts > 0).sum()), int(counts.sum())
    if present <= 1:
        return SymbolCode(counts, 1.0 + len(varint(int(np.argmax(counts)))))
    best = None
    for bits in range(max(1, math.ceil(math.log2(present))), rans.MAX_BITS + 1):
        frequencies = rans.quantize_frequencies(counts, bits)
        payload = rans.coded_bits(counts, frequencies) / 8
        size = _HEAD_BYTES + min(_table_widths(frequencies)) / 8 + payload + rans.lane_bytes(count, payload)
        if best is not None and size > best.size:
            break  # the table grows with every bit, what it saves shrinks
        best = SymbolCode(frequencies, size)
    assert best is not None
    return best


def encode_symbols(symbols: Array, alphabet: int, plan: SymbolCode | None = None) -> bytes:
    """Return symbols in [0, alphabet) with all that :func:`decode_symbols` needs.

    The first byte is the number of lanes and the precision (or says that there is one symbol only), then
    comes the table of frequencies, then the rest of :func:`rans.encode`.

    >>> data = encode_symbols(np.array([0] * 500 + [3] * 20), alphabet=4)
    >>> len(data), int(decode_symbols(Reader(data), len(data), 520, 4).sum())
    (19, 60)
    """
    plan = plan or plan_symbols(count_symbols(symbols, alphabet))
    if (plan.frequencies > 0).sum() <= 1:
        return bytes([_ONE_SYMBOL]) + varint(int(np.argmax(plan.frequencies)))
    payload = rans.encode(symbols, plan.frequencies)
    bits = int(plan.frequencies.sum()).bit_length() - 1
    table = np.packbits(np.frombuffer(_encode_table(plan.frequencies).encode(), dtype=np.uint8) - ord("0")).tobytes()
    return bytes([(bits - 1) << 4 | payload[0]]) + table + payload[1:]


def decode_symbols(reader: Reader, size: int, count: int, alphabet: int) -> Array:
    """Return ``count`` symbols, uint16, from the next ``size`` bytes.

    Raises:
        ArtifactError: the bytes are damaged.
    """
    piece = Reader(reader.take(size))
    head = piece.byte()
    if head == _ONE_SYMBOL:
        symbol = piece.varint()
        piece.end()
        if symbol >= alphabet:
            raise ArtifactError(f"symbol {symbol} is not in an alphabet of {alphabet}")
        return np.full(count, symbol, dtype=np.uint16)
    rest = piece.take(piece.left)
    frequencies, table_size = _decode_table(rest, 1 << ((head >> 4) + 1), alphabet)
    return rans.decode(bytes([head & 15]) + rest[table_size:], count, frequencies)


def _bits_of(widths: Array) -> tuple[Array, Array]:
    """For every bit: the field it is of, and its place in it."""
    owner = np.repeat(np.arange(widths.size), widths)
    return owner, np.cumsum(widths)[owner] - 1 - np.arange(owner.size)


def _encode_table(frequencies: Array) -> str:
    """Bits: the order, then every frequency but the first, which is what is missing to their sum.

    A frequency is an exponential Golomb number of that order (Teuhola, 1978); behind a 0 stands how many
    more there are.
    """
    numbers, runs = _without_runs(frequencies)
    order = int(np.argmin(_table_widths(frequencies)))
    return f"{order:03b}" + "".join(
        _golomb(number, order) + ("" if number else _golomb(run, 0))
        for number, run in zip(numbers.tolist(), runs.tolist(), strict=True)
    )


def _table_widths(frequencies: Array) -> list[int]:
    """Bits that the table takes in each order."""
    numbers, runs = _without_runs(frequencies)
    repeats = _golomb_widths(runs[numbers == 0], 0)
    return [3 + repeats + _golomb_widths(numbers, order) for order in range(_ORDERS)]


def _without_runs(frequencies: Array) -> tuple[Array, Array]:
    """Each frequency from the second on, runs of 0 once, and how many more of the same follow."""
    rest = frequencies[1:]
    kept = np.flatnonzero((rest != 0) | (np.concatenate([[1], rest[:-1]]) != 0))
    return rest[kept], np.diff(np.append(kept, rest.size)) - 1


def _decode_table(data: bytes, total: int, alphabet: int) -> tuple[Array, int]:
    """The frequencies, and how many bytes they took."""
    most = alphabet * _MOST_GOLOMB_BITS // 8 + 1
    bits = "".join(f"{byte:08b}" for byte in data[:most])
    order, at = int(bits[:3] or "0", 2), 3
    frequencies = [0]
    while len(frequencies) < alphabet:
        number, at = _read_golomb(bits, at, order)
        frequencies.append(number)
        if number == 0:
            run, at = _read_golomb(bits, at, 0)
            if run > alphabet - len(frequencies):
                raise ArtifactError(f"frequency table is longer than its alphabet of {alphabet}")
            frequencies += [0] * run
    frequencies[0] = total - sum(frequencies)
    if frequencies[0] < 0:
        raise ArtifactError(f"frequency table sums to more than {total}")
    return np.array(frequencies, dtype=np.int64), (at + 7) // 8


def _golomb(number: int, order: int) -> str:
    """Exponential Golomb: as many zeros as there are bits beyond order + 1, then the bits."""
    bits = f"{number + (1 << order):b}"
    return "0" * (len(bits) - order - 1) + bits


def _golomb_widths(numbers: Array, order: int) -> int:
    """Bits that all ``numbers`` take together."""
    lengths = np.frexp((numbers + (1 << order)).astype(np.float64))[1]
    return int(2 * lengths.sum() - (order + 1) * numbers.size)


def _read_golomb(bits: str, at: int, order: int) -> tuple[int, int]:
    first = bits.find("1", at, at + _MOST_GOLOMB_BITS // 2)
    end = first + (first - at) + order + 1
    if first < 0 or end > len(bits):
        raise ArtifactError("frequency table is damaged")
    return int(bits[first:end], 2) - (1 << order), end
