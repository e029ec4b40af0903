"""From pieces to operations: scaling to the deployment batch, folding, fusing, merging.

While the batch runs, each piece becomes a :class:`Draft` with the numbers of the batch that ran, and with the
axes of the batch that each number holds. What needs the whole trace is decided at the end: which axis is the
batch, what is work on constants alone (done before deployment, so no part of an inference), whether a step can
be fused; and counts of non-zeros are only then fetched from their device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from fractions import Fraction
from operator import attrgetter
from typing import Any

from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.operation import Kind, Operation, Phase
from lightning_effnn.hardware.tracing.axes import Held, Label
from lightning_effnn.hardware.tracing.pieces import Piece
from lightning_effnn.hardware.tracing.storage import Count

Size = tuple[int, tuple[tuple[Held, ...], ...]]
"""A number of elements in the batch that ran, and the axes of the batch that it holds: those of a tensor, or those
of each of several tensors, where it grows with the one that has most of them."""

Source = tuple["int | None", Size]
"""Which operation wrote what is read, and how much is read of it."""

Extents = dict[str, list[tuple[Label, int, int, bool]]]
"""For each loop extent the axes in it: label, factor, divisor, and whether it still is to be scaled to the
deployment."""


@dataclass(slots=True, eq=False)
class Read:
    """A constant that an operation reads.

    Attributes:
        key: the same for the same constant.
        name: the parameter or buffer that it is, or is computed from.
        elements: how many numbers are stored.
        held: the axes of the batch in it: of a constant repeated for each sample one is stored.
        active: axes which, if they are the batch, make it no constant but something computed for each sample.
    """

    key: object
    name: str
    elements: int
    count: Count | None
    format: NumberFormat
    held: tuple[Held, ...] = ()
    active: tuple[Label, ...] = ()


@dataclass(slots=True, eq=False)
class Draft:
    """An operation that is not finished.

    Attributes:
        frame: number of the module call it ran in.
        extents, held: loop extents, and the axes in each.
        share: labels, rows that this is about and rows of the whole batch, where it is not all of them, and whether
            the extents hold the label.
        previous: the operation right before it, leaving out those on constants alone.
        handed: how much it reads of what that one wrote.
        readers: how many operations read what it wrote.
        fusable: whether it could be applied to its input on the input's way out.
        bias: elements of a constant that it adds; 0 if it does anything else.
        possible: multiply-accumulates that an unknown operation could be.
        varies: whether it reads something that depends on the batch's values.
        labels: axes which, if they are the batch, make it more than work on constants.
        w_labels: the same for the second factor.
        constants: the constants that it reads.
        template: of the same call before, with the same sizes and the same labels.
    """

    name: str
    op: str
    kind: Kind
    phase: Phase
    frame: int
    i_format: NumberFormat
    w_format: NumberFormat
    o_format: NumberFormat
    extents: dict[str, int] = field(default_factory=dict)
    held: Extents = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    share: list[tuple[Label, int, int, bool]] = field(default_factory=list)
    w_count: Count | None = None
    i_count: Count | None = None
    o_count: Count | None = None
    w_varies: bool = False
    w_labels: tuple[Label, ...] = ()
    reads: list[Size] = field(default_factory=list)
    writes: list[Size] = field(default_factory=list)
    operations: Size = (0, ())
    repeats: int = 1
    previous: int | None = None
    handed: Size | None = None
    readers: int = 0
    fusable: bool = False
    bias: int = 0
    varies: bool = True
    labels: tuple[Label, ...] = ()
    constants: list[Read] = field(default_factory=list)
    possible: int = 0
    piece: Piece | None = None  # until its results are known to be written by this
    template: Draft | None = None

    def every_label(self) -> Iterator[Label]:
        """All axes that any of its numbers may hold."""
        yield from self.labels
        for axes in self.held.values():
            yield from (label for label, _, _, _ in axes)
        for _, tensors in (*self.reads, *self.writes, self.operations):
            yield from (label for held in tensors for label, _, _ in held)
        for read in self.constants:
            yield from (label for label, _, _ in read.held)

    def again(self) -> Draft:
        """The same operation once more, written and read by nobody yet."""
        draft = Draft(*_fields_of(self))
        draft.piece, draft.readers = None, 0
        return draft

    def charged(self) -> bool:
        """Whether it is work of an inference, not on constants alone."""
        return self.varies or any(label.verdict for label in self.labels)


_fields_of = attrgetter(*(f.name for f in fields(Draft)))


@dataclass(frozen=True)
class Deployment:
    """What the batch that ran is scaled to.

    Attributes:
        batch_size: inferences of the deployment batch.
        inferences: inferences of the batch that ran; ``None`` if it isn't known, and nothing is scaled.
    """

    batch_size: int
    inferences: int | None

    @property
    def share(self) -> Fraction:
        """Inferences wanted for one that ran."""
        return Fraction(self.batch_size, self.inferences) if self.inferences else Fraction(1)

    def scaled(self, *sizes: Size) -> int:
        """The sum of these numbers of elements, rounded up; something stays something."""
        total: int | Fraction = 0
        for number, tensors in sizes:
            if not tensors:
                total += number
                continue
            held: list[Held] = []
            for axes in tensors:
                batch = [entry for entry in axes if entry[0].verdict]
                held = batch if len(batch) > len(held) else held
            above, below = number, 1
            for label, whole, rows in held:
                if not _all_have(label, rows):
                    above, below = above * whole, below * rows
                above *= self.batch_size
                below *= self.inferences or self.batch_size
            total += above // below if above % below == 0 else Fraction(above, below)
        return math.ceil(total)

    def extents(self, draft: Draft) -> tuple[dict[str, int], int | Fraction]:
        """Loop extents, rounded up, and what their product has to be multiplied with to be exact."""
        extents = dict(draft.extents)
        exact: int | Fraction = 1
        for name, axes in draft.held.items():
            above, below = extents[name], 1
            for label, factor, divisor, whole in axes:
                if label.verdict:
                    if not _all_have(label, divisor):
                        above, below = above * factor, below * divisor
                    above *= self.batch_size if whole else 1
                    below *= (self.inferences or self.batch_size) if whole else 1
            extents[name] = -(-above // below)
            if above % below:
                exact *= Fraction(above, below * extents[name])
        return extents, exact

    def repeats(self, draft: Draft) -> int | Fraction:
        """How often it runs, where it is about a part of the batch only."""
        times: int | Fraction = draft.repeats
        for label, rows, whole, held in draft.share:
            if label.verdict and not _all_have(label, rows):
                times *= Fraction(rows, whole) if held else self.share
        return times


def _all_have(label: Label, rows: int) -> bool:
    """Whether that is a number of rows for each sample, such as one of two views that were put together."""
    return rows % label.root.size == 0


def finish(drafts: list[Draft], deployment: Deployment) -> tuple[Operation, ...]:
    """Drop work on constants, fuse, merge repeated operations, and fetch the densities."""
    training = any(draft.phase == "backward" for draft in drafts)  # a step prepares its constants anew
    finisher = _Finisher(deployment)
    ordered: list[tuple[Draft, int | None]] = []
    places: dict[int, int] = {}
    for draft in drafts:
        if not (training or draft.charged()):
            continue
        at, saved = len(ordered), None
        host = drafts[draft.previous] if draft.fusable and draft.previous is not None else None
        if host is not None and id(host) in places:
            saved = finisher.handed_on(draft, host)
            if saved is not None and _is_bias(draft, host, deployment):
                host.o_format, host.o_count = draft.o_format, draft.o_count
                host.readers, places[id(draft)] = draft.readers, places[id(host)]
                continue
            if saved is not None:  # work on constants in between can be done beforehand
                at = places[id(host)] + 1
                if at < len(ordered):
                    places = {key: place + (place >= at) for key, place in places.items()}
        places[id(draft)] = at
        ordered.insert(at, (draft, saved))
    groups: dict[tuple[int | None, int], list[tuple[Draft, int | Fraction]]] = {}
    for draft, saved in ordered:
        fields, times = finisher.fields(draft, saved)
        frame = None if draft.share and any(label.verdict for label, _, _, _ in draft.share) else draft.frame
        groups.setdefault((frame, fields), []).append((draft, times))
    return tuple(finisher.operation(fields, group) for (_, fields), group in groups.items())


class _Finisher:
    """Makes operations; those that are the same are made once, and numbered.

    Args:
        deployment: what the batch that ran is scaled to.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._fields: list[tuple[Any, ...]] = []  # by number
        self._known: dict[tuple[Any, ...], tuple[int, int | Fraction]] = {}
        self._made: dict[tuple[Any, ...], Operation] = {}
        self._alone: dict[tuple[Any, ...], Operation] = {}  # by the identity of the counts
        self._handed: dict[int, int] = {}  # elements by the identity of their size

    def handed_on(self, draft: Draft, host: Draft) -> int | None:
        """Elements that need not be read because the operation before hands them on; ``None`` if not fused."""
        if host.readers != 1 or draft.handed is None:
            return None
        key = id(draft.handed)
        if key not in self._handed:
            self._handed[key] = self._deployment.scaled(draft.handed)
        return self._handed[key]

    def fields(self, draft: Draft, saved: int | None) -> tuple[int, int | Fraction]:
        """The number of the fields that an operation has, and how often it runs."""
        same = (id(draft.template or draft), draft.phase, id(draft.o_format), saved)
        if same not in self._known:
            fields, times = _fields(draft, saved, self._deployment)
            number = self._numbers.setdefault(fields, len(self._numbers))
            if number == len(self._fields):
                self._fields.append(fields)
            self._known[same] = number, times
        return self._known[same]

    def operation(self, number: int, group: list[tuple[Draft, int | Fraction]]) -> Operation:
        """What operations with the same fields are together."""
        if len(group) > 1:
            return self._together(number, group)
        draft, times = group[0]
        same = number, id(draft.w_count), id(draft.i_count), id(draft.o_count), times
        if same not in self._alone:
            self._alone[same] = self._together(number, group)
        return self._alone[same]

    def _together(self, number: int, group: list[tuple[Draft, int | Fraction]]) -> Operation:
        times = sum([times for _, times in group])
        made = (
            number,
            _density([d.w_count for d, _ in group]),
            _density([d.i_count for d, _ in group]),
            _density([d.o_count for d, _ in group]),
            int(times) if times.denominator == 1 else float(times),
        )
        if made not in self._made:
            fields = self._fields[number]
            _, weights, inputs, outputs, repeats = made
            self._made[made] = Operation(
                **dict(zip(_FIELDS, fields, strict=False)),
                **dict(fields[-1]),
                w_density=weights,
                i_density=inputs,
                o_density=outputs,
                repeats=repeats,
            )
        return self._made[made]


