"""Where the batch lies in memory, and what of it a view holds.

Which axis of a tensor is the batch is remembered by storage, not by tensor: an :class:`Axis` says that the
byte at offset ``o`` belongs to row ``(o // stride) % size``. Whatever view is taken of that memory (a
transpose, a slice, ``[N, H]`` merged into ``[N * H]``), :func:`locate` finds from its sizes and strides alone
which of its axes run along the batch and how many rows they cover.

What is made from sizes alone (a state of zeros, a learned query expanded to ``N`` rows) may belong to the batch
or may have an axis of the same size by chance. Such an axis gets a :class:`Label` of its own without a verdict;
as soon as it is added to, or multiplied along, an axis whose label has one, both become the same label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

NOWHERE = 0
"""Stride of an axis whose place is not known."""
ONE_ROW = -1
"""Stride of an axis of which the storage holds a single row."""


class Label:
    """An axis of the example batch, or what may be one; labels that turn out to be the same are joined.

    Args:
        size: rows along the axis.
        verdict: whether it is the batch; ``None`` if that isn't known yet.
        given: whether it is an axis of the example, not of something made while it ran.

    >>> batch, zeros = Label(8, True), Label(8)
    >>> zeros.join(batch)
    >>> zeros.verdict
    True
    """

    __slots__ = ("_parent", "_verdict", "given", "mixed", "size")

    def __init__(self, size: int, verdict: bool | None = None, given: bool = False) -> None:
        self._parent: Label | None = None
        self._verdict = verdict
        self.size = size
        self.given = given
        self.mixed = ""  # where a constant mixes its rows, which no constant does to independent samples

    @property
    def root(self) -> Label:
        """The label that stands for all that were joined."""
        label = self
        while label._parent is not None:
            label = label._parent
        return label

    @property
    def verdict(self) -> bool | None:
        """Whether it is the batch."""
        return self._verdict if self._parent is None else self.root._verdict

    @verdict.setter
    def verdict(self, value: bool | None) -> None:
        self.root._verdict = value

    def join(self, other: Label) -> None:
        """Say that both are one axis: a batch if either is one. Labels with opposite verdicts stay apart."""
        mine, theirs = self.root, other.root
        if mine is theirs or {mine._verdict, theirs._verdict} == {True, False}:
            return
        if mine._verdict is None or theirs._verdict:
            mine, theirs = theirs, mine
        theirs._parent = mine
        mine.mixed, mine.given = mine.mixed or theirs.mixed, mine.given or theirs.given

    def refute(self) -> None:
        """Say that it is none, unless it is known to be one."""
        if self.verdict is None:
            self.verdict = False


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's strides in bytes, the same for views of another type (a complex number as two real ones)."""
    size = tensor.element_size()
    return tuple(stride * size for stride in tensor.stride())


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of the batch in one storage.

    Attributes:
        label: which axis it is.
        stride: bytes from one row to the next, :data:`NOWHERE` or :data:`ONE_ROW`.
        size: rows that the storage holds.
        whole: rows of the whole batch; larger than ``size`` in a part of it.
    """

    label: Label
    stride: int
    size: int
    whole: int


class Spot(NamedTuple):
    """What one tensor holds of an axis.

    Attributes:
        axis: the axis.
        dims: the tensor's dimensions that run along it: index, rows covered, indices a row.
        rows: rows covered in all.
    """

    axis: Axis
    dims: tuple[tuple[int, int, int], ...]
    rows: int

    @property
    def label(self) -> Label:
        """The axis's label."""
        return self.axis.label

    @property
    def held(self) -> Held:
        """The label, rows of the whole batch, and rows that are here."""
        return (self.axis.label, self.axis.whole, self.rows or 1)


Held = tuple[Label, int, int]
"""A label, and what a number has to be multiplied with and divided by to be that of all its rows."""


def locate(shape: Sequence[int], strides: Sequence[int], axis: Axis) -> Spot:
    """Find an axis in a view of the storage that has it.

    Args:
        shape, strides: the view's, strides in bytes.
        axis: the storage's.

    >>> batch = Axis(Label(4, True), stride=6, size=4, whole=4)
    >>> locate((4, 2, 3), (6, 3, 1), batch).dims, locate((8, 3), (3, 1), batch).dims
    (((0, 4, 1),), ((0, 4, 2),))
    >>> locate((2, 3), (3, 1), batch).rows  # one sample
    1
    """
    if axis.stride <= 0 or 0 in shape:
        return Spot(axis, (), axis.size)
    stride, size = axis.stride, axis.size
    flat = len(shape) == 1 or (len(shape) == 2 and strides[1] * (shape[1] - 1) < stride)
    if flat and shape[0] == size and strides[0] == stride:  # the usual case, quickly
        return Spot(axis, ((0, size, 1),), size)
    found: list[tuple[int, int, int]] = []
    rows = 1
    for dim, (extent, step) in enumerate(zip(shape, strides, strict=True)):
        if extent <= 1 or step == 0 or step >= stride * size:
            continue
        if step >= stride:
            covered, each = min(extent, -(-size * stride // step)), 1
        elif (extent - 1) * step >= stride:
            covered, each = min(size, (extent - 1) * step // stride + 1), stride // step
        else:
            continue
        found.append((dim, covered, each))
        rows *= covered
    return Spot(axis, tuple(found), min(rows, size))


def place(
    label: Label, shape: Sequence[int], strides: Sequence[int], dim: int, rows: int, whole: int, each: int
) -> Axis:
    """The axis of a storage whose contiguous or permuted tensor has the batch along ``dim``.

    Args:
        label: which axis.
        shape, strides: the tensor's, strides in bytes.
        dim: where the batch lies.
        rows: how many rows.
        whole: rows of the whole batch.
        each: indices of ``dim`` from one row to the next, where it holds more than rows.
    """
    extent, stride = shape[dim], strides[dim]
    if rows == 1:
        return Axis(label, ONE_ROW if whole > 1 else NOWHERE, 1, whole)
    if stride == 0 or extent == 1:
        return Axis(label, NOWHERE, rows if stride == 0 else 1, whole if stride == 0 else 1)
    if extent % rows == 0:
        return Axis(label, stride * (each if each * rows <= extent else 1), rows, whole)
    return Axis(label, stride, extent, extent)
