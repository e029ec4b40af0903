"""A network as a small file that loads back to exactly what was saved: save, load, look inside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_effnn._prefixes import Match, Wanted, choose, describe_misfit, find_network
from lightning_effnn.compression import activations, codec, stores
from lightning_effnn.compression.container import DTYPES, KEY, Container, Entry, pack, read_container, write_container
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.size_report import CompressionReport, TensorSize
from lightning_effnn.formats import NumberFormat, declared_formats

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SIGNED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # those that all devices compare
StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file, as far as its index and first bytes tell.

    Attributes are those of the same names of :class:`TensorSize`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    format: str
    bytes: int
    tied_to: str


@dataclass(frozen=True)
class ArtifactInfo:
    """What a file says of itself.

    Attributes:
        path: the file.
        bytes: its size.
        tensors: in the order of the state dict.
        metadata: what the user had saved with it.
    """

    path: Path
    bytes: int
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]


def save_compressed(
    model: nn.Module | StateDict,
    path: str | os.PathLike[str],
    *,
    other: stores.Other = "fp32",
    formats: Mapping[str, NumberFormat] | None = None,
    metadata: Mapping[str, str] | None = None,
    signed_zeros: bool = False,
) -> CompressionReport:
    """Write a network to a file as small as its values allow, and report what each tensor takes.

    A model with quantised activations (:func:`~lightning_effnn.compression.activations.quantize_activations_`) has
    their widths and scales written along.

    Tensors with few values that repeat (quantised, pruned) cost their entropy; so do those of a declared number
    format, which need no palette. Everything comes back with every bit as it was, but for what ``other`` and
    ``signed_zeros`` give leave to change. Tensors that share their memory (tied parameters) are stored once.

    Args:
        model: a module, of which the state dict and the declared formats are taken, or a state dict.
        path: the file; its folder is made. A save that is interrupted leaves the old file as it was.
        other: what biases, norms, running statistics and weights that were not quantised are kept in:
            ``"fp32"`` for exactly as they are, ``"fp16"`` or ``"int8"`` (times a scale a tensor) to round.
            What that would spoil keeps more: see :func:`lightning_effnn.compression.stores.store_rounded`.
        formats: number formats by name, besides or in place of those the model declares.
        metadata: texts of your own, readable by any reader of safetensors.
        signed_zeros: whether -0.0 stays -0.0. By default it becomes 0.0, which equals it: ``weight * mask`` leaves
            one wherever a negative weight was pruned, and whether it did costs up to a bit a zero.

    Raises:
        ValueError: ``other`` is unknown, a key of ``metadata`` is reserved, a format names no tensor.
        TypeError: an entry of the state dict is not a dense tensor, or is an uninitialised lazy parameter.

    >>> import tempfile
    >>> layer = nn.Linear(100, 100)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.arange(10000).reshape(100, 100) % 50 == 0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = save_compressed(layer, f"{folder}/layer.effnn", other="fp16")
    ...     state = load_compressed(f"{folder}/layer.effnn")
    >>> report.ratio > 80, torch.equal(state["weight"], layer.weight)
    (True, True)
    """
    container, rows = _encoded(model, other, dict(formats or {}), dict(metadata or {}), signed_zeros)
    path = Path(path)
    return CompressionReport(path, write_container(path, container), rows)


def measure_compressed(model: nn.Module | StateDict, *, other: stores.Other = "fp32") -> CompressionReport:
    """Report what :func:`save_compressed` would write, without a file: every tensor is encoded, nothing is estimated.

    It takes as long as saving: a third of a second for ResNet-20, some seconds for ten million weights.

    Args:
        model, other: as for :func:`save_compressed`.

    Raises:
        ValueError, TypeError: as there.

    >>> import tempfile
    >>> layer = nn.Linear(100, 100)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = save_compressed(layer, f"{folder}/layer.effnn")
    >>> measure_compressed(layer).bytes == report.bytes
    True
    """
    container, rows = _encoded(model, other, {}, {}, signed_zeros=False)
    return CompressionReport(Path(os.devnull), sum(map(len, pack(container))), rows)


@overload
def load_compressed(path: str | os.PathLike[str], model: None = None) -> dict[str, Tensor]: ...
@overload
def load_compressed(path: str | os.PathLike[str], model: nn.Module, network: str | None = None) -> nn.Module: ...
def load_compressed(
    path: str | os.PathLike[str], model: nn.Module | None = None, network: str | None = None
) -> dict[str, Tensor] | nn.Module:
    """Return the state dict in a file; with a model, load it there and return the model.

    Tensors have the dtypes they were saved in, and those that shared memory share it again; in a model they take
    its dtypes. Loading is strict: the keys and shapes have to be the model's, and nothing is changed if they are
    not, or if the file is damaged. A prefix may come on top of them: the file of a ``LightningModule`` that holds the
    model as ``net`` loads into the model, and the model's into the ``LightningModule`` if it holds nothing else.
    Activations that were quantised are quantised again, with the same scales;
    :func:`lightning_effnn.compression.bake_` takes that off.

    Args:
        path: a file of :func:`save_compressed`.
        model: what to load into.
        network: which of several networks that fit the model, by its prefix in the file, such as ``"student"``.

    Raises:
        ArtifactError: the file is damaged, truncated or not one of these, or claims more elements than a file of its
            size may, which is said before memory is taken for them; or it does not fit the model: then the message
            lists keys missing, keys not expected and shapes that differ; or several networks in it do.
        OSError: the file cannot be read.
    """
    path = Path(path)
    container = read_container(path)
    match = None if model is None else _find(container, model, network, path)
    entries = {entry.name: entry for entry in container.entries}
    kept = list(entries if match is None else dict.fromkeys(match.names.values()))
    decoded = {name: _decode(entries[name], path) for name in dict.fromkeys(entries[at].tied_to or at for at in kept)}
    state = {name: decoded[entries[name].tied_to or name] for name in kept}
    if model is None or match is None:
        return state
    record = container.metadata.get(activations.KEY)
    if record is not None:
        activations.attach_recorded_(model, record, match.module)
    model.load_state_dict({name: state[at] for name, at in match.names.items()}, strict=True)
    return model


def read_info(path: str | os.PathLike[str]) -> ArtifactInfo:
    """Return what a file says of itself, without decoding its tensors.

    Raises:
        ArtifactError: the file is damaged, truncated or not one of these.
        OSError: it cannot be read.
    """
    path = Path(path)
    container = read_container(path)
    tensors = []
    for entry in container.entries:
        try:
            layout, stored = ("", "") if entry.tied_to else codec.describe(entry.data, entry.dtype)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {entry.name}: {error}") from None
        dtype = _DTYPE_NAMES[entry.dtype]
        tensors.append(TensorInfo(entry.name, entry.shape, dtype, layout, stored, len(entry.data), entry.tied_to))
    return ArtifactInfo(path, container.bytes, tuple(tensors), container.metadata)


def inspect_compressed(path: str | os.PathLike[str]) -> tuple[CompressionReport, dict[str, Tensor]]:
    """Return the report on a file, of the values as they come back, and its tensors.

    Raises:
        ArtifactError: the file is damaged, truncated or not one of these.
        OSError: it cannot be read.
    """
    info, state = read_info(path), load_compressed(path)
    rows = []
    for t in info.tensors:
        about = codec.statistics(state[t.name])
        elements = max(state[t.name].numel(), 1)
        rows.append(
            TensorSize(
                t.name, t.shape, t.dtype, t.layout, t.format, about.zeros / elements, about.distinct, t.bytes,
                about.entropy_bytes, t.tied_to,
            )
        )  # fmt: skip
    return CompressionReport(info.path, info.bytes, tuple(rows)), state


def _encoded(
    model: nn.Module | StateDict,
    other: stores.Other,
    formats: dict[str, NumberFormat],
    metadata: dict[str, str],
    signed_zeros: bool,
) -> tuple[Container, tuple[TensorSize, ...]]:
    """Everything that a file holds, and a row for each of its tensors."""
    if other not in stores.OTHERS:
        raise ValueError(f"other must be one of {', '.join(stores.OTHERS)}, got {other!r}")
    state, declared = _state_of(model)
    declared |= formats
    reserved = {KEY, activations.KEY}
    if reserved & set(metadata) or not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueError(f"metadata must be texts by name, {sorted(reserved)} excepted, got {metadata!r}")
    if unknown := sorted(set(declared) - set(state)):
        raise ValueError(f"formats must be of tensors in the state dict, got {', '.join(unknown)}")
    entries: list[Entry] = []
    rows: list[TensorSize] = []
    seen: dict[Any, str] = {}
    for name, x in state.items():
        first = seen.setdefault(_memory(name, x), name)
        if first != name:
            entries.append(Entry(name, tuple(x.shape), x.dtype, tied_to=first))
            rows.append(TensorSize(name, tuple(x.shape), _DTYPE_NAMES[x.dtype], "", "", 0.0, None, 0, 0.0, first))
            continue
        x = x.detach() if signed_zeros else _without_signed_zeros(x.detach())
        encoded = codec.encode_tensor(x, declared.get(name), other)
        entries.append(Entry(name, tuple(x.shape), x.dtype, encoded.data))
        rows.append(_row(name, x, encoded))
    if isinstance(model, nn.Module) and (record := activations.record(model)) is not None:
        metadata[activations.KEY] = record
    return Container(entries, metadata, genuine=True), tuple(rows)


def _state_of(model: nn.Module | StateDict) -> tuple[dict[str, Tensor], dict[str, NumberFormat]]:
    """The state dict, refused if it holds something else than dense tensors, and the declared formats."""
    declared: dict[str, NumberFormat] = {}
    if isinstance(model, nn.Module):
        lazy = [name for name, p in [*model.named_parameters(), *model.named_buffers()] if is_lazy(p)]
        if lazy:
            raise TypeError(f"model has uninitialised lazy parameters, run one batch first: {', '.join(lazy)}")
        declared, model = declared_formats(model), model.state_dict()
    elif not isinstance(model, Mapping):
        raise TypeError(f"model must be a torch.nn.Module or a state dict, got {type(model).__name__}")
    for name, x in model.items():
        if not isinstance(name, str) or not isinstance(x, Tensor):
            raise TypeError(f"state dict must be tensors by name, got {type(x).__name__} at {name!r}")
        if x.layout != torch.strided or x.device.type == "meta" or x.dtype not in _DTYPE_NAMES:
            raise TypeError(f"{name!r} must be a dense tensor, got {x.layout}, {x.dtype} on {x.device.type}")
    return dict(model), {name: f for name, f in declared.items() if name in model}


def _memory(name: str, x: Tensor) -> Any:
    """What is equal for tensors that are one in memory."""
    if x.numel() == 0:
        return name
    return x.device, x.data_ptr(), x.dtype, x.shape, x.stride()


def _without_signed_zeros(x: Tensor) -> Tensor:
    return torch.where(x == 0, x.new_zeros(()), x) if x.dtype in _SIGNED else x


def _row(name: str, x: Tensor, encoded: codec.EncodedTensor) -> TensorSize:
    about = encoded.statistics
    return TensorSize(
        name, tuple(x.shape), _DTYPE_NAMES[x.dtype], encoded.layout, encoded.format,
        about.zeros / max(x.numel(), 1), about.distinct, len(encoded.data), about.entropy_bytes,
    )  # fmt: skip


def _decode(entry: Entry, path: Path) -> Tensor:
    try:
        return codec.decode_tensor(entry.data, entry.shape, entry.dtype)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {entry.name}: {error}") from None


def _find(container: Container, model: nn.Module, network: str | None, path: Path) -> Match:
    """The network in the file that is the model's."""
    shapes = {entry.name: entry.shape for entry in container.entries}
    wanted = replace(Wanted.by(model), optional=frozenset())
    matches = [match for match in find_network(shapes, wanted) if not match.unused]
    if not matches:
        differences = ". ".join(describe_misfit(shapes, wanted))
        raise ArtifactError(f"{path} does not fit the model: {differences}")
    try:
        return matches[choose([match.prefix or "." for match in matches], network, "network={!r}")]
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from None
