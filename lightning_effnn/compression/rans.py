r"""An entropy coder: symbols to bytes at the cost of their information, less than a bit a symbol too.

Range asymmetric numeral systems (rANS) keep a message in one integer, the state. With frequencies
:math:`f_s` that sum to :math:`M = 2^b` and cumulative sums :math:`c_s`, a symbol is pushed by

.. math:: x' = M \lfloor x / f_s \rfloor + (x \bmod f_s) + c_s

which makes the state larger by :math:`\log_2 M / f_s` bits, and popped by reading :math:`x' \bmod M`. States
are 32 bits wide; what would not fit goes to the stream in words of 16 bits. Long streams have many states
that take symbols in turn (lanes), which numpy works on at once; short ones have one state, an integer of
Python, because each state costs about three bytes.

Source: Duda (2013), "Asymmetric numeral systems", arXiv 1311.2540; Giesen (2014), "Interleaved entropy
coders", arXiv 1402.3392.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_effnn.compression.errors import ArtifactError

Array = NDArray[Any]

MAX_BITS = 16
"""One word must bring every state back into range, so no frequency has more bits than a word."""
MAX_LANES = 4096
_WORD_BITS, _STATE_BITS = 16, 32
_LOWEST = 1 << _WORD_BITS  # states are in [2**16, 2**32) between symbols
_LANE_BYTES = 3  # what a lane costs: of the 4 bytes of its state, the symbols filled one
_MOST_OVERHEAD = 0.002  # share of a stream that its lanes may cost
_MOST_STEPS = 1 << _WORD_BITS  # steps of a long stream, each about 15 us of numpy
_LEAST_LANES = 16  # below, Python's integers are faster than numpy's
_COUNTED = 1 << 20  # symbols counted at once
_MOST_SINGLE = 1 << 20  # symbols of a stream with one lane: a second


def quantize_frequencies(counts: Array, bits: int) -> Array:
    """Return integer frequencies that sum to ``2**bits``, nearest to ``counts`` in coded length.

    Every symbol that occurs has at least 1. Rounding errors are made up one by one where that costs least.

    Args:
        counts: how often each symbol occurs, shape (alphabet,), not negative, not all zero.
        bits: 1 to 16; at least enough for the symbols that occur.

    Returns:
        int64 array of shape (alphabet,).

    Raises:
        ValueError: an argument is out of its range.

    >>> quantize_frequencies(np.array([97, 0, 2, 1]), 5).tolist()
    [30, 0, 1, 1]
    """
    counts = np.asarray(counts, dtype=np.int64)
    if counts.ndim != 1 or counts.size == 0 or counts.min() < 0 or counts.max() == 0:
        raise ValueError("counts must be one row of numbers >= 0, not all of them 0")
    present = np.flatnonzero(counts)
    if not 1 <= bits <= MAX_BITS or present.size > 1 << bits:
        raise ValueError(f"bits must be in [1, {MAX_BITS}] and enough for {present.size} symbols, got {bits}")
    total, weights = 1 << bits, counts[present].astype(np.float64)
    shares = np.maximum(np.rint(weights * (total / weights.sum())), 1).astype(np.int64)
    step = 1 if shares.sum() < total else -1
    # Moving a frequency from f to g changes the length by count * log2(f / g).
    heap = [_price(weights[i], int(shares[i]), step, i) for i in range(present.size) if shares[i] + step > 0]
    heapq.heapify(heap)
    for _ in range(abs(total - int(shares.sum()))):
        index = heap[0][1]
        shares[index] += step
        if shares[index] + step > 0:
            heapq.heapreplace(heap, _price(weights[index], int(shares[index]), step, index))
        else:
            heapq.heappop(heap)
    frequencies = np.zeros(counts.size, dtype=np.int64)
    frequencies[present] = shares
    return frequencies


def coded_bits(counts: Array, frequencies: Array) -> float:
    """Return the length in bits of symbols that occur ``counts`` times, coded with ``frequencies``.

    >>> coded_bits(np.array([12, 4]), np.array([3, 1]))
    12.98...
    """
    present = counts > 0
    used = counts[present].astype(np.float64)
    return float((used * (np.log2(frequencies.sum()) - np.log2(frequencies[present]))).sum())


def encode(symbols: Array, frequencies: Array, lanes: int | None = None) -> bytes:
    """Return ``symbols`` as bytes: one for the number of lanes, the final states, then words.

    Args:
        symbols: integers in [0, alphabet), any shape, read in order.
        frequencies: shape (alphabet,), summing to a power of two of at most ``2**16``, above 0 for every
            symbol that occurs.
        lanes: states that take turns, a power of two up to 4096; by default as many as are worth their bytes.

    Raises:
        ValueError: frequencies do not sum to a power of two, or a symbol has none, or lanes is out of range.

    >>> message = np.array([0, 0, 1, 0, 0, 0, 2, 0])
    >>> data = encode(message, np.array([12, 2, 2]))
    >>> len(data), decode(data, 8, np.array([12, 2, 2])).tolist()
    (3, [0, 0, 1, 0, 0, 0, 2, 0])
    """
    frequencies, bits = _checked(frequencies, ValueError)
    symbols = np.asarray(symbols).reshape(-1)
    if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) < frequencies.size:
        raise ValueError(f"symbols must be in [0, {frequencies.size}), got {symbols.min()} to {symbols.max()}")
    counts = np.zeros(frequencies.size, dtype=np.int64)
    for first in range(0, symbols.size, _COUNTED):  # bincount makes int64 of all that it is given
        counts += np.bincount(symbols[first : first + _COUNTED], minlength=frequencies.size)
    if (frequencies[counts > 0] == 0).any():
        raise ValueError(f"symbol {np.flatnonzero((counts > 0) & (frequencies == 0))[0]} occurs but has frequency 0")
    if lanes is None:
        lanes = choose_lanes(symbols.size, coded_bits(counts, frequencies) / 8)
    if lanes not in (1 << k for k in range(MAX_LANES.bit_length())):
        raise ValueError(f"lanes must be a power of two in [1, {MAX_LANES}], got {lanes}")
    starts = np.cumsum(frequencies) - frequencies
    body = (_encode_single if lanes == 1 else _encode_lanes)(symbols, frequencies, starts, bits, lanes)
    return bytes([lanes.bit_length() - 1]) + body


def decode(data: bytes, count: int, frequencies: Array) -> Array:
    """Return the ``count`` symbols in ``data``, uint16 of shape (count,).

    Every state must end where encoding began and no byte may be left: a damaged stream is refused unless
    it happens to be another message's.

    Args:
        data: what :func:`encode` gave.
        count: how many symbols.
        frequencies: as for encoding.

    Raises:
        ArtifactError: the stream or the frequencies are damaged.
    """
    frequencies, bits = _checked(frequencies, ArtifactError)
    if not data or data[0] > MAX_LANES.bit_length() - 1 or count < 0:
        raise ArtifactError("rANS stream: no valid number of lanes")
    lanes = 1 << data[0]
    most = _MOST_SINGLE if lanes == 1 else lanes * _MOST_STEPS * 2
    if count > most and lanes < MAX_LANES:
        raise ArtifactError(f"rANS stream: {count} symbols in {lanes} lanes are more than is ever written")
    starts = np.cumsum(frequencies) - frequencies
    owner = np.repeat(np.arange(frequencies.size, dtype=np.uint16), frequencies)  # slot -> symbol
    slots = (_decode_single if lanes == 1 else _decode_lanes)(data, count, frequencies, starts, owner, bits)
    return owner[slots]


def choose_lanes(count: int, size: float) -> int:
    """Return how many lanes ``count`` symbols of about ``size`` bytes get: a power of two, more for more."""
    worth = size * _MOST_OVERHEAD / _LANE_BYTES
    needed = count / _MOST_STEPS
    lanes = 1 << max(0, int(max(worth, needed, 1)).bit_length() - 1)
    lanes = lanes * 2 if lanes < needed else lanes
    if lanes < _LEAST_LANES:
        lanes = 1 if count <= _MOST_SINGLE else _LEAST_LANES
    return min(lanes, MAX_LANES)


def lane_bytes(count: int, size: float) -> int:
    """Return about how many bytes more a stream takes for having the lanes it gets."""
    return (choose_lanes(count, size) - 1) * _LANE_BYTES


def _price(count: float, frequency: int, step: int, index: int) -> tuple[float, int]:
    return float(count * np.log2(frequency / (frequency + step))), index


def _checked(frequencies: Array, error: type[ValueError]) -> tuple[Array, int]:
    """Frequencies as int64, and the number of bits that they sum to."""
    frequencies = np.asarray(frequencies, dtype=np.int64).reshape(-1)
    total = int(frequencies.sum())
    if not 2 <= total <= 1 << MAX_BITS or total & (total - 1) or frequencies.min() < 0:
        raise error(f"frequencies must be >= 0 and sum to a power of two in [2, 2**{MAX_BITS}], got {total}")
    return frequencies, total.bit_length() - 1


def _encode_single(symbols: Array, frequencies: Array, starts: Array, bits: int, lanes: int) -> bytes:
    """One state from 0; it is below 2**16 only while no word has been written."""
    steps = [(f, s, f << (_STATE_BITS - bits)) for f, s in zip(frequencies.tolist(), starts.tolist(), strict=True)]
    state, words = 0, []
    for symbol in reversed(symbols.tolist()):
        frequency, start, limit = steps[symbol]
        if state >= limit:
            words.append(state & (_LOWEST - 1))
            state >>= _WORD_BITS
        quotient, rest = divmod(state, frequency)
        state = (quotient << bits) + rest + start
    head = state.to_bytes((state.bit_length() + 7) // 8, "little")
    return head + np.array(words[::-1], dtype="<u2").tobytes()


def _decode_single(data: bytes, count: int, frequencies: Array, starts: Array, owner: Array, bits: int) -> Array:
    body = data[1:]
    # With words behind it a state has at least 17 bits, three or four bytes: the parity tells which.
    head = len(body) if len(body) <= 4 else 4 - len(body) % 2
    words = np.frombuffer(body[head:], dtype="<u2").tolist()
    if body[:head].endswith(b"\0") or (words and int.from_bytes(body[:head], "little") < _LOWEST):
        raise ArtifactError("rANS stream: its state is out of range")
    steps = list(zip(frequencies.tolist(), starts.tolist(), strict=True))
    state, mask, symbol_of = int.from_bytes(body[:head], "little"), (1 << bits) - 1, owner.tolist()
    slots, upcoming, left = [0] * count, iter(words), len(words)
    for i in range(count):
        slot = slots[i] = state & mask
        frequency, start = steps[symbol_of[slot]]
        state = frequency * (state >> bits) + slot - start
        if state < _LOWEST and left:
            state = state << _WORD_BITS | next(upcoming)
            left -= 1
    if state or left:
        raise ArtifactError("rANS stream: it does not end where its message does")
    return np.array(slots, dtype=np.uint16)


def _encode_lanes(symbols: Array, frequencies: Array, starts: Array, bits: int, lanes: int) -> bytes:
    """Symbol i belongs to lane i mod lanes; words of one step lie in lane order."""
    shift, bits_ = np.uint32(_STATE_BITS - bits), np.uint32(bits)
    frequency_of, start_of = frequencies.astype(np.uint32), starts.astype(np.uint32)
    states = np.full(lanes, _LOWEST, dtype=np.uint32)
    blocks = []
    for first in reversed(range(0, symbols.size, lanes)):
        step = symbols[first : first + lanes]
        frequency, state = frequency_of[step], states[: step.size]
        full = (state >> shift) >= frequency
        blocks.append(state[full].astype("<u2"))  # keeps the low 16 bits
        state >>= full * np.uint32(_WORD_BITS)
        quotient = state // frequency
        state += start_of[step] - quotient * frequency  # modulo 2**32, as is the next line
        state += quotient << bits_
    return b"".join([states.astype("<u4").tobytes(), *(block.tobytes() for block in reversed(blocks))])


def _decode_lanes(data: bytes, count: int, frequencies: Array, starts: Array, owner: Array, bits: int) -> Array:
    lanes = 1 << data[0]
    body = memoryview(data)[1:]
    if len(body) < 4 * lanes or len(body) % 2:
        raise ArtifactError(f"rANS stream: {len(body)} bytes do not hold {lanes} states and words")
    states = np.frombuffer(body[: 4 * lanes], dtype="<u4").astype(np.uint32)
    words = np.frombuffer(body[4 * lanes :], dtype="<u2").astype(np.uint32)
    frequency_of = frequencies.astype(np.uint32)[owner]
    offset_of = np.arange(1 << bits, dtype=np.uint32) - starts.astype(np.uint32)[owner]
    mask, bits_, lowest = np.uint32((1 << bits) - 1), np.uint32(bits), np.uint32(_LOWEST)
    slots, position = np.empty(count, dtype=np.uint16), 0
    for first in range(0, count, lanes):
        state = states[: min(lanes, count - first)]
        slot = state & mask
        slots[first : first + lanes] = slot
        state >>= bits_
        state *= frequency_of[slot]
        state += offset_of[slot]
        low = np.flatnonzero(state < lowest)
        fresh = words[position : position + low.size]
        if fresh.size < low.size:
            raise ArtifactError("rANS stream: it ends before its message does")
        state[low] = state[low] << np.uint32(_WORD_BITS) | fresh
        position += low.size
    if position != words.size or (states != lowest).any():
        raise ArtifactError("rANS stream: it does not end where its message does")
    return slots
