"""The file: safetensors with one tensor of bytes, which holds an index, streams and a checksum.

::

    header size (8 bytes), {"__metadata__": {"effnn": "1", ...}, "effnn": {"dtype": "U8", ...}}
    varint elements, varint size of the index, the index: JSON, deflated
    the streams, one after the other
    zero bytes, as many as the rule on elements asks for: none, as a rule
    CRC-32 of all bytes before it, 4 bytes

Any reader of safetensors opens it. The index is ``{name: [shape, size]}``, with the dtype behind for other than
float32, or ``{name: other name}`` for a tensor that shares the memory of another.

What a file claims is checked before memory is taken for it: the sizes of its parts against its own, the
checksum, and the number of elements, which is the sum over the index, and at most 2**23 and 256 more for
every byte of the file. No number of bytes is too few for a tensor that is the same everywhere, so the claim of
a stream can't be checked by itself. :func:`write_container` adds zero bytes to a file of tensors that are at
hand until it keeps that rule; weights that train to something stay far from it.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightning_effnn._files import write_whole
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.streams import Reader, varint

VERSION = "1"
KEY = "effnn"
FREE_ELEMENTS = 1 << 23  # 32 MiB of float32
ELEMENTS_A_BYTE = 1 << 8
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "C128": torch.complex128,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64,
    "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Dtypes as safetensors calls them."""
_DEFAULT_DTYPE = "F32"
_MOST_DIMENSIONS, _MOST_SIZE = 64, 1 << 40
_MOST_INDEX = 1 << 20  # bytes of an index beyond 256 times what it takes in the file
_NAMES_FIRST = (
    b'"embeddings.attention.self_attn.in_proj_out_proj.mlp.linear1.norm1.encoder.decoder.layers.classifier.head'
    b'.features.downsample.blocks.0.layer1.0.bn1.conv1.fc1.num_batches_tracked":[[],5,"I64"],'
    b'".running_mean":[[16],".running_var":[[64],".bias":[[512],".weight":[[128,64,3,3],'
)
"""What deflate may refer to as if it came before the index: frequent names. Part of the format."""


@dataclass
class Entry:
    """One tensor of a file: its stream, or the name of the tensor it is tied to."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    data: bytes = b""
    tied_to: str = ""

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass
class Container:
    """All tensors of a file in order, the user's own metadata, and the file's size.

    Attributes:
        genuine: whether the streams were made from tensors of these shapes: then the file is given the size that
            its elements ask for.
    """

    entries: list[Entry]
    metadata: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    genuine: bool = False


def write_container(path: Path, container: Container) -> int:
    """Write a file beside ``path``, then rename it: it appears whole or not at all. Returns its size."""
    pieces = pack(container)
    return write_whole(path, lambda beside: _write_pieces(beside, pieces))


def pack(container: Container) -> list[bytes]:
    """The whole file, in pieces: joined, they would take their memory again."""
    index: dict[str, Any] = {}
    for entry in container.entries:
        name = next(name for name, dtype in DTYPES.items() if dtype == entry.dtype)
        described = [list(entry.shape), len(entry.data), name]
        index[entry.name] = entry.tied_to or described[: 2 if name == _DEFAULT_DTYPE else 3]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=_NAMES_FIRST)
    packed = deflater.compress(_json(index)) + deflater.flush()
    elements = sum(entry.elements for entry in container.entries if not entry.tied_to)
    body = [varint(elements) + varint(len(packed)) + packed, *(entry.data for entry in container.entries)]
    size = sum(map(len, body)) + 4
    if container.genuine:
        body.append(bytes(max(0, -(-(elements - FREE_ELEMENTS) // ELEMENTS_A_BYTE) - size + 4)))
        size += len(body[-1])
    head = _json(
        {"__metadata__": {KEY: VERSION, **container.metadata}}
        | {KEY: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    )
    pieces = [struct.pack("<Q", len(head)) + head, *body]
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return [*pieces, struct.pack("<I", checksum)]


def _write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def read_container(path: Path) -> Container:
    """Read a file and check everything but the streams.

    Raises:
        ArtifactError: the file is damaged, truncated, or not one of these.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        metadata, start = _read_head(data)
        entries = _read_body(data, start)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return Container(entries, metadata, len(data))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _parse(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object without repeated keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ArtifactError(f"{what} has a key twice")
        return found

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique)
    except ArtifactError:
        raise
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{what} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{what} is damaged: it is no JSON object")
    return value


