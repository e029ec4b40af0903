"""What a call led to, for when the very same call comes again: the steps of a recurrence, layers called in a loop.

Looking at one small operation costs more than running it. All that a call leads to, but for the values that it
reads and who wrote them, follows from what :func:`key_of` puts in its key; so a call whose key has come before
leads to the same :class:`Step`, with counts, producers and the number of the module call of its own.

Labels are in the key by what they are (size, verdict) and by which of them are the same, not by their identity:
a state of zeros made anew in each step has a new label each time, and its calls are the same all the same. The
labels of a step are then exchanged for those of the call. A call that changes what is known of labels (joins two,
refutes one) makes no step: it is looked at each time.

Such a key takes as long as a small operation, so a step is found by a shorter one where it can be: a loop that has
settled hands the same :class:`Known` on from step to step, and which objects those are tells all about them, while
their labels are what they were (:mod:`lightning_effnn.hardware.tracing.steps`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from lightning_effnn.hardware.tracing import tables
from lightning_effnn.hardware.tracing.axes import Axis, Label
from lightning_effnn.hardware.tracing.drafts import Draft, Read
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Product
from lightning_effnn.hardware.tracing.seen import Place, Seen
from lightning_effnn.hardware.tracing.storage import (
    NOTHING_KNOWN,
    STATE,
    Count,
    Known,
    Part,
    Record,
    StorageBook,
    is_counted,
    part_of,
)

Key = tuple[Hashable, ...]
Counts = dict[int | None, Count | None]
Layouts = tuple[tuple[Hashable, int], ...]
Results = tuple[Layouts, list[Record]]
_LABELLED = ("share", "w_labels", "held", "reads", "writes", "operations", "labels", "constants")
"""Fields of a draft with labels in them."""
_plain = attrgetter(*(name for name in STATE if name not in ("axes", "copies", "active")))


@dataclass(slots=True, eq=False)
class Met:
    """A call that is about to run and whose key has come before.

    Attributes:
        key: from :func:`key_of`.
        roots: the labels in it.
        records: what is known of the storages that it reads.
        step: what it leads to, if that is known.
        counts: non-zeros of what the step counts, by the number of the input.
    """

    key: Key
    roots: tuple[Label, ...]
    records: list[Record]
    step: Step | None = None
    counts: Counts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Which of a call's tensors the parts of its operation are.

    Attributes:
        main, weight: the inputs whose non-zeros the operation has.
        output: the result whose non-zeros it has, and which part of its storage that is.
        sources, constants: the input that each source and each constant is.
        counted: all inputs whose non-zeros are asked for, and which part of its storage each is.
    """

    main: int | None = None
    weight: int | None = None
    output: tuple[int, Part] | None = None
    sources: tuple[int, ...] = ()
    constants: tuple[int, ...] = ()
    counted: tuple[tuple[int, Part], ...] = ()


@dataclass(slots=True, eq=False)
class Step:
    """What a call led to.

    Attributes:
        results: from :func:`results_of`.
        same: for each result, the input that it is, if it is the very same tensor.
        cleared: inputs whose values are overwritten.
        copies: whether the result has the values of the first input, in another order of memory.
        tainted: whether it reads what depends on the batch.
        blank: ``states``, ``draft`` and ``sizes`` with labels of their own for the call's.
        labels: those that stand in ``blank`` for the labels of the key; all others the call makes anew each time.
        roots: the call's labels in the three.
        states: what is known of each result's storage afterwards; ``None`` where that is what was known.
        draft: the operation, if it costs anything.
        sizes: how much it reads of each storage.
        parts: which tensors it is about.
    """

    results: Layouts
    same: tuple[int | None, ...]
    cleared: tuple[int, ...]
    copies: bool
    tainted: bool
    blank: tuple[Any, Draft | None, Any]
    labels: tuple[Label, ...]
    parts: _Parts
    roots: tuple[Label, ...] | None = None
    states: Any = ()
    draft: Draft | None = None
    sizes: Any = ()

    def take(self, roots: tuple[Label, ...]) -> None:
        """Put the labels of a call in."""
        if roots == self.roots:
            return
        names = dict(zip(self.labels, roots, strict=True))
        self.states, self.draft, self.sizes = _with_names(*self.blank, names)
        self.roots = roots if len(names) == len(roots) else None

    def written(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], before: Sequence[Record], book: StorageBook
    ) -> list[Record] | None:
        """The storages of a call's results; ``None`` if those are others than this step's."""
        if len(outputs) != len(self.results):
            return None
        records: list[Record] = []
        for tensor, n, (layout, at) in zip(outputs, self.same, self.results, strict=True):
            if n is not None and tensor is inputs[n]:
                records.append(before[n])
                continue
            plain = book.plain(tensor)
            if plain is None or plain[1] != layout:
                return None
            record = plain[0]
            records.append(record)
            if at >= 0:
                if record is not before[at]:
                    return None
            elif records.index(record) != -1 - at or not _is_new(record, before):
                return None
        return records

    def counts(self, inputs: Sequence[Tensor], records: Sequence[Record], book: StorageBook) -> Counts:
        """Non-zeros of what it reads, before that may be overwritten."""
        return {n: book.count_part(inputs[n], records[n], part) for n, part in self.parts.counted}

    def draft_of(self, met: Met, place: Place) -> Draft:
        """The operation, once more; the result's non-zeros and what it comes after are not known yet."""
        assert self.draft is not None
        draft, counts, records, parts = self.draft.again(), met.counts, met.records, self.parts
        draft.template, draft.frame = self.draft, place.frame
        draft.i_count, draft.w_count = counts.get(parts.main), counts.get(parts.weight)
        if parts.constants:
            draft.constants = [
                _again(read, records[n], counts.get(n))
                for n, read in zip(parts.constants, draft.constants, strict=True)
            ]
        return draft