def _is_bias(draft: Draft, host: Draft, deployment: Deployment) -> bool:
    """Whether a constant is added to each column of a product: into the accumulator, as if it were its bias."""
    if not draft.bias or not host.extents or host.phase == "backward":
        return False
    extents, _ = deployment.extents(host)
    return draft.bias in (extents["K"] * extents["G"], extents["K"])


def _fields(draft: Draft, saved: int | None, deployment: Deployment) -> tuple[tuple[Any, ...], int | Fraction]:
    """What an operation is made of, in the order of :data:`_FIELDS`, and how often it runs."""
    fields: tuple[Any, ...] = (
        draft.name, draft.op, draft.kind, draft.phase, draft.w_format, draft.i_format, draft.o_format,
        not draft.w_varies and not any(label.verdict for label in draft.w_labels),
        deployment.scaled(*draft.reads) - (saved or 0),
        deployment.scaled(*draft.writes),
        deployment.scaled(draft.operations),
        deployment.scaled((draft.possible, draft.operations[1])) if draft.possible else 0,
        saved is not None,
    )  # fmt: skip
    times = deployment.repeats(draft)
    if not draft.extents:
        return (*fields, ()), times
    extents, exact = deployment.extents(draft)
    return (*fields, (*extents.items(), *draft.windows.items())), times * exact


_FIELDS = (
    "name", "op", "kind", "phase", "w_format", "i_format", "o_format", "w_constant", "elements_in", "elements_out",
    "operations", "possible_macs", "fused",
)  # fmt: skip


def _density(counts: list[Count | None]) -> float:
    return sum(1.0 if c is None else c.density() for c in counts) / len(counts)
