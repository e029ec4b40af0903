"""What is known of each piece of memory while a trace is open.

Everything a trace has to remember about a tensor is kept by its *storage*: a view, a transpose or a
``detach`` shares the storage, so a format tag or the fact that the values depend on the batch passes
on by itself. No tensor is kept alive: the key is the storage's address, and a weak reference keeps
that address from being given out again.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache, lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lightning_effnn._torch import FakeTensor, StorageWeakRef, storage_key, strided
from lightning_effnn.formats import NumberFormat, format_of
from lightning_effnn.hardware.tracing.axes import Axis, Label

SMALLEST_NORMAL = 2.0**-126
"""Magnitudes up to this count as zero: hardware flushes denormals, and so does the simulator of
arXiv 2006.03463."""

_BLOCK = 1 << 16  # elements; half a megabyte at most
_SMALL = 1 << 12
_NUMPY: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64")}
_THRESHOLD = {kind: np.array(SMALLEST_NORMAL, kind) for kind in _NUMPY.values()}  # arrays compare quicker than scalars
_REAL_OF = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


@cache
def dtype_format(dtype: torch.dtype) -> NumberFormat:
    """Format of a tensor nobody tagged; a complex number is two reals."""
    return format_of(_REAL_OF.get(dtype, dtype))


@dataclass(slots=True, eq=False)
class Count:
    """Non-zeros among ``total`` elements. The count stays on its device until it is asked for, so
    that an accelerator does not wait."""

    nonzero: Tensor | int
    total: int

    def density(self) -> float:
        """Share of non-zeros; 1 of no elements."""
        return int(self.nonzero) / self.total if self.total else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What of a storage decides what an operation that reads it leads to.

    It never changes, so that storages of which the same is known share one, and one look tells that they do.

    Attributes:
        format: how its values are stored, where a quantiser has said so.
        tainted: whether the values depend on the example batch.
        drawn: whether they are random numbers.
        parameter: name of the parameter or buffer it is, or is computed from alone.
        parts: where each parameter begins, where several share the memory (recurrent layers on an accelerator).
        computed: whether it is computed from it.
        axes: where the batch lies in it.
        copies: an axis along which an expanded tensor was written out: its rows are all the same.
        active: axes along which products were done to make it: if one is the batch, it is no constant.
    """

    format: NumberFormat | None = None
    tainted: bool = False
    drawn: bool = False
    parameter: str | None = None
    parts: tuple[tuple[int, str], ...] = ()
    computed: bool = False
    axes: tuple[Axis, ...] = ()
    copies: Axis | None = None
    active: tuple[Label, ...] = ()


NOTHING_KNOWN = Known()
"""What is known of a new storage."""
STATE = tuple(f.name for f in fields(Known))
_Value = TypeVar("_Value")


