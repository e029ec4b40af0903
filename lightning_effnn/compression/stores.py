"""Numbers as bytes: which type they are stored in, and the coding of its bytes.

Numbers are kept in the narrowest type that holds every one bit for bit, or, for what the caller allows to
be rounded, in half precision or as 8-bit integers times a scale. Of the bytes of each number, those that
are predictable (sign and exponent, as a rule) are entropy-coded, the others are written as they are.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_effnn.compression import streams
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.streams import Reader, SymbolCode

Array = NDArray[Any]

Other = Literal["fp32", "fp16", "int8"]
"""What tensors that are not a few repeated values are stored in."""
OTHERS: tuple[str, ...] = get_args(Other)

# The place in this list is what a file holds: add at the end only.
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)
_STORES: tuple[torch.dtype | None, ...] = (None, *_FLOATS, *_INTEGERS)  # None: the tensor's own
_WIDE_INTEGERS = (torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
_SCALED = len(_STORES)  # int8 times a scale, which is a float32 in front
_BYTE_VALUES = 256


class Stored(NamedTuple):
    """Numbers in a store: its place in the list, a scale's bytes, the bytes of the numbers (count, width), a name."""

    store: int
    scale: bytes
    raw: Array
    name: str


class Planes(NamedTuple):
    """Which byte of each number is entropy-coded and how, and the size of all."""

    codes: tuple[SymbolCode | None, ...]
    size: float


def bytes_of(x: Tensor) -> Array:
    """Return the memory of a tensor as uint8, shape (elements, width)."""
    flat = x.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().reshape(flat.numel(), x.element_size())


def from_bytes(raw: Array, dtype: torch.dtype) -> Tensor:
    """Return the tensor, shape (elements,), whose memory is that of ``raw``, any array."""
    if raw.size == 0:
        return torch.empty(0, dtype=dtype, device="cpu")
    return torch.from_numpy(np.array(raw, order="C").reshape(-1).view(np.uint8)).view(dtype)


def store_exactly(x: Tensor) -> Stored:
    """Return ``x``, shape (elements,), in the narrowest store that gives every bit back."""
    for dtype in _narrower(x.dtype):
        if all(_comes_back(piece, dtype) for piece in torch.split(x, streams.PIECE)):
            return Stored(_STORES.index(dtype), b"", bytes_of(x.to(dtype)), _name(dtype))
    return Stored(0, b"", bytes_of(x), _name(x.dtype))


def store_rounded(x: Tensor, other: str) -> Stored | None:
    """Return ``x``, shape (elements,), rounded to half precision or 8 bits; ``None`` where that would spoil it.

    Spoilt is what is not finite any more in half precision. In 8 bits (rounded to a multiple of the largest
    magnitude over 127) it is also a tensor of positive numbers that would have zeros, such as running variances:
    it is stored in half precision.
    """
    if not x.is_floating_point() or x.element_size() == 1 or x.numel() == 0 or not bool(torch.isfinite(x).all()):
        return None
    if other == "int8":
        peak = float(x.abs().max())
        scale = np.float32(peak / 127 if peak > 0 else 1.0)
        if scale > 0 and np.isfinite(scale):
            codes = torch.cat([_scaled(piece, float(scale)) for piece in torch.split(x, streams.PIECE)])
            if not (bool((x > 0).all()) and bool((codes == 0).any())):
                return Stored(_SCALED, scale.astype("<f4").tobytes(), bytes_of(codes), "int8")
    half = x.to(torch.float16)
    if other == "fp32" or x.element_size() <= 2 or not bool(torch.isfinite(half).all()):
        return None
    return Stored(_STORES.index(torch.float16), b"", bytes_of(half), "fp16")


def plan_planes(raw: Array, counts: Array | None = None) -> Planes:
    """Return which bytes of the numbers are worth coding.

    Args:
        raw: the numbers' bytes, shape (count, width).
        counts: how often each of them occurs; once if left out.
    """
    codes: list[SymbolCode | None] = []
    size, number = 1.0, raw.shape[0] if counts is None else int(counts.sum())
    for plane in raw.T:
        if counts is None:
            occurrences = streams.count_symbols(plane, _BYTE_VALUES)
        else:
            occurrences = np.zeros(_BYTE_VALUES, dtype=np.int64)
            np.add.at(occurrences, plane, counts)
        code = streams.plan_symbols(occurrences)
        coded = code.size + len(streams.varint(int(code.size)))
        codes.append(code if coded < number else None)
        size += min(coded, number)
    return Planes(tuple(codes), size)


