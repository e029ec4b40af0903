"""What tensors hold of the batch: found by their memory, and by the extents that the batch is known to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lightning_effnn._torch import in_backward
from lightning_effnn.hardware.tracing.axes import NOWHERE, ONE_ROW, Axis, Label, Spot, locate, strides_of
from lightning_effnn.hardware.tracing.batch import Batch
from lightning_effnn.hardware.tracing.flow import made_from_sizes
from lightning_effnn.hardware.tracing.pieces import Call
from lightning_effnn.hardware.tracing.storage import Record, StorageBook


class Holdings:
    """The extents of the batch, and what a tensor holds of it.

    Args:
        book: knows the memory of each tensor.

    Attributes:
        sizes: extents that an axis of the batch may have.
        graphs: how many inferences of different sizes lie one behind the other, as graphs do; 0 if they don't.
    """

    def __init__(self, book: StorageBook) -> None:
        self.book = book
        self.sizes: frozenset[int] = frozenset()
        self._merged: dict[int, int] = {}  # extents that hold the batch and what is in it, and the batch's
        self.graphs = 0
        self._expanded = WeakIdKeyDictionary()
        self._marked = False  # whether that had anything in it

    def see(self, batch: Batch) -> None:
        """Take the tensors of the example as what holds the batch."""
        self.sizes = batch.sizes
        self.graphs = (batch.size or 0) if batch.concatenated else 0
        for tensor in batch.tensors:
            record = self.book.of(tensor)
            if record is not None:
                record.tainted = True
                record.axes = ()
        for tensor, dim, label in batch.axes:
            record = self.book.of(tensor)
            if record is not None and not tensor.is_nested:
                stride = strides_of(tensor)[dim] if label.size > 1 else NOWHERE
                record.axes += (Axis(label, stride, label.size, label.size),)
            elif record is not None:
                record.axes += (Axis(label, NOWHERE, label.size, label.size),)
        for tensor, label in batch.samples:
            record = self.book.of(tensor)
            if record is not None:
                record.axes = (Axis(label, ONE_ROW if label.size > 1 else NOWHERE, 1, label.size),)

    def marks(self, tensors: Sequence[Tensor]) -> bool:
        """Whether one of these was expanded in a batch of one, which its memory doesn't tell."""
        return self._marked and any(tensor in self._expanded for tensor in tensors)

    def made(self, call: Call, result: Tensor) -> tuple[Axis, ...]:
        """Axes that a tensor made from sizes or constants alone may have."""
        return made_from_sizes(call, result, self.sizes, self._merged) if self.sizes else ()

    def of(self, tensor: Tensor, record: Record | None = None) -> tuple[Spot, ...]:
        """What a tensor holds of the batch."""
        record = record or self.book.of(tensor)
        if record is None or not self.sizes or tensor.is_nested:
            return () if record is None else tuple(Spot(a, (), a.size) for a in record.axes)
        strided = tensor.layout is torch.strided
        if record.axes:
            if not strided:
                return tuple(Spot(a, (), a.size) for a in record.axes)
            shape, strides = tensor.shape, strides_of(tensor)
            found = [locate(shape, strides, axis) for axis in record.axes if axis.label.verdict is not False]
            # Single rows are taken of steps, experts and directions, not of what may be the batch.
            kept = tuple(s for s in found if s.label.verdict or s.label.root.given or s.rows == s.axis.whole)
            kept = tuple(self._of_all(spot) if self.graphs else _of_each(spot, shape, strides) for spot in kept)
            for spot in kept:
                for dim, rows, each in spot.dims if spot.label.verdict else ():
                    if each > 1 and rows * each == shape[dim]:
                        self._merged[shape[dim]] = rows
            # The batch stands in front more often than not: other expanded dimensions are something else then.
            return (*kept, *(s for s in self._expanded_spots(tensor) if not kept or any(d == 0 for d, _, _ in s.dims)))
        return self._expanded_spots(tensor) if strided else ()

    def _of_all(self, spot: Spot) -> Spot:
        """Of several nodes of each graph: all that there are of them, not a part that others are the rest of."""
        axis, rows, graphs = spot.axis, spot.rows, self.graphs
        if rows < axis.whole and spot.dims and (graphs in (1, rows) or rows * graphs > axis.whole):
            return Spot(replace(axis, whole=rows), spot.dims, rows)
        return spot

    def _expanded_spots(self, tensor: Tensor) -> tuple[Spot, ...]:
        """Dimensions along which one row was expanded to as many as the batch has."""
        backward = in_backward()
        if self._expanded and tensor in self._expanded:
            return (Spot(self._expanded[tensor], (), 1),)
        if 0 not in tensor.stride():
            return ()
        spots: list[Spot] = []
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            rows = size if size in self.sizes else 0
            if not rows and backward:  # the gradient of a sum: one number for all samples and whatever is in them
                rows = next((n for n in self.sizes if size % n == 0), 0)
            if stride == 0 and rows > 1 and not (backward and spots):
                label = Label(rows, given=backward)
                spots.append(Spot(Axis(label, NOWHERE, rows, rows), ((dim, rows, size // rows),), rows))
        return tuple(spots)

    def varies(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` depends on the example batch, or has an axis that may be the batch."""
        record = self.book.of(tensor)
        return record is not None and (record.tainted or bool(self.of(tensor, record)))

    def extents(self) -> tuple[object, ...]:
        """All extents that tell of the batch."""
        return (self.sizes, *self._merged.items())

    def follows(self, name: str) -> bool:
        """Whether :meth:`view` wants to know of a view."""
        return bool(self.sizes) and (name == "view" or (1 in self.sizes and (name == "expand" or bool(self._expanded))))

    def view(self, name: str, arguments: dict[str, object], source: Tensor, results: Sequence[Tensor]) -> None:
        """Learn which extents the batch makes with what is in it.

        In a batch of one, where sizes don't tell, remember constants that were expanded to it.
        """
        if name == "view":
            self._see_merged(source, results[0])
        if 1 not in self.sizes:
            return
        axis: Axis | None = self._expanded.get(source)  # type: ignore[no-untyped-call]
        if name == "expand" and axis is None:
            record, sizes = self.book.of(source), arguments.get("size")
            if record is None or record.axes or not isinstance(sizes, list | tuple):
                return
            lead = len(sizes) - source.dim()
            new = [size for d, size in enumerate(sizes) if size > 0 and (d < lead or source.shape[d - lead] == 1)]
            if new and all(size in self.sizes for size in new):  # what expands something else isn't for the batch
                axis = Axis(Label(1), NOWHERE, 1, 1)
        if axis is not None:
            self._marked = True
            for result in results:
                self._expanded[result] = axis

    def _see_merged(self, source: Tensor, result: Tensor) -> None:
        into_others = source.dim() > result.dim() > 0 and source.shape[0] == 1 != result.shape[0]
        if into_others and 1 in self.sizes and any(spot.label.verdict for spot in self.of(source)):
            self._merged[result.shape[0]] = 1
        self.of(result)

    def repeated(self, call: Call, result: Tensor, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        """Axes that repeating makes; of what has the batch already, only one in front of it."""
        made = made_from_sizes(call, result, self.sizes)
        if not any(axis.label.verdict for axis in axes):
            return made
        front = strides_of(result)[0]
        return tuple(axis for axis in made if axis.stride == front and all(axis.stride != a.stride for a in axes))

    def more_rows(self, call: Call, result: Tensor, axes: Sequence[Axis]) -> None:
        """Twice the batch, or more of it, is another extent to look for; so are the nodes that are left of graphs."""
        self.sizes |= {axis.whole for axis in axes if axis.label.verdict and axis.stride > 0}
        if call.name == "cat" and any(a.label.verdict and a.stride == NOWHERE == a.size - 1 for a in axes):
            along = (call.get("dim") or 0) % result.dim()
            if all(t.dim() == result.dim() and t.shape[along] == 1 for t in call.inputs):
                self.sizes |= {result.shape[along]}

    def written_out(self, call: Call) -> None:
        """A copy of an expanded tensor: the rows along the expanded axis are all the same."""
        source, result = call.inputs[0], call.outputs[0]
        record = self.book.of(result)
        if record is None or source.layout is not torch.strided or source.is_nested:
            return
        for dim, (size, stride) in enumerate(zip(source.shape, source.stride(), strict=True)):
            innermost = dim == source.dim() - 1 > 0  # where no batch lies
            batch = not innermost and any(d == dim for s in self.of(source) for d, _, _ in s.dims)
            if size > 1 and not stride and not batch:
                record.copies = Axis(Label(size), strides_of(result)[dim], size, size)


def _of_each(spot: Spot, shape: Sequence[int], strides: Sequence[int]) -> Spot:
    """Rows that are no whole number of samples' were taken from each sample, not from some of them."""
    if len(spot.dims) != 1:
        return spot
    dim, rows, each = spot.dims[0]
    extent = shape[dim]
    if each == 1 or extent == rows * each or extent >= spot.axis.size * each:
        return spot
    return Spot(Axis(spot.label, strides[dim], extent, extent), ((dim, extent, 1),), extent)