class _OfKnown(Generic[_Value]):
    """An attribute of :class:`Known`, read and changed at a record."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, record: Record, owner: type) -> _Value:
        value: _Value = getattr(record.known, self._name)
        return value

    def __set__(self, record: Record, value: _Value) -> None:
        change: dict[str, Any] = {self._name: value}
        record.known = replace(record.known, **change)


@dataclass(slots=True, eq=False)
class Record:
    """One storage: what is known of it, which it may share with others, and what is its own.

    Attributes:
        weak: keeps the address taken, not the data.
        known: see there; each part of it can be read and changed here too.
        producer: index of the recorded operation that wrote the present values.
        values: identity of the record whose values these are too, in another order of memory; 0 for its own.
        module: name of the module call that last touched it.
        counts: non-zeros of the present values, by the part of the storage looked at.
    """

    weak: StorageWeakRef
    known: Known = NOTHING_KNOWN
    producer: int | None = None
    values: int = 0
    module: str = ""
    counts: dict[tuple[Any, ...], Count] = field(default_factory=dict)

    format = _OfKnown["NumberFormat | None"]()
    tainted = _OfKnown[bool]()
    drawn = _OfKnown[bool]()
    parameter = _OfKnown["str | None"]()
    parts = _OfKnown[tuple[tuple[int, str], ...]]()
    computed = _OfKnown[bool]()
    axes = _OfKnown[tuple[Axis, ...]]()
    copies = _OfKnown["Axis | None"]()
    active = _OfKnown[tuple[Label, ...]]()

    def name_of(self, tensor: Tensor) -> str:
        """The parameter that a tensor in this memory is, or is computed from; empty if there is none."""
        if self.computed or len(self.parts) < 2:
            return self.parameter or ""
        return max((part for part in self.parts if part[0] <= tensor.storage_offset()), default=(0, ""))[1]

    @property
    def identity(self) -> int:
        """The same for all storages that hold the same values, in whatever order."""
        return self.values or id(self)


Part = tuple[tuple[Any, ...], int]
"""Which part of a storage a tensor is, and how many elements that has."""


class StorageBook:
    """Records by storage, for the time one trace is open."""

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}
        self._counts: dict[tuple[int, int], Count] = {}  # one object for all that are the same
        self._parts: dict[tuple[Any, ...], Part] = {}  # by layout

    def of(self, tensor: Tensor) -> Record | None:
        """The record of ``tensor``'s storage; ``None`` for a tensor that has none (functorch wrappers)."""
        try:
            key, storage = storage_key(tensor)
            record = self._records.get(key)
            if record is None:
                record = self._records[key] = Record(StorageWeakRef(storage))  # type: ignore[no-untyped-call]
        except (NotImplementedError, RuntimeError, AttributeError):
            return None
        return record

    def plain(self, tensor: Tensor) -> tuple[Record, tuple[Any, ...]] | None:
        """The record and the layout of what is a plain view of memory with values in it; ``None`` for all else."""
        kind = type(tensor)
        if kind is not Tensor and kind is not nn.Parameter:
            return None
        if tensor.is_meta:
            return None
        try:  # what is sparse, packed or nested has no strides or no storage of its own
            storage = tensor.untyped_storage()
            layout = (
                tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, storage.nbytes(), tensor.device,
            )  # fmt: skip
        except (NotImplementedError, RuntimeError):
            return None
        key = storage._cdata
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = Record(StorageWeakRef(storage))  # type: ignore[no-untyped-call]
        return record, layout

    def format_of(self, tensor: Tensor) -> NumberFormat:
        """The tag of ``tensor``, else the format of its dtype."""
        record = self.of(tensor)
        return (record.format if record is not None else None) or dtype_format(tensor.dtype)

    def count(self, tensor: Tensor, record: Record | None = None) -> Count | None:
        """Non-zeros of ``tensor``, counted once for each version of its values."""
        plain = self.plain(tensor)
        try:
            if plain is not None:
                record, layout = plain
                part = self._parts.get(layout)
                if part is None:
                    part = self._parts[layout] = part_of(tensor)
                return self.count_part(tensor, record, part)
            record = record or self.of(tensor)
            if tensor.is_meta or isinstance(tensor, FakeTensor) or tensor.is_nested:
                return None
            tensor = strided(tensor)
            return self.count_part(tensor, record, part_of(tensor))
        except (RuntimeError, NotImplementedError, TypeError):  # no values to look at: fake, meta, wrapped
            return None

    def count_part(self, tensor: Tensor, record: Record | None, part: Part) -> Count:
        """The same for a tensor with values, of which the layout is known."""
        key, total = part
        if record is not None and key in record.counts:
            return record.counts[key]
        nonzero = _nonzero(tensor, len(key) == 1, total) if total else 0
        if isinstance(nonzero, int):
            count = self._counts.get((nonzero, total))
            if count is None:
                count = self._counts[nonzero, total] = Count(nonzero, total)
        else:
            count = Count(nonzero, total)
        if record is not None:
            record.counts[key] = count
        return count

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())


