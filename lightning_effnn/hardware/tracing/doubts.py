"""What a batch of several inferences leaves in doubt, said in notes: nothing is guessed in silence.

Inferences are independent of each other. Work that depends on the batch has its axis somewhere, nothing is summed
over that axis, and nothing is sorted or chosen along it. Where a network does so, one inference alone would do
something else than its share of what was traced: which is said, and a batch of one, which leaves nothing to be
shared, tells what.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from lightning_effnn.hardware.tracing import tables
from lightning_effnn.hardware.tracing.drafts import Draft
from lightning_effnn.hardware.tracing.pieces import Call
from lightning_effnn.hardware.tracing.seen import Seen

WORTH = 1e-3
"""Share of the work from which on a doubt is said."""
_NAMED = 3
_CHOOSES = frozenset({"topk", "kthvalue", "cumsum", "cumprod", "_softmax", "_log_softmax"})
"""What follows from these is often more work than they are."""
_TELLS = "a batch of one tells what one inference costs"

Where = tuple[str, str]
"""An operation and the module that it runs in."""


def chooses(call: Call, seen: Seen) -> bool:
    """Whether an operation sorts or chooses among the rows of several inferences.

    Args:
        call: the operation.
        seen: what it read.
    """
    if call.backward or call.name not in tables.SORTS | _CHOOSES or not seen.looked:
        return False
    source, _, spots = seen.looked[0]
    dim = call.get("dim") if call.name != "multinomial" else -1
    along = dim % source.dim() if isinstance(dim, int) and source.dim() else 0
    return any(spot.label.verdict and spot.rows > 1 and spot.dims[:1] and spot.dims[0][0] == along for spot in spots)


def cuts(seen: Seen) -> bool:
    """Whether an operation reads a part of merged rows, of which it isn't known whose they are.

    A part of one sample's size is taken for a sample, and one of the batch's size, such as one of two views, for all.
    """
    for _, record, spots in seen.looked:
        for spot in spots:
            if record is None or not spot.label.verdict or not spot.dims or spot.axis.stride <= 0:
                continue
            elsewhere = not any(spot.axis is axis for axis in record.axes)
            several = spot.dims[0][2] > 1 and 1 < spot.rows < spot.axis.whole and spot.rows % spot.label.root.size
            if elsewhere or several:
                return True
    return False


def said(
    drafts: Sequence[Draft], chosen: Collection[Where], cut: Collection[Where], inferences: int | None
) -> list[str]:
    """The notes of a trace; none of a batch of one.

    Args:
        drafts: all operations.
        chosen: where rows of several inferences were sorted or chosen from.
        cut: where merged rows were cut elsewhere than between samples.
        inferences: how many there are in the batch that ran.
    """
    if inferences is None or inferences == 1:
        return []
    counted = [(draft, _work(draft)) for draft in drafts if draft.phase == "forward" and draft.charged()]
    least = WORTH * sum(work for _, work in counted)
    notes: list[str] = []
    unread = [(draft, work) for draft, work in counted if draft.varies and not _holds(draft)]
    if sum(work for _, work in unread) > least:
        notes.append(
            f"{_named(unread)}: it depends on the batch, and no axis of it is the batch: counted whole, as if it were"
            f" done once for all; {_TELLS}"
        )
    made = [
        (draft, _work(draft))
        for draft in drafts
        if draft.phase == "forward" and not draft.charged() and _is_made_for(draft, inferences)
    ]
    if sum(work for _, work in made) > least:
        notes.append(
            f"{_named(made)}: what is multiplied was made from sizes alone, was taken for a constant, and has a"
            f" multiple of {inferences} rows; if these are of the batch, it is work of each inference; {_TELLS}"
        )
    if any(draft.phase == "backward" for draft in drafts):
        return notes  # gradients of weights are sums over the batch
    summed = [(draft, work) for draft, work in counted if _sums(draft)]
    if sum(work for _, work in summed) > least:
        notes.append(f"{_named(summed)}: a product sums over the inferences of the batch; {_TELLS}")
    paired = [(draft, work) for draft, work in counted if _pairs(draft)]
    if sum(work for _, work in paired) > least:
        notes.append(
            f"{_named(paired)}: each inference of the batch is multiplied with all others, and its product with itself"
            f" alone is counted; {_TELLS}"
        )
    sorts = [(draft, work) for draft, work in counted if (draft.op, draft.name) in chosen]
    if any(draft.op in _CHOOSES for draft, _ in sorts) or sum(work for _, work in sorts) > least:
        notes.append(
            f"{_named(sorts)}: rows of several inferences are sorted or chosen together, and what follows may grow with"
            f" the batch; {_TELLS}"
        )
    parts = [(draft, work) for draft, work in counted if (draft.op, draft.name) in cut]
    if sum(work for _, work in parts) > least:
        notes.append(
            f"{_named(parts)}: whose rows these are isn't known, for those of several inferences were cut elsewhere"
            f" than between two of them; {_TELLS}"
        )
    return notes


def _holds(draft: Draft) -> bool:
    return any(label.verdict for label in draft.every_label()) or any(label.verdict for label, *_ in draft.share)


def _is_made_for(draft: Draft, inferences: int) -> bool:
    """Whether a product of a weight with what no constant is in may be that of a state with several rows a sample."""
    rows = draft.extents.get("B", 1)
    factors = [read for read in draft.constants if read.elements != draft.extents.get("K")]  # the other is a bias
    return rows > inferences and rows % inferences == 0 and len(factors) == 1


def _sums(draft: Draft) -> bool:
    return draft.w_varies and any(label.verdict and first for label, _, _, first in draft.held.get("C", ()))


def _pairs(draft: Draft) -> bool:
    rows = {label.root for label, *_ in draft.held.get("B", ()) if label.verdict}
    return any(label.root in rows for label, *_ in draft.held.get("K", ()))


def _work(draft: Draft) -> int:
    if draft.extents:
        return draft.repeats * math.prod(draft.extents.values())
    return max(draft.operations[0], sum(number for number, _ in (*draft.reads, *draft.writes)))


def _named(found: Iterable[tuple[Draft, int]]) -> str:
    """The operations with most work, and their modules."""
    works: dict[Where, int] = {}
    for draft, work in found:
        where = (draft.op, draft.name)
        works[where] = works.get(where, 0) + work
    most = sorted(works, key=lambda where: -works[where])
    names = ", ".join(f"{op} in {module or 'the model'}" for op, module in most[:_NAMED])
    more = len(most) - _NAMED
    return names + (f" and {more} more" if more > 0 else "")
