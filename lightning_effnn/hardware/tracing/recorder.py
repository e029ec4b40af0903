"""What has been seen so far: the pieces of each call become drafts, the storages learn who wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.operation import Phase
from lightning_effnn.hardware.tracing.batch import Batch
from lightning_effnn.hardware.tracing.drafts import Draft, scaled
from lightning_effnn.hardware.tracing.modules import Frame, clean_name
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Product, Vector
from lightning_effnn.hardware.tracing.storage import (
    Count,
    Record,
    StorageBook,
    dtype_format,
    stored_elements,
)
from lightning_effnn.hardware.tracing.tables import FACTORIES

_UNDECLARED_WRITES = ("running_mean", "running_var")  # batch normalisation does not say so in its schema
_LOSS_INPUT = "_log_softmax"  # cross entropy is this and nll_loss


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A parameter that the batch read (or a buffer it was multiplied with), as it is stored.

    Attributes:
        name: qualified name.
        elements, nonzero: how many numbers, and how many of them are not zero.
        format: how each is stored.
    """

    name: str
    elements: int
    nonzero: int
    format: NumberFormat

    @property
    def bits(self) -> int:
        """Bits of all elements together, stored dense."""
        return self.elements * self.format.bits


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call ran: name and number of the module call, and the phase."""

    name: str
    frame: int
    phase: Phase


@dataclass(slots=True)
class Seen:
    """What a call read, as it was before the call.

    Attributes:
        records: what is known of the storages read.
        tainted: whether any of them depends on the batch.
        format: the tag that all floating inputs share.
        counts, formats: non-zeros and formats by tensor.
        sources: for each storage read, who wrote it and how many elements are read of it.
    """

    records: list[Record]
    tainted: bool
    format: NumberFormat | None = None
    counts: dict[int, Count | None] = field(default_factory=dict)
    formats: dict[int, NumberFormat] = field(default_factory=dict)
    sources: list[tuple[int | None, int]] = field(default_factory=list)

    def count_of(self, tensor: Tensor | None) -> Count | None:
        """Non-zeros of ``tensor``; ``None`` if it was not counted."""
        return self.counts.get(id(tensor))

    def format_of(self, tensor: Tensor | None, default: NumberFormat) -> NumberFormat:
        """Format of ``tensor``; ``default`` if it was not among the inputs."""
        return self.formats.get(id(tensor), default)


class Recorder:
    """The state of one open trace.

    Args:
        model: its parameters and buffers are the constants.
        deployed: inferences in the deployment batch.
    """

    def __init__(self, model: nn.Module, deployed: int) -> None:
        self.book = StorageBook()
        self.drafts: list[Draft] = []
        self.unknown: dict[str, int] = {}
        self.batch: Batch | None = None
        self._deployed = deployed
        self._scale = Fraction(1)
        self._last: int | None = None
        self._last_tainted: int | None = None
        self._constants: dict[str, tuple[int, bool]] = {}
        self._weights: dict[str, tuple[Count | None, NumberFormat]] = {}
        self._owners = {id(m): clean_name(name) for name, m in model.named_modules()}
        owned: list[tuple[str, Tensor, bool]] = [(n, t, True) for n, t in model.named_parameters()]
        owned += [(n, t, False) for n, t in model.named_buffers()]
        for name, tensor, is_parameter in owned:
            record = self.book.of(tensor)
            if record is not None:
                record.parameter = clean_name(name)
                self._constants[record.parameter] = (stored_elements(tensor), is_parameter)

    def meet(self, module: nn.Module) -> None:
        """Know the parameters that a sharded module has gathered for the time that it runs."""
        owner = self._owners.get(id(module))
        for name, tensor in module._parameters.items():
            whole = f"{owner}.{name}".lstrip(".")
            if tensor is None or whole not in self._constants:  # tied, or a module made on the fly
                continue
            record = self.book.of(tensor)
            if record is not None and record.parameter is None and isinstance(tensor, nn.Parameter):
                record.parameter = whole

    def see_batch(self, batch: Batch) -> None:
        """Take these tensors as the batch: what depends on them is rescaled."""
        self.batch = batch
        if batch.size and (not batch.graph or batch.size > 1):
            self._scale = Fraction(self._deployed, batch.size)
        for record in self._records(batch.tensors):
            record.tainted = True

    def weights(self) -> tuple[StoredWeight, ...]:
        """Each parameter that was read once, as it was last read."""
        found = []
        for name, (count, number_format) in self._weights.items():
            elements = self._constants[name][0]
            nonzero = elements if count is None else round(count.density() * elements)
            found.append(StoredWeight(name, elements, nonzero, number_format))
        return tuple(found)

    def tag(self, tensor: Tensor, number_format: NumberFormat) -> None:
        """Declare how ``tensor`` is stored; who computed it writes it so."""
        record = self.book.of(tensor)
        if record is None:
            return
        record.format = number_format
        if record.producer is not None and self.drafts[record.producer].readers == 0:
            self.drafts[record.producer].o_format = number_format

    def note_unknown(self, op: str, number: int) -> None:
        """List an operation that nobody knows, with the elements it moves."""
        self.unknown[op] = self.unknown.get(op, 0) + number

    def miss(self, name: str, op: str, inputs: Sequence[Tensor], frame: Frame) -> None:
        """Count a call whose tensors could not be looked at."""
        number = sum(t.numel() for t in inputs)
        self.note_unknown(op, number)
        formats = dtype_format(torch.float32)
        self.drafts.append(
            Draft(frame.name, name, "unknown", "forward", frame.number, formats, formats, formats, elements_in=number)
        )

    def look(self, inputs: Sequence[Tensor], count: bool) -> Seen:
        """Note what a call is about to read; it may change it."""
        records = self._records(inputs)
        formats = {r.format for t, r in self._pairs(inputs) if t.dim() and t.is_floating_point()}
        seen = Seen(records, any(r.tainted for r in records))
        seen.format = next(iter(formats)) if len(formats) == 1 else None
        if count:
            seen.counts = {id(t): self.book.count(t) for t in inputs if _is_counted(t)}
            seen.formats = {id(t): self.book.format_of(t) for t in inputs}
            sizes: dict[int, tuple[int | None, int]] = {}
            for tensor, record in self._pairs(inputs):  # read twice by one operation is read once
                sizes[id(record)] = (record.producer, self._elements(tensor, record.tainted))
            seen.sources = list(sizes.values())
        return seen

    def record(self, call: Call, seen: Seen, pieces: Sequence[Piece], place: Place) -> None:
        """Add one call, after it ran.

        Args:
            call: what ran.
            seen: what :meth:`look` noted before it ran.
            pieces: what it consists of; empty if it costs nothing.
            place: where it ran.
        """
        tainted = seen.tainted or self._starts_from_batch(call)
        self._forget(call)
        sums = self._batch_sums(call, pieces) if tainted else frozenset()
        start = len(self.drafts)
        for piece in pieces:
            draft = self._draft(call, piece, place, seen, tainted, sums)
            if draft is None:
                continue
            draft.previous = self._last_tainted if tainted else self._last
            self._last = len(self.drafts)
            self._last_tainted = self._last if tainted else self._last_tainted
            self.drafts.append(draft)
        self._inherit(call, seen.records, tainted, sums, seen.format if call.keeps_format else None)
        for record in seen.records:
            record.module = place.name
        if len(self.drafts) == start:
            return
        for producer in {p for p, _ in seen.sources if p is not None}:
            self.drafts[producer].readers += 1
        for record in self._records(call.outputs):
            record.producer = self._last
        index = start
        for piece in pieces:  # of several, each has its own results
            if index < len(self.drafts) and self.drafts[index].piece is piece:
                for record in self._records(_results(piece)):
                    record.producer = index
                self.drafts[index].piece = None
                index += 1
        self._read_weights(call, seen, pieces, tainted)

    def pass_on(self, call: Call) -> None:
        """Add a call that is none of the model's work, after it ran: only what its results depend on is noted."""
        records = self._records(call.inputs)
        tainted = any(r.tainted for r in records) or self._starts_from_batch(call)
        self._forget(call)
        self._inherit(call, records, tainted, self._batch_sums(call, ()) if tainted else frozenset(), None)

    def _draft(
        self, call: Call, piece: Piece, place: Place, seen: Seen, tainted: bool, sums: frozenset[int]
    ) -> Draft | None:
        scale = self._scale if tainted else Fraction(1)
        fallback = dtype_format(call.outputs[0].dtype if call.outputs else call.inputs[0].dtype)
        if isinstance(piece, Product):
            if not all(piece.extents.values()):
                return None
            extents = dict(piece.extents)
            if piece.batch:
                extents[piece.batch] = scaled(extents[piece.batch], scale)
            weight = self._record_of(piece.weight)
            result = piece.output
            return Draft(
                name=place.name,
                op=call.name,
                kind=piece.kind,
                phase=place.phase,
                frame=place.frame,
                i_format=seen.format_of(piece.input, fallback),
                w_format=seen.format_of(piece.weight, fallback),
                o_format=fallback if result is None else dtype_format(result.dtype),
                extents=extents | piece.windows,
                w_count=seen.count_of(piece.weight),
                i_count=seen.count_of(piece.input),
                o_count=None if result is None or not _is_counted(result) else self.book.count(result),
                w_constant=weight is not None and not weight.tainted and not self._unsure(weight),
                repeats=piece.repeats,
                piece=piece,
            )
        elements_in, elements_out = self._traffic(piece, seen, scale, tainted, sums)
        if not elements_in and not elements_out:
            return None
        main = piece.reads[0] if piece.reads else None
        result = piece.writes[0] if piece.writes else None
        written = fallback if result is None else dtype_format(result.dtype)
        read = seen.format_of(main, written)
        if piece.keeps_format and seen.format is not None and result is not None:
            written = seen.format
        if piece.loss:
            self._mark_loss_input(main, place)
        return Draft(
            name=place.name,
            op=call.name,
            kind=piece.kind,
            phase="loss" if piece.loss and place.phase == "forward" else place.phase,
            frame=place.frame,
            i_format=read,
            w_format=read,
            o_format=written,
            i_count=seen.count_of(main),
            o_count=None if result is None or not _is_counted(result) else self.book.count(result),
            elements_in=elements_in,
            elements_out=elements_out,
            operations=scaled(piece.operations, scale),
            sources=seen.sources,
            fusable=piece.fusable,
            piece=piece,
        )

    def _traffic(
        self, piece: Vector, seen: Seen, scale: Fraction, tainted: bool, sums: frozenset[int]
    ) -> tuple[int, int]:
        elements_in, elements_out = piece.elements_in, piece.elements_out
        if elements_in is None:
            read = {id(r): self._elements(t, r.tainted) for t, r in self._pairs(piece.reads)}
            elements_in = sum(read.values())
        else:
            elements_in = scaled(elements_in, scale)
        if elements_out is None:
            elements_out = sum(self._elements(t, tainted and id(t) not in sums) for t in piece.writes)
        else:
            elements_out = scaled(elements_out, scale)
        return elements_in, elements_out

    def _starts_from_batch(self, call: Call) -> bool:
        return call.name in FACTORIES and self._has_batch_axis(call.outputs)

    def _forget(self, call: Call) -> None:
        """What was known of values that are overwritten."""
        for record in self._records(call.written):
            record.counts.clear()
            record.format = None
        for name in _UNDECLARED_WRITES:
            statistics = self._record_of(call.get(name))
            if statistics is not None:
                statistics.counts.clear()

    def _inherit(
        self,
        call: Call,
        read: Sequence[Record],
        tainted: bool,
        sums: frozenset[int],
        number_format: NumberFormat | None,
    ) -> None:
        """What the results have from what was read."""
        known = {id(r) for r in read}
        parameter = None if tainted else next((r.parameter for r in read if r.parameter), None)
        producer = next((r.producer for r in read if r.producer is not None), None)
        changed = {id(r) for r in self._records(call.written)}
        for tensor, record in self._pairs(call.outputs):
            if id(record) not in known:
                record.tainted = tainted and id(tensor) not in sums
                record.producer, record.parameter = producer, parameter
                record.format = number_format
            elif id(record) in changed:
                record.tainted = record.tainted or tainted
                record.format = number_format

    def _batch_sums(self, call: Call, pieces: Sequence[Piece]) -> frozenset[int]:
        """Results of the backward pass that are summed over the batch: gradients of constants.

        A product says so itself; elsewhere it is told by the shape, that of a constant among the
        inputs, or by the first axis being summed over.
        """
        if not call.backward:
            return frozenset()
        shapes = {t.shape for t, r in self._pairs(call.inputs) if r.parameter is not None and not r.tainted}
        sums = {id(t) for t in call.outputs if t.shape in shapes}
        for piece in pieces:
            if isinstance(piece, Product) and piece.batch == "C" and piece.output is not None:
                sums.add(id(piece.output))
            elif isinstance(piece, Vector) and piece.kind == "reduce" and piece.writes:
                axes = call.get("dim")
                first = axes is None or axes == 0 or (isinstance(axes, list | tuple) and 0 in axes)
                sums.update(id(t) for t in piece.writes if first)
        if call.name.startswith(("embedding", "_embedding")):
            sums.update(id(t) for t in call.outputs)
        return frozenset(sums)

    def _read_weights(self, call: Call, seen: Seen, pieces: Sequence[Piece], tainted: bool) -> None:
        if not tainted and self.batch is not None and self.batch.tensors:
            return  # preparing a weight is not yet using it
        multiplied = {id(p.weight) for p in pieces if isinstance(p, Product)}
        for tensor, record in self._pairs(call.inputs):
            name = record.parameter
            if name is None or record.tainted or not (self._constants[name][1] or id(tensor) in multiplied):
                continue
            self._weights[name] = (seen.count_of(tensor), seen.format_of(tensor, dtype_format(tensor.dtype)))

    def _mark_loss_input(self, main: Tensor | None, place: Place) -> None:
        record = self._record_of(main)
        if record is not None and record.producer is not None:
            draft = self.drafts[record.producer]
            if draft.op == _LOSS_INPUT and draft.frame == place.frame and draft.phase == "forward":
                draft.phase = "loss"

    def _unsure(self, record: Record) -> bool:
        """Without a batch only what comes from a parameter alone is known to be constant."""
        return record.parameter is None and (self.batch is None or not self.batch.tensors)

    def _has_batch_axis(self, tensors: Sequence[Tensor]) -> bool:
        size = self.batch.size if self.batch is not None and not self.batch.graph else None
        return size is not None and any(size in t.shape for t in tensors)

    def _elements(self, tensor: Tensor, tainted: bool) -> int:
        return scaled(stored_elements(tensor), self._scale if tainted else Fraction(1))

    def _record_of(self, tensor: Tensor | None) -> Record | None:
        return None if tensor is None else self.book.of(tensor)

    def _pairs(self, tensors: Iterable[Tensor]) -> list[tuple[Tensor, Record]]:
        return [(t, r) for t in tensors if (r := self.book.of(t)) is not None]

    def _records(self, tensors: Iterable[Tensor]) -> list[Record]:
        return list({id(r): r for _, r in self._pairs(tensors)}.values())


def _results(piece: Piece) -> Sequence[Tensor]:
    if isinstance(piece, Vector):
        return piece.writes
    return () if piece.output is None else (piece.output,)


def _is_counted(tensor: Tensor) -> bool:
    """Indices and masks have no density worth knowing; 8-bit integers may be codes."""
    return tensor.is_floating_point() or tensor.is_complex() or tensor.dtype in (torch.int8, torch.uint8)