def signature(args: Sequence[Any], kwargs: dict[str, Any], inputs: list[Tensor]) -> Hashable:
    """Arguments as part of a key; the tensors among them are appended to ``inputs``, in their order."""
    parts: list[Hashable] = []
    for value in args:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            inputs.append(value)
            parts.append(Tensor)
        else:
            parts.append(value if kind is int or value is None else _signed(value, inputs))
    if kwargs:
        parts.append(_signed(kwargs, inputs))
    return tuple(parts)


def _signed(value: Any, inputs: list[Tensor]) -> Hashable:
    if isinstance(value, Tensor):
        inputs.append(value)
        return Tensor
    if isinstance(value, list | tuple):
        return tuple([_signed(part, inputs) for part in value])
    if isinstance(value, dict):
        return tuple([(name, _signed(part, inputs)) for name, part in value.items()])
    return value if type(value) is int or value is None else (type(value), value)


def short_key_of(
    kind: Hashable, arguments: Hashable, inputs: Sequence[Tensor], book: StorageBook, place: Place
) -> tuple[Key, list[Record]] | None:
    """What decides what a call leads to, as long as what is known of labels and extents stays as it is.

    Args:
        kind: the operation.
        arguments: its :func:`signature`.
        inputs: the tensors that it reads.
        book: knows their storages.
        place: where it runs.

    Returns:
        The key, in which what is known of each storage is one object, and the records of the storages; ``None`` if
        it reads what is more than plain memory.
    """
    parts: list[Hashable] = [kind, arguments, place.name, place.phase]
    records: list[Record] = []
    for tensor in inputs:
        plain = book.plain(tensor)
        if plain is None:
            return None
        record, layout = plain
        records.append(record)
        parts.append(layout)
        parts.append(record.known)
    if len(records) > 1:  # which of them are the same
        tensors = [id(tensor) for tensor in inputs]
        parts += map(tensors.index, tensors)
        parts += map(records.index, records)
    return tuple(parts), records


def key_of(short: Key, records: list[Record], sizes: Hashable) -> Met:
    """All that decides what a call leads to, each thing by what it is.

    Args:
        short: from :func:`short_key_of`.
        records: what is known of the storages that are read.
        sizes: extents that may be the batch.
    """
    labels: list[Label] = []
    parts: list[Hashable] = [sizes]
    parts += [_state(part, labels) if isinstance(part, Known) else part for part in short]
    roots: tuple[Label, ...] = ()
    if labels:
        each = [label.root for label in labels]
        roots = tuple(dict.fromkeys(each))
        parts += [label.size for label in labels]
        parts += map(roots.index, each)
    parts.append(_traits(roots))
    return Met(tuple(parts), roots, records)


def results_of(outputs: Sequence[Tensor], before: Sequence[Record], book: StorageBook) -> Results | None:
    """The results' layouts and where their memory is from; ``None`` if that is neither new nor an input's.

    Args:
        outputs: the results.
        before: what is known of the inputs' storages.
        book: knows the results' storages.

    Returns:
        The layouts, each with the number of the input or (from -1 down) of the result that has the same memory, and
        what is known of their storages.
    """
    found: list[tuple[Hashable, int]] = []
    records: list[Record] = []
    for tensor in outputs:
        plain = book.plain(tensor)
        if plain is None:
            return None
        record, layout = plain
        records.append(record)
        if record in before:
            at = before.index(record)
        else:
            at = -1 - records.index(record)
            if not _is_new(record, before):
                return None
        found.append((layout, at))
    return tuple(found), records


def _is_new(record: Record, before: Sequence[Record]) -> bool:
    return record.producer is None and record.known is NOTHING_KNOWN and record not in before