def stored_elements(tensor: Tensor) -> int:
    """Elements that exist in memory: an expanded axis is stored once, a sparse tensor's zeros never."""
    tensor = strided(tensor)
    if tensor.is_nested or (not tensor.is_complex() and 0 not in tensor.stride()):
        return tensor.numel()
    number = math.prod(s for s, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return number * (2 if tensor.is_complex() else 1)


def whole_elements(tensor: Tensor) -> int:
    """Elements of all the memory that a tensor is a view of."""
    if tensor.layout is not torch.strided:
        return stored_elements(tensor)
    number = tensor.untyped_storage().nbytes() // tensor.element_size()
    return number * (2 if tensor.is_complex() else 1)


def compact(tensor: Tensor) -> Tensor:
    """``tensor`` with each expanded axis taken once."""
    if 0 in tensor.stride():
        for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride == 0 and size > 1:
                tensor = tensor.narrow(axis, 0, 1)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def is_counted(tensor: Tensor) -> bool:
    """Indices and masks have no density worth knowing; 8-bit integers may be codes."""
    return tensor.is_floating_point() or tensor.is_complex() or tensor.dtype in (torch.int8, torch.uint8)


def part_of(tensor: Tensor) -> Part:
    """Which part of its storage a strided tensor is."""
    return _part(tensor), stored_elements(tensor)


def _part(tensor: Tensor) -> tuple[Any, ...]:
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    if whole and all(tensor.stride()):
        return (tensor.dtype,)  # any axes' order: the same values
    return (tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def _nonzero(tensor: Tensor, whole: bool, number: int) -> Tensor | int:
    """Non-zeros of a tensor with that many stored elements, or of a whole storage."""
    if not whole or tensor.is_complex():
        tensor = compact(tensor)
    kind = _NUMPY.get(tensor.dtype)
    if kind is not None and tensor.is_cpu and not tensor.is_neg():
        if whole or tensor.is_contiguous():  # its values lie next to each other, in whatever order
            values = np.ndarray(number, kind, _memory(tensor, number * kind.itemsize))
            return _nonzero_in(values) if number <= _SMALL else _nonzero_in_blocks(values)
        if number <= _SMALL:
            shape, strides = tensor.shape, tensor.stride()
            extent = sum([(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]) + 1
            steps = [kind.itemsize * stride for stride in strides]
            return _nonzero_in(np.ndarray(shape, kind, _memory(tensor, kind.itemsize * extent), 0, steps))
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return torch.count_nonzero(tensor)
    return torch.count_nonzero(~(tensor.abs() <= SMALLEST_NORMAL))  # so that what is no number is no zero


def _memory(tensor: Tensor, size: int) -> Any:
    """The memory of a tensor, to be read while it lives; ``Tensor.numpy`` would forbid FSDP to free it afterwards."""
    return _bytes(size).from_address(tensor.data_ptr())


@lru_cache(maxsize=1024)
def _bytes(number: int) -> Any:
    return ctypes.c_byte * number


def _nonzero_in(values: np.ndarray[Any, Any]) -> int:
    # What is no number is no zero.
    return values.size - int(np.count_nonzero(np.less_equal(np.abs(values), _THRESHOLD[values.dtype])))


def _nonzero_in_blocks(values: np.ndarray[Any, Any]) -> int:
    # An activation is larger than the cache: in blocks, magnitudes and comparisons never leave it. In one
    # thread: while others use the cores, waiting for them costs more than counting.
    size = min(_BLOCK, values.size)
    magnitudes, small = np.empty(size, values.dtype), np.empty(size, np.bool_)
    threshold, count = _THRESHOLD[values.dtype], 0
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        np.abs(block, out=magnitudes[: block.size])
        np.less_equal(magnitudes[: block.size], threshold, out=small[: block.size])
        count += block.size - int(np.count_nonzero(small[: block.size]))
    return count