def _read_head(data: bytes) -> tuple[dict[str, str], int]:
    """The user's metadata, and where the bytes start; the checksum is checked."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if data[8:9] != b"{":
        raise ArtifactError("not a compressed network: it does not begin as a safetensors file")
    if size > len(data) - 8:
        raise ArtifactError(f"truncated: a header of {size} bytes in a file of {len(data)}")
    head = _parse(data[8 : 8 + size], "header")
    metadata = head.get("__metadata__")
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise ArtifactError(f"not a compressed network: a safetensors file without {KEY!r} in its metadata")
    if metadata[KEY] != VERSION:
        raise ArtifactError(f"written in version {metadata[KEY]!r} of the format, this reads version {VERSION!r}")
    start, length = 8 + size, len(data) - 8 - size
    tensor = head.get(KEY)
    claimed = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if isinstance(claimed, list) and len(claimed) == 2 and isinstance(claimed[1], int) and claimed[1] > length:
        raise ArtifactError(f"truncated: {length} of {claimed[1]} bytes are there")
    expected = {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}
    if tensor != expected or set(head) != {"__metadata__", KEY} or length < 4:
        raise ArtifactError(f"header does not describe one tensor of {length} bytes")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ArtifactError("damaged: the checksum does not match")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactError("header has metadata that is not text")
    return {key: value for key, value in metadata.items() if key != KEY}, start


def _read_body(data: bytes, start: int) -> list[Entry]:
    reader = Reader(data[start:-4])
    elements, size = reader.varint(), reader.varint()
    packed = reader.take(size)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_NAMES_FIRST)
    try:
        text = inflater.decompress(packed, _MOST_INDEX + 256 * size)
    except zlib.error as error:
        raise ArtifactError(f"index is damaged: {error}") from None
    if not inflater.eof or inflater.unused_data:
        raise ArtifactError("index is damaged: it does not end where it should")
    index = _parse(text, "index")
    entries: dict[str, Entry] = {}
    for name, value in index.items():
        entries[name] = _tied(name, value, entries) if isinstance(value, str) else _entry(name, value)
    sizes = [0 if isinstance(value, str) else value[1] for value in index.values()]
    total = sum(entry.elements for entry in entries.values() if not entry.tied_to)
    if total != elements or total > FREE_ELEMENTS + ELEMENTS_A_BYTE * len(data):
        raise ArtifactError(
            f"claims {total} elements in a file of {len(data)} bytes, and {elements} in all; a file holds at most"
            f" {FREE_ELEMENTS} and {ELEMENTS_A_BYTE} more for each of its bytes"
        )
    for entry, length in zip(entries.values(), sizes, strict=True):
        entry.data = reader.take(length)
    if any(reader.take(reader.left)):
        raise ArtifactError("bytes behind the last tensor")
    return list(entries.values())


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise ArtifactError(f"index is damaged at {name!r}")
    shape, size, dtype = (*value, _DEFAULT_DTYPE)[:3]
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not isinstance(dtype, str):
        raise ArtifactError(f"index is damaged at {name!r}")
    if not all(type(n) is int and 0 <= n <= _MOST_SIZE for n in [*shape, size]):
        raise ArtifactError(f"{name!r} has a size out of range: {shape}, {size} bytes")
    if math.prod(n for n in shape if n) > _MOST_SIZE:
        raise ArtifactError(f"{name!r} has a shape out of range: {shape}")
    if dtype not in DTYPES:
        raise ArtifactError(f"{name!r} has the unknown dtype {dtype!r}")
    return Entry(name, tuple(shape), DTYPES[dtype])


def _tied(name: str, other: str, entries: Mapping[str, Entry]) -> Entry:
    if other not in entries or entries[other].tied_to:
        raise ArtifactError(f"{name!r} is tied to {other!r}, which is not before it")
    return Entry(name, entries[other].shape, entries[other].dtype, tied_to=other)
