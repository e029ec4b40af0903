"""Tensors by name from files that somebody else wrote: nothing in them runs, and none takes more memory than its size.

What a file is, its first bytes tell, not its name: safetensors (one file, or shards with an index), and what
``torch.save`` writes, in both of its formats. Tensors are mapped from the file where the format allows, so that
reading takes no memory until their values are asked for.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]

_MOST_INDEX = 1 << 26  # bytes; that of a network of 100,000 tensors has 10 MB
_MOST_DEPTH = 3  # {"model": {"state_dict": {...}}}
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # the magic number, pickled, in files of torch before 1.6
_LEGACY_PICKLES = 5
_GROWING = frozenset({"bz2", "base64", "base_64", "hex", "quopri", "quoted_printable", "quotedprintable", "uu", "zip",
                      "zlib"})  # fmt: skip
"""Codecs from bytes to bytes: a chain of them doubles its input with each link."""
_SAVE_ALONE = "save the weights by themselves: torch.save(model.state_dict(), path), or as safetensors"
_FOREIGN = {
    b"version https://git-lfs": "a pointer of Git LFS, in place of the file: fetch it with git lfs pull",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"<": "a web page or other markup: was the download redirected?",
    b"\x80": "a pickle, but none that torch.save wrote",
}


class _Ignored:
    """What stands in for an object of any class but tensors and containers: its class is neither imported nor run."""

    what = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: str | Path) -> dict[str, State]:
    """Return the sets of tensors in a file, by the name of the dictionary they are in, ``""`` for the outermost.

    Of a Lightning checkpoint it is ``state_dict`` alone. Objects such as hyperparameters are passed over, whatever
    their class. Tensors that ``safetensors.torch.save_model`` left out, being tied to others, are put back.

    Args:
        path: safetensors, ``*.safetensors.index.json``, ``*.bin.index.json``, or a file of ``torch.save``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of weights, damaged, or asks for more memory than it has bytes; the message says
            what it is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"model": {"fc.bias": torch.ones(2)}, "epoch": 3}, f"{folder}/x.pt")
    ...     read_checkpoint(f"{folder}/x.pt")
    {'model': {'fc.bias': tensor([1., 1.])}}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist" + (" as a file" if path.exists() else ""))
    head = _head(path)
    return {"": _sharded(path)} if head.lstrip().startswith(b"{") and not _is_safetensors(path) else _one_file(path)


def is_compressed(path: str | Path) -> bool:
    """Return whether a file is one of :func:`lightning_effnn.compression.save_compressed`, as far as its head tells."""
    path = Path(path)
    if not path.is_file() or not _is_safetensors(path):
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "effnn" in (file.metadata() or {})
    except SafetensorError:
        return path.suffix == ".effnn"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _is_safetensors(path: Path) -> bool:
    head = _head(path)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def _one_file(path: Path) -> dict[str, State]:
    head = _head(path)
    if _is_safetensors(path):
        return {"": _safetensors(path)}
    if head.startswith((b"PK\3\4", _LEGACY)):
        return _networks_in(path, _torch_file(path))
    raise ValueError(f"{path} cannot be read as weights: {_foreign(head)}")


def _foreign(head: bytes) -> str:
    """What a file is that is no file of weights."""
    if not head:
        return "it is empty"
    known = next((what for start, what in _FOREIGN.items() if head.lstrip().startswith(start)), None)
    return f"it is {known}" if known else "it is neither safetensors nor a file of torch.save, or cut short"


def _safetensors(path: Path) -> State:
    try:
        state = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as weights: as safetensors it is damaged or cut ({error})") from None
    return state | {name: state[kept] for name, kept in metadata.items() if name not in state and kept in state}


def _sharded(path: Path) -> State:
    """The tensors of all shards that an index names, which lie beside it."""
    if path.stat().st_size > _MOST_INDEX:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes of JSON: at most {_MOST_INDEX:,} are read")
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as weights: it begins as JSON and is damaged ({error})") from None
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise ValueError(f"{path} cannot be read as weights: it is JSON without a weight_map from tensors to shards")
    state: State = {}
    for shard in sorted(set(places.values())):
        if shard != Path(shard).name:
            raise ValueError(f"{path} names the shard {shard!r}: shards lie in the folder of their index")
        if not (path.parent / shard).is_file():
            raise ValueError(f"{path} names the shard {shard!r}, which is not beside it")
        for found in _one_file(path.parent / shard).values():
            state |= found
    if absent := sorted(set(places) - set(state)):
        raise ValueError(f"{path} names tensors that its shards do not hold: {', '.join(absent[:5])}")
    return state