def encode_numbers(stored: Stored, planes: Planes) -> bytes:
    """Return flags of coded bytes (one bit a byte of the number), the scale, and every byte of all numbers in turn."""
    flags = sum(1 << i for i, code in enumerate(planes.codes) if code is not None)
    pieces = [streams.varint(flags), stored.scale]
    for plane, code in zip(stored.raw.T, planes.codes, strict=True):
        if code is None:
            pieces.append(plane.tobytes())
        else:
            coded = streams.encode_symbols(plane, _BYTE_VALUES, code)
            pieces += [streams.varint(len(coded)), coded]
    return b"".join(pieces)


def decode_numbers(reader: Reader, store: int, count: int, dtype: torch.dtype) -> Tensor:
    """Return ``count`` numbers as a tensor of shape (count,).

    Raises:
        ArtifactError: the bytes are damaged.
    """
    kept = _kept_type(store, dtype)
    flags = reader.varint()
    scale = np.frombuffer(reader.take(4), dtype="<f4")[0] if store == _SCALED else None
    if flags >> kept.itemsize:
        raise ArtifactError(f"numbers of {kept.itemsize} bytes with flags {flags}")
    planes = []
    for place in range(kept.itemsize):
        if flags >> place & 1:
            plane = streams.decode_symbols(reader, reader.varint(), count, _BYTE_VALUES).astype(np.uint8)
        else:
            plane = np.frombuffer(reader.take(count), dtype=np.uint8)
        planes.append(plane)
    raw = np.stack(planes, axis=-1) if planes else np.zeros((count, 0), dtype=np.uint8)
    numbers = _checked(raw, kept)
    return numbers.to(dtype) if scale is None else (numbers.double() * float(scale)).to(dtype)


def decode_plain(reader: Reader, store: int, count: int, dtype: torch.dtype) -> Tensor:
    """Return ``count`` numbers that follow one another uncoded, as a tensor of shape (count,).

    Raises:
        ArtifactError: the bytes are damaged.
    """
    kept = _kept_type(store, dtype)
    return _checked(np.frombuffer(reader.take(count * kept.itemsize), dtype=np.uint8), kept).to(dtype)


def store_name(store: int, dtype: torch.dtype) -> str:
    """Return what a store is called, such as ``"fp16"``, for a tensor of ``dtype``."""
    return "int8" if store == _SCALED else _name(_kept_type(store, dtype))


def _comes_back(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether every bit is there again after a cast to ``dtype``."""
    return np.array_equal(bytes_of(x.to(dtype).to(x.dtype)), bytes_of(x))


def _scaled(x: Tensor, scale: float) -> Tensor:
    return torch.round(x.double() / scale).clamp(-127, 127).to(torch.int8)


def _kept_type(store: int, dtype: torch.dtype) -> torch.dtype:
    if store == _SCALED and dtype.is_floating_point:
        return torch.int8
    if not 0 <= store < len(_STORES):
        raise ArtifactError(f"numbers of unknown type {store}")
    kept = _STORES[store] or dtype
    if kept != dtype and kept not in _narrower(dtype):
        raise ArtifactError(f"numbers of type {kept} in a tensor of {dtype}")
    return kept


def _checked(raw: Array, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool and bool((raw > 1).any()):
        raise ArtifactError("truth values other than 0 and 1")
    return from_bytes(raw, dtype)


def _narrower(dtype: torch.dtype) -> list[torch.dtype]:
    """Stores of fewer bytes, of the same kind."""
    kind = _FLOATS if dtype.is_floating_point else _INTEGERS if dtype in _WIDE_INTEGERS else ()
    return [store for store in kind if store.itemsize < dtype.itemsize]


def _name(dtype: torch.dtype) -> str:
    """As number formats are called: fp32, bf16, int64."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")