def step_of(
    met: Met,
    results: Results,
    call: Call,
    seen: Seen,
    *made: tuple[Piece, Draft],
) -> Step | None:
    """What a call led to; ``None`` if that can't be said again.

    Args:
        met: the call before it ran.
        results: from :func:`results_of`.
        call, seen: what ran, and what it read.
        made: the piece it consists of and its operation, if it costs anything.
    """
    if met.key[-1] != _traits(met.roots) or any(root.root is not root for root in met.roots):
        return None  # it says something of labels
    if not all(any(t is r for r in call.outputs) for t in call.written):
        return None  # what it writes is not all among its results
    draft = made[0][1] if made else None
    parts = _parts_of(met, call, seen, *made[0]) if made else _Parts()
    if parts is None:
        return None
    states = [
        None if at >= 0 and not any(tensor is w for w in call.written) else record.known
        for tensor, record, (_, at) in zip(call.outputs, results[1], results[0], strict=True)
    ]
    labels = tuple(Label(root.size, root.verdict, root.given) for root in met.roots)
    names = dict(zip(met.roots, labels, strict=True))
    blank = _with_names(states, draft, [size for _, size in seen.sources] if draft is not None else [], names)
    if any(root.verdict is not None or root.mixed for root in names if root not in met.roots):
        return None  # no label that the call made
    overwritten = call.overwritten()
    cleared = tuple(n for n, t in enumerate(call.inputs) if any(t is w for w in overwritten))
    same = tuple(
        at if at >= 0 and tensor is call.inputs[at] else None
        for tensor, (_, at) in zip(call.outputs, results[0], strict=True)
    )
    return Step(results[0], same, cleared, call.name in tables.COPIES, seen.tainted, blank, labels, parts)


def _parts_of(met: Met, call: Call, seen: Seen, piece: Piece, draft: Draft) -> _Parts | None:
    """Which of a call's tensors its operation is about; ``None`` if it is about others too."""
    if isinstance(piece, Product):
        main, weight, result = piece.input, piece.weight, piece.output
    else:
        main, result = (next(iter(tensors), None) for tensors in (piece.reads, piece.writes))
        weight = None
    counts = [seen.counts.get(id(tensor)) for tensor in call.inputs]
    constants = [
        next((n for n, r in enumerate(met.records) if _reads(read, r, counts[n])), None) for read in draft.constants
    ]
    places = [_position(main, call.inputs), _position(weight, call.inputs), _position(result, call.outputs)]
    if None in constants or any(
        (t is None) != (n is None) for t, n in zip((main, weight, result), places, strict=True)
    ):
        return None
    reads = tuple(n for n in constants if n is not None)
    sources = tuple({id(record): met.records.index(record) for record in met.records}.values())
    wanted = {n for n in (*places[:2], *reads) if n is not None and is_counted(call.inputs[n])}
    counted = tuple((n, part_of(call.inputs[n])) for n in wanted)
    output = None if result is None or places[2] is None or not is_counted(result) else (places[2], part_of(result))
    return _Parts(places[0], places[1], output, sources, reads, counted)


def _position(tensor: Tensor | None, tensors: Sequence[Tensor]) -> int | None:
    return next((n for n, other in enumerate(tensors) if other is tensor), None)


def _reads(read: Read, record: Record, count: Count | None) -> bool:
    return read.count is count and read.key in (record.parameter, record.identity)


def _with_names(
    states: Any, draft: Draft | None, sizes: Any, names: dict[Label, Label]
) -> tuple[Any, Draft | None, Any]:
    """States, an operation and sizes with other labels; those that have no other name are made anew."""
    if draft is not None:
        draft = draft.again()
        for name in _LABELLED:
            setattr(draft, name, _renamed(getattr(draft, name), names))
    return _renamed(states, names), draft, _renamed(sizes, names)


def _renamed(value: Any, names: dict[Label, Label]) -> Any:
    if isinstance(value, Label):
        root = value.root
        if root not in names:
            names[root] = Label(root.size, root.verdict, root.given)
        return names[root]
    if isinstance(value, Axis):
        return Axis(_renamed(value.label, names), value.stride, value.size, value.whole)
    if isinstance(value, Known):
        return Known(*[_renamed(getattr(value, name), names) for name in STATE])
    if isinstance(value, Read):
        held, active = _renamed(value.held, names), _renamed(value.active, names)
        return Read(value.key, value.name, value.elements, value.count, value.format, held, active)
    if isinstance(value, tuple | list):
        return type(value)([_renamed(part, names) for part in value])
    if isinstance(value, dict):
        return {key: _renamed(part, names) for key, part in value.items()}
    return value


def _state(known: Known, labels: list[Label]) -> Key:
    """What is known of a storage, its labels left out; they are appended to ``labels``."""
    plain = _plain(known)
    copies, axes, active = known.copies, known.axes, known.active
    if not axes and not active and copies is None:
        return plain
    lines = axes if copies is None else (*axes, copies)
    labels += [axis.label for axis in lines]
    labels += active
    places = [(axis.stride, axis.size, axis.whole) for axis in lines]
    return (*plain, *places, copies is None, len(active))


def _traits(roots: Sequence[Label]) -> Key:
    return tuple([traits_of(root) for root in roots])


def traits_of(root: Label) -> Key:
    """What is known of a label."""
    return root.size, root.verdict, root.given, root.mixed


def _again(read: Read, record: Record, count: Count | None) -> Read:
    named = read.key == read.name
    if named and read.count is count:
        return read
    key = read.key if named else record.identity
    return Read(key, read.name, read.elements, count, read.format, read.held, read.active)