def _torch_file(path: Path) -> Any:
    """What ``torch.save`` was given, with stand-ins for everything but tensors, containers, numbers and texts."""
    zipped = zipfile.is_zipfile(path)
    try:
        named = _globals_in(path, zipped)
        stand_ins: Any = [(type("_Ignored", (_Ignored,), {"what": name}), name) for name in named]
        # Legacy files can't be mapped, nor what is called .safetensors, which torch would not read for what it is.
        mapped = zipped and path.suffix != ".safetensors"
        with torch.serialization.safe_globals(stand_ins), path.open("rb") as file:
            loaded = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except _Refused as error:
        raise ValueError(f"{path} cannot be read as weights alone: {error}") from None
    except Exception as error:  # the programs in damaged files fail in any way
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as weights alone: it is damaged or cut, or holds objects that are not read"
            f" ({reason}). In that case {_SAVE_ALONE}"
        ) from None
    return loaded


class _Refused(ValueError):
    """Why a file isn't loaded."""


def _globals_in(path: Path, zipped: bool) -> set[str]:
    """Names of the classes and functions that the pickles of a file name; refused if one could take much memory."""
    named: set[str] = set()
    texts: set[str] = set()
    with path.open("rb") as file:
        for program in _pickles(file, zipped):
            for operation, argument, _ in pickletools.genops(program):
                if operation.name == "GLOBAL" and isinstance(argument, str):
                    named.add(_as_torch_reads(*argument.split(" ", 1)))
                elif isinstance(argument, str | bytes):
                    texts.add(argument if isinstance(argument, str) else argument.decode("latin1"))
    coded = "_codecs.encode" in named and {text.lower().replace("-", "_").removesuffix("_codec") for text in texts}
    if "builtins.bytearray" in named or (coded and coded & _GROWING):
        raise _Refused(f"it makes bytes of any size, as no file of weights does; {_SAVE_ALONE}")
    return named


def _pickles(file: IO[bytes], zipped: bool) -> Iterator[IO[bytes]]:
    """The programs in a file of torch; in a zip archive, records must not be compressed: torch stores them."""
    if not zipped:
        if file.read(2) == b"PK":
            raise _Refused("it begins as a zip archive of torch.save and is cut or damaged")
        file.seek(0)
        for _ in range(_LEGACY_PICKLES):
            yield file
        return
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        ends = {record.filename.rpartition("/")[2] for record in records}
        if "constants.pkl" in ends:
            raise _Refused(f"it is a program of TorchScript: {_SAVE_ALONE}")
        if "data.pkl" not in ends:
            raise _Refused(
                "it is an archive of NumPy arrays"
                if any(end.endswith(".npy") for end in ends)
                else "it is a zip archive of something else than torch.save"
            )
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise _Refused("its records are compressed, as torch.save never does: unpack it and save it again")
        for record in records:
            if record.filename.endswith("data.pkl"):
                with archive.open(record) as program:
                    yield program


def _as_torch_reads(module: str, name: str) -> str:
    """A name as Python 3 has it."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _networks_in(path: Path, loaded: Any) -> dict[str, State]:
    """The dictionaries of tensors in what was loaded, by their keys, joined by dots."""
    if isinstance(loaded, _Ignored):
        raise ValueError(f"{path} holds a whole object, {loaded.what}, whose code is not run: {_SAVE_ALONE}")
    if isinstance(loaded, dict) and "pytorch-lightning_version" in loaded:
        loaded = {"state_dict": loaded.get("state_dict")}
    found: dict[str, State] = {}
    seen: set[int] = set()  # one dictionary may be there under any number of keys

    def collect(value: Any, name: str, depth: int) -> None:
        if not isinstance(value, dict) or depth > _MOST_DEPTH or id(value) in seen:
            return
        seen.add(id(value))
        tensors = {key: x for key, x in value.items() if isinstance(key, str) and isinstance(x, Tensor)}
        if tensors:
            found[name] = tensors
        for key, inner in value.items():
            if isinstance(key, str):
                collect(inner, f"{name}.{key}".lstrip("."), depth + 1)

    collect(loaded, "", 0)
    if not found:
        raise ValueError(f"{path} holds no state_dict: tensors by name are needed, it has {_contents(loaded)}")
    _check_sizes(path, found)
    return found


def _contents(loaded: Any) -> str:
    if not isinstance(loaded, dict):
        return f"a {type(loaded).__name__}"
    held = [f"{key!r} ({getattr(x, 'what', type(x).__name__)})" for key, x in list(loaded.items())[:8]]
    return ", ".join(held) or "nothing"


def _check_sizes(path: Path, found: Mapping[str, State]) -> None:
    """Refuse tensors that the file makes of nothing, whose memory is larger than the file."""
    memory = {}
    for state in found.values():
        for x in state.values():
            if x.layout == torch.strided and x.device.type != "meta":
                memory[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    if sum(memory.values()) > path.stat().st_size:
        raise ValueError(f"{path} claims {sum(memory.values()):,} bytes of tensors and has {path.stat().st_size:,}")
