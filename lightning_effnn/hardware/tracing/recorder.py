"""What has been seen so far: the pieces of each call become drafts, the storages learn who wrote them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.tracing import evidence, spread, tables
from lightning_effnn.hardware.tracing.axes import NOWHERE, Axis, Label, Spot
from lightning_effnn.hardware.tracing.batch import Batch
from lightning_effnn.hardware.tracing.constants import reads
from lightning_effnn.hardware.tracing.doubts import Doubts
from lightning_effnn.hardware.tracing.drafts import Deployment, Draft, Size, Source
from lightning_effnn.hardware.tracing.flow import filled, inherit_axes
from lightning_effnn.hardware.tracing.holdings import Holdings
from lightning_effnn.hardware.tracing.memo import (
    Met,
    Results,
    Step,
    results_of,
    step_of,
)
from lightning_effnn.hardware.tracing.modules import clean_name
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Product, Vector
from lightning_effnn.hardware.tracing.seen import Place, Seen
from lightning_effnn.hardware.tracing.steps import Steps
from lightning_effnn.hardware.tracing.storage import (
    Record,
    StorageBook,
    dtype_format,
    is_counted,
    stored_elements,
)

_LOSS_INPUT = "_log_softmax"  # cross entropy is this and nll_loss
_NOTHING: tuple[Spot, ...] = ()


class Recorder:
    """The state of one open trace.

    Args:
        model: its parameters, buffers and plain tensors are the constants.
        deployed: inferences in the deployment batch.
    """

    def __init__(self, model: nn.Module, deployed: int) -> None:
        self.book = StorageBook()
        self.drafts: list[Draft] = []
        self.batch: Batch | None = None
        self.lost: set[str] = set()
        self._drawing: set[str] = set()  # modules that look up what random numbers say
        self._doubts = Doubts()
        self._reading = ""  # what a module said of the axes
        self._steps = Steps(self.book)
        self._settled = False  # a module has said which axis holds steps
        self._deployed = deployed
        self.holdings = Holdings(self.book)
        self._last: int | None = None
        self._last_tainted: int | None = None
        self._constants: dict[str, tuple[int, bool]] = {}
        self._owners = {id(m): clean_name(name) for name, m in model.named_modules()}
        owned: list[tuple[str, Tensor, bool]] = [(n, t, True) for n, t in model.named_parameters()]
        owned += [(n, t, False) for n, t in model.named_buffers()]
        for prefix, module in model.named_modules():
            owned += [(f"{prefix}.{n}".lstrip("."), t, False) for n, t in vars(module).items() if isinstance(t, Tensor)]
        for name, tensor, is_parameter in owned:
            record = self.book.of(tensor)
            if record is not None and is_parameter and tensor.layout is torch.strided:
                record.parts = tuple(sorted({*record.parts, (int(tensor.storage_offset()), clean_name(name))}))
            if record is not None and (record.parameter is None or is_parameter):
                record.parameter = clean_name(name)
                self._constants[record.parameter] = (stored_elements(tensor), is_parameter)

    def meet(self, module: nn.Module) -> None:
        """Know the parameters that a sharded module has gathered for the time that it runs."""
        owner = self._owners.get(id(module))
        for name, tensor in module._parameters.items():
            if tensor is None:
                continue
            record = self.book.of(tensor)
            if record is None or record.parameter is not None or not isinstance(tensor, nn.Parameter):
                continue
            whole = f"{owner}.{name}".lstrip(".")
            if whole in self._constants:  # it is not tied, and the module was not made on the fly
                record.parameter = whole

    def see_batch(self, batch: Batch) -> None:
        """Take these tensors as the batch: what depends on them is rescaled."""
        self.batch = batch
        self._steps.clear()
        self.holdings.see(batch)

    def hear(self, name: str, tensor: Tensor) -> None:
        """Learn from a module that takes the batch as its second axis which axis that is.

        Args:
            name: the module's.
            tensor: its input; with two axes it is a single sequence.
        """
        batch = self.batch
        if self._settled or batch is None or batch.main is None or tensor.dim() not in (2, 3):
            return
        dims = {dim for spot in self.holdings.of(tensor) if spot.label.verdict for dim, _, _ in spot.dims}
        if dims & {0, 1}:
            self._settled = True
            if 1 in dims and batch.other is not None:
                batch.other.refute()
            if 1 not in dims:
                single = tensor.dim() == 2
                self._reading = evidence.steps_first(name, tensor.shape[1], single)
                self._turn(batch, batch.main, 1 if single else tensor.shape[1])

    def _turn(self, batch: Batch, steps: Label, size: int) -> None:
        """What was taken for the batch holds steps: axis 1 is the batch."""
        batch.size = size
        steps.verdict = False
        if batch.other is None or batch.other.size != size:
            if batch.other is not None:
                batch.other.refute()
            batch.other = Label(size)
            for record in self.book:
                if any(axis.label.root is steps.root for axis in record.axes):
                    record.axes += (Axis(batch.other, NOWHERE, size, size),)
        batch.other.verdict = True
        self.holdings.sizes = frozenset({size})

    def settle(self) -> tuple[Deployment, list[str]]:
        """Decide which axes are the batch; what they were decided to be, and what that assumes."""
        drafts = {
            id(draft.template or draft): draft for draft in self.drafts
        }.values()  # of others the labels are those
        labels = [label for draft in drafts for axes in draft.held.values() for label, _, _, _ in axes]
        notes = evidence.settle(self.batch, self._reading, labels)
        size = None if self.batch is None else self.batch.size
        graph = self.batch is not None and self.batch.graph
        for label in [label for draft in drafts for label in draft.every_label()]:
            if label.verdict is None:
                # What never meets the batch is a constant, unless it is an axis of the example or drawn at random.
                label.verdict = not graph and label.root.given
        if not any(draft.extents and draft.charged() for draft in self.drafts):
            notes += self._keep_constants()
        if self._drawing:
            notes.append(
                f"random numbers decide what {', '.join(sorted(self._drawing))} looks up: the figures are those of one"
                " draw"
            )
        notes += self._doubts.said(self.drafts, size)
        if self.lost:
            notes.append(
                f"where the batch lies in the results of {', '.join(sorted(self.lost))} could not be told: their"
                " elements were scaled as a whole"
            )
        return Deployment(self._deployed, None if graph and size == 1 else size), notes

    def _keep_constants(self) -> list[str]:
        """What doesn't depend on the batch at all is no work on constants: the network is fed with something else."""
        products = [draft for draft in self.drafts if draft.extents]
        for draft in self.drafts if products else ():
            draft.varies = True
        return ["no product that ran depends on the batch: all of them were counted as they ran"] if products else []

    def tag(self, tensor: Tensor, number_format: NumberFormat) -> None:
        """Declare how ``tensor`` is stored; who computed it writes it so."""
        record = self.book.of(tensor)
        if record is None:
            return
        record.format = number_format
        if record.producer is not None and self.drafts[record.producer].readers == 0:
            self.drafts[record.producer].o_format = number_format

    def miss(self, name: str, op: str, inputs: Sequence[Tensor], place: Place) -> None:
        """Count a call whose tensors could not be looked at."""
        number = sum(t.numel() for t in inputs)
        formats = dtype_format(torch.float32)
        self.drafts.append(
            Draft(
                place.name, name, "unknown", place.phase, place.frame, formats, formats, formats, reads=[(number, ())]
            )
        )

    def look(self, inputs: Sequence[Tensor], count: bool) -> Seen:
        """Note what a call is about to read; it may change it."""
        looked: list[tuple[Tensor, Record | None, tuple[Spot, ...]]] = []
        tainted, formats = False, set()
        for tensor in inputs:
            record = self.book.of(tensor)
            looked.append((tensor, record, _NOTHING if record is None else self.holdings.of(tensor, record)))
            if record is not None:
                tainted = tainted or record.tainted
                if tensor.is_floating_point() and tensor.dim():
                    formats.add(record.format)
        seen = Seen(looked, tainted)
        seen.format = next(iter(formats)) if len(formats) == 1 else None
        if count:
            sizes: dict[int, tuple[int | None, Size]] = {}
            for tensor, record, spots in looked:
                key = id(tensor)
                seen.counts[key] = self.book.count(tensor, record) if is_counted(tensor) else None
                seen.formats[key] = (record.format if record is not None else None) or dtype_format(tensor.dtype)
                if record is not None:  # read twice by one operation is read once
                    sizes[id(record)] = (record.producer, spread.size(tensor, spots, copies=record.copies))
            seen.sources = list(sizes.values())
        return seen

    def meet_again(self, kind: Hashable, arguments: Hashable, inputs: Sequence[Tensor], place: Place) -> Met | None:
        """Know a call that is about to run from one that ran before, and count what it may overwrite.

        Args:
            kind: the operation.
            arguments: its signature.
            inputs: what it reads.
            place: where it runs.
        """
        if self.holdings.marks(inputs):
            return None
        return self._steps.meet(kind, arguments, inputs, place, self.holdings.extents())

    def repeat(self, met: Met, step: Step, inputs: Sequence[Tensor], outputs: Sequence[Tensor], place: Place) -> bool:
        """Add a call whose step is known, after it ran; ``False`` if its results are others than that step's."""
        before = met.records
        records = step.written(outputs, inputs, before, self.book)
        if records is None:
            return False
        step.take(met.roots)
        draft = None if step.draft is None else step.draft_of(met, place)
        sources: list[Source] = []
        if draft is not None:
            sources = [(before[n].producer, size) for n, size in zip(step.parts.sources, step.sizes, strict=True)]
        for n in step.cleared:
            before[n].counts.clear()
        for record in before:
            record.module = place.name
        for record, known in zip(records, step.states, strict=True):
            if known is not None:
                record.known = known
                if record not in before:
                    record.producer = next((r.producer for r in before if r.producer is not None), None)
                    record.values = before[0].identity if step.copies else 0
        if draft is not None:
            if step.parts.output is not None:
                n, part = step.parts.output
                draft.o_count = self.book.count_part(outputs[n], records[n], part)
            self._add(draft, step.tainted, sources)
            self._wrote(records, sources)
        return True

    def _remember(
        self,
        met: Met,
        results: Results,
        call: Call,
        seen: Seen,
        pieces: Sequence[Piece],
        drafts: Sequence[Draft],
    ) -> None:
        if len(pieces) > 1 or any(isinstance(p, Vector) and (p.loss or p.kind == "unknown") for p in pieces):
            return
        self._steps.remember(met, step_of(met, results, call, seen, *zip(pieces, drafts, strict=False)))

    def record(self, call: Call, seen: Seen, pieces: Sequence[Piece], place: Place, met: Met | None = None) -> None:
        """Add one call, after it ran.

        Args:
            call: what ran.
            seen: what :meth:`look` noted before it ran.
            pieces: what it consists of; empty if it costs nothing.
            place: where it ran.
            met: the call, if it came before.
        """
        results = None if met is None else results_of(call.outputs, met.records, self.book)
        sizes = self.holdings.extents()
        self._forget(call)
        evidence.meet(call, seen.looked, place.name)
        if not call.backward:
            evidence.look_up(call, seen.looked, place.name)
            if call.name in tables.GATHERS and any(r is not None and r.drawn for _, r, _ in seen.looked[1:]):
                self._drawing.add(place.name or "the model")
        self._doubts.notice(call, seen, place.name, graphs=bool(self.holdings.graphs))
        multiplies = any(isinstance(piece, Product) for piece in pieces)
        records = self._inherit(call, seen, seen.format if call.keeps_format else None, multiplies)
        for _, record, _ in seen.looked:
            if record is not None:
                record.module = place.name
        start = len(self.drafts)
        if pieces:
            outputs = [
                (t, r, _NOTHING if r is None else self.holdings.of(t, r))
                for t, r in zip(call.outputs, records, strict=True)
            ]
            for piece in pieces:
                draft = self._draft(call, piece, place, seen, outputs)
                if draft is None:
                    continue
                self._add(draft, seen.tainted, seen.sources)
        if len(self.drafts) > start:
            self._wrote(records, seen.sources)
            self._wrote_parts(pieces, start)
        if met is not None and results is not None and sizes == self.holdings.extents():
            self._remember(met, results, call, seen, pieces, self.drafts[start:])

    def pass_on(self, call: Call, seen: Seen) -> None:
        """Add a call that is none of the model's work, after it ran: only what its results depend on is noted."""
        self._forget(call)
        self._inherit(call, seen, None, False)

    def _add(self, draft: Draft, tainted: bool, sources: Sequence[Source]) -> None:
        draft.previous = before = self._last_tainted if tainted else self._last
        for producer, size in sources:
            if producer == before:
                draft.handed = size
                break
        else:
            draft.handed = None
        self._last = len(self.drafts)
        self._last_tainted = self._last if tainted else self._last_tainted
        self.drafts.append(draft)

    def _wrote(self, records: Sequence[Record | None], sources: Sequence[Source]) -> None:
        for producer in {producer for producer, _ in sources}:
            if producer is not None:
                self.drafts[producer].readers += 1
        for record in records:
            if record is not None:
                record.producer = self._last

    def _wrote_parts(self, pieces: Sequence[Piece], start: int) -> None:
        """Of several pieces, each has its own results."""
        index = start
        for piece in pieces:
            if index < len(self.drafts) and self.drafts[index].piece is piece:
                self.drafts[index].piece = None
                if len(pieces) > 1:
                    for tensor in piece.writes:
                        record = self.book.of(tensor)
                        if record is not None:
                            record.producer = index
                index += 1

    def _draft(self, call: Call, piece: Piece, place: Place, seen: Seen, outputs: spread.Outputs) -> Draft | None:
        number_format = dtype_format((call.outputs or call.inputs)[0].dtype)
        draft = Draft(
            place.name, call.name, piece.kind, place.phase, place.frame, number_format, number_format, number_format,
            piece=piece, share=spread.share(call, seen, outputs),
            varies=seen.tainted or not self._knows_batch() or call.random,
        )  # fmt: skip
        draft.labels = _active(seen, isinstance(piece, Product))
        if isinstance(piece, Product):
            if not all(piece.extents.values()):
                return None
            self._multiply(draft, piece, seen, outputs)
        elif not self._move(draft, piece, call, seen, outputs, place):
            return None
        draft.constants = list(reads(seen, piece, call.backward, self._constants))
        return draft

    def _multiply(self, draft: Draft, piece: Product, seen: Seen, outputs: spread.Outputs) -> None:
        weight, result = piece.weight, piece.output
        draft.extents, draft.windows, draft.repeats = dict(piece.extents), piece.windows, piece.repeats
        default = draft.o_format
        draft.i_format = seen.formats.get(id(piece.input), default)
        draft.w_format = piece.w_format or seen.formats.get(id(weight), default)
        draft.o_format = default if result is None else dtype_format(result.dtype)
        draft.w_count, draft.i_count = seen.counts.get(id(weight)), seen.counts.get(id(piece.input))
        draft.o_count = None if result is None or not is_counted(result) else self.book.count(result)
        record = None if weight is None else self.book.of(weight)
        draft.w_varies = record is None or record.tainted or (record.parameter is None and not self._knows_batch())
        if weight is not None and (record is None or record.computed or not record.parameter):
            draft.w_labels = tuple(spot.label for spot in seen.spots_of(weight))
        draft.held = spread.held(piece, seen, outputs)
        if draft.share:
            placed = {label.root for axes in draft.held.values() for label, _, _, _ in axes}
            draft.share = [(label, rows, whole, label.root in placed) for label, rows, whole, _ in draft.share]
        if weight is not None and weight.layout is torch.strided and not weight.is_nested:
            copies = None if record is None else record.copies
            spread.read_once(draft, piece, weight, copies, seen.spots_of(weight))

    def _move(
        self, draft: Draft, piece: Vector, call: Call, seen: Seen, outputs: spread.Outputs,
        place: Place,
    ) -> bool:  # fmt: skip
        known = {id(t): spots for t, _, spots in outputs}
        axes = tuple(tuple(s.held for s in spots) for _, _, spots in (*seen.looked, *outputs) if spots)
        if piece.elements_in is not None:
            also = ((t, spread.held_by(call, t, seen.spots_of(t), seen)) for t in piece.also)
            draft.reads = [(piece.elements_in, axes), *(spread.size(t, spots) for t, spots in also)]
        else:
            parts = call.name in spread.JOINING
            read = {
                n if parts else id(record): spread.size(
                    tensor, spread.held_by(call, tensor, spots, seen), parts, record.copies
                )
                for n, (tensor, record, spots) in enumerate(seen.looked)
                if record is not None and any(tensor is t for t in piece.reads)
            }
            draft.reads = list(read.values())
        if piece.elements_out is not None:
            draft.writes = [(piece.elements_out, axes)]
        else:
            draft.writes = [spread.size(t, known.get(id(t), _NOTHING)) for t in piece.writes]
        if not any(n for n, _ in draft.reads) and not any(n for n, _ in draft.writes):
            return False
        main = piece.reads[0] if piece.reads else None
        result = piece.writes[0] if piece.writes else None
        written = draft.o_format if result is None else dtype_format(result.dtype)
        draft.i_format = draft.w_format = seen.formats.get(id(main), written)
        draft.o_format = seen.format if piece.keeps_format and seen.format and result is not None else written
        draft.i_count = seen.counts.get(id(main))
        draft.o_count = None if result is None or not is_counted(result) else self.book.count(result)
        draft.operations, draft.possible = (piece.operations, axes), piece.possible_macs
        draft.fusable = piece.fusable
        draft.bias = spread.bias(call, seen)
        if piece.loss:
            self._mark_loss_input(main, place)
            draft.phase = "loss" if place.phase == "forward" else place.phase
        return True

    def _forget(self, call: Call) -> None:
        """What was known of values that are overwritten."""
        for tensor in call.overwritten():
            record = self.book.of(tensor)
            if record is not None:
                record.counts.clear()
                if any(tensor is t for t in call.written):
                    record.format = None

    def _inherit(
        self, call: Call, seen: Seen, number_format: NumberFormat | None, multiplies: bool
    ) -> list[Record | None]:
        """What the results have from what was read."""
        known = {id(r) for _, r, _ in seen.looked}
        changed = {id(self.book.of(t)) for t in call.written}
        held = any(spots for _, _, spots in seen.looked)
        records = [self.book.of(tensor) for tensor in call.outputs]
        for tensor, record in zip(call.outputs, records, strict=True):
            if record is None or (id(record) in known and id(record) not in changed):
                continue
            if id(record) in known:
                record.tainted, record.computed = record.tainted or seen.tainted or call.random, True
            else:
                self._born(record, call, seen)
            record.format = number_format
            record.active = () if call.fills else _active(seen, multiplies)
            if (seen.tainted or held) and call.name not in tables.NEW:
                axes, lost = inherit_axes(call, seen.looked, tensor)
                if call.name == "repeat":
                    axes += self.holdings.repeated(call, tensor, axes)
                if id(record) in known:
                    axes = filled(record.axes, axes)
                if lost and not tensor.is_nested:
                    self.lost.add(call.name)
                if call.name == "cat" or (self.batch is not None and self.batch.concatenated):
                    self.holdings.more_rows(call, tensor, axes)
                record.axes = axes or (record.axes if id(record) in known else ())
            else:
                record.axes = self.holdings.made(call, tensor) or record.axes
        if call.name in tables.COPIES:
            self.holdings.written_out(call)
        return records

    def _born(self, record: Record, call: Call, seen: Seen) -> None:
        """A new storage is what it was computed from."""
        record.tainted = (seen.tainted and not call.fills) or call.random
        record.drawn = call.random
        record.computed = call.name not in tables.COPIES
        for _, source, _ in seen.looked:
            if source is None:
                continue
            if call.name in tables.COPIES:
                record.values = source.identity
            if record.producer is None:
                record.producer = source.producer
            if record.parameter is None and not seen.tainted:
                record.parameter = source.parameter
            record.computed = record.computed or source.computed

    def _mark_loss_input(self, main: Tensor | None, place: Place) -> None:
        record = None if main is None else self.book.of(main)
        if record is not None and record.producer is not None:
            draft = self.drafts[record.producer]
            if draft.op == _LOSS_INPUT and draft.frame == place.frame and draft.phase == "forward":
                draft.phase = "loss"

    def _knows_batch(self) -> bool:
        """Without a batch nothing is known to be constant."""
        return self.batch is not None and bool(self.batch.tensors)


def _active(seen: Seen, multiplies: bool) -> tuple[Label, ...]:
    """The axes along which products were done to make what is read, and those of the product that is being done."""
    labels = {label.root: label for _, record, _ in seen.looked if record is not None for label in record.active}
    if multiplies:
        labels |= {spot.label.root: spot.label for _, _, spots in seen.looked for spot in spots}
    return tuple(label for label in labels.values() if label.verdict is not False)
