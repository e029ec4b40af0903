"""From pieces to operations: scaling to the deployment batch, fusing, merging.

While the batch runs, each piece becomes a :class:`Draft`. What needs the whole trace is decided at the
end: whether a step can be fused depends on who else reads its input, and counts of non-zeros are only
then fetched from their device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.operation import Kind, Operation, Phase
from lightning_effnn.hardware.tracing.pieces import Piece
from lightning_effnn.hardware.tracing.storage import Count


@dataclass(slots=True, eq=False)
class Draft:
    """An operation that is not finished.

    Attributes:
        frame: number of the module call it ran in.
        sources: for each tensor it reads, which operation wrote it and how many elements it has.
        previous: the operation right before it, leaving out those on constants alone.
        readers: how many operations read what it wrote.
        fusable: whether it could be applied to its input on the input's way out.
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
    w_count: Count | None = None
    i_count: Count | None = None
    o_count: Count | None = None
    w_constant: bool = True
    elements_in: int = 0
    elements_out: int = 0
    operations: int = 0
    repeats: int = 1
    sources: list[tuple[int | None, int]] = field(default_factory=list)
    previous: int | None = None
    readers: int = 0
    fusable: bool = False
    fused: bool = False
    piece: Piece | None = None  # until its results are known to be written by this


def scaled(number: int, scale: Fraction) -> int:
    """``number`` for the deployment batch, rounded up; something stays something."""
    return number if scale == 1 else -(-number * scale.numerator // scale.denominator)


def finish(drafts: list[Draft]) -> tuple[Operation, ...]:
    """Fuse, merge repeated operations within a module call, and fetch the densities."""
    ordered: list[Draft] = []
    for draft in drafts:
        saved = _handed_on(draft, drafts)
        at = len(ordered)
        if saved is not None and draft.previous is not None:
            draft.fused, draft.elements_in = True, draft.elements_in - saved
            host = drafts[draft.previous]
            while ordered[at - 1] is not host:  # work on constants in between can be done beforehand
                at -= 1
        ordered.insert(at, draft)
    groups: dict[tuple[object, ...], list[Draft]] = {}
    for draft in ordered:
        groups.setdefault(_key(draft), []).append(draft)
    return tuple(_operation(group) for group in groups.values())


def _handed_on(draft: Draft, drafts: list[Draft]) -> int | None:
    """Elements that need not be read because the operation before hands them on; ``None`` if not fused."""
    if not draft.fusable or draft.previous is None or drafts[draft.previous].readers != 1:
        return None
    return next((number for source, number in draft.sources if source == draft.previous), None)


def _key(draft: Draft) -> tuple[object, ...]:
    return (
        draft.frame,
        draft.name,
        draft.op,
        draft.kind,
        draft.phase,
        tuple(draft.extents.values()),
        draft.i_format,
        draft.w_format,
        draft.o_format,
        draft.w_constant,
        draft.elements_in,
        draft.elements_out,
        draft.operations,
        draft.fused,
    )


def _operation(group: list[Draft]) -> Operation:
    first = group[0]
    return Operation(
        name=first.name,
        op=first.op,
        kind=first.kind,
        phase=first.phase,
        w_format=first.w_format,
        i_format=first.i_format,
        o_format=first.o_format,
        w_density=_density([d.w_count for d in group]),
        i_density=_density([d.i_count for d in group]),
        o_density=_density([d.o_count for d in group]),
        w_constant=first.w_constant,
        elements_in=first.elements_in,
        elements_out=first.elements_out,
        operations=first.operations,
        fused=first.fused,
        repeats=sum(d.repeats for d in group),
        **first.extents,
    )


def _density(counts: list[Count | None]) -> float:
    return sum(1.0 if c is None else c.density() for c in counts) / len(counts)
