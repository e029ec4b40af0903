"""What a batch of several inferences leaves in doubt, said in notes: nothing is guessed in silence.

Inferences are independent of each other. Work that depends on the batch has its axis somewhere, nothing is summed
over that axis, and nothing is sorted or chosen along it. Where a network does so, one inference alone would do
something else than its share of what was traced: which is said, and a batch of one, which leaves nothing to be
shared, tells what.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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
Work = tuple[Draft, float]
"""An operation and how much it does."""


class Doubts:
    """What is noticed of the batch while a network runs, and said at the end."""

    def __init__(self) -> None:
        self._chosen: set[Where] = set()  # where rows of several inferences are sorted or chosen from
        self._cut: set[Where] = set()  # where merged rows are cut elsewhere than between samples

    def notice(self, call: Call, seen: Seen, module: str, *, graphs: bool) -> None:
        """Look at one call.

        Args:
            call: what ran.
            seen: what it read.
            module: where it ran.
            graphs: whether the batch is one of graphs, whose nodes are picked anywhere.
        """
        if call.backward:
            return
        if _chooses(call, seen):
            self._chosen.add((call.name, module))
        if not graphs and _cuts(seen):
            self._cut.add((call.name, module))

    def said(self, drafts: Sequence[Draft], inferences: int | None) -> list[str]:
        """The notes of a trace; none of a batch of one.

        Args:
            drafts: all operations.
            inferences: how many there are in the batch that ran.
        """
        if inferences is None or inferences == 1:
            return []
        forward: list[Work] = [(draft, _work(draft)) for draft in drafts if draft.phase == "forward"]
        counted = [(draft, work) for draft, work in forward if draft.charged()]
        least = WORTH * sum(work for _, work in counted)
        unread = [(draft, work) for draft, work in counted if draft.varies and not _holds(draft)]
        made = [(draft, work) for draft, work in forward if not draft.charged() and _is_made_for(draft, inferences)]
        found: list[tuple[list[Work], str]] = [
            (
                unread,
                "it depends on the batch, and no axis of it is the batch: counted whole, as if it were done once for"
                " all",
            ),
            (
                made,
                "what is multiplied was made from sizes alone, was taken for a constant, and has a multiple of"
                f" {inferences} rows; if these are of the batch, it is work of each inference",
            ),
        ]
        if not any(draft.phase == "backward" for draft in drafts):  # gradients of weights are sums over the batch
            found += self._between_inferences(counted)
        return [f"{_named(of)}: {what}; {_TELLS}" for of, what in found if sum(work for _, work in of) > least]

    def _between_inferences(self, counted: Sequence[Work]) -> list[tuple[list[Work], str]]:
        """What one inference has to do with others, and how to say it."""
        return [
            (
                [(draft, work) for draft, work in counted if _sums(draft)],
                "a product sums over the inferences of the batch",
            ),
            (
                [(draft, work) for draft, work in counted if _pairs(draft)],
                "each inference of the batch is multiplied with all others, and its product with itself alone is"
                " counted",
            ),
            (
                [(d, _with_what_follows(d, work)) for d, work in counted if (d.op, d.name) in self._chosen],
                "rows of several inferences are sorted or chosen together, and what follows may grow with the batch",
            ),
            (
                [(draft, work) for draft, work in counted if (draft.op, draft.name) in self._cut],
                "whose rows these are isn't known, for those of several inferences were cut elsewhere than between"
                " two of them",
            ),
        ]


def _chooses(call: Call, seen: Seen) -> bool:
    """Whether an operation sorts or chooses among the rows of several inferences.

    Args:
        call: the operation.
        seen: what it read.
    """
    if call.name not in tables.SORTS | _CHOOSES or not seen.looked:
        return False
    source, _, spots = seen.looked[0]
    dim = call.get("dim") if call.name != "multinomial" else -1
    along = dim % source.dim() if isinstance(dim, int) and source.dim() else 0
    return any(spot.label.verdict and spot.rows > 1 and spot.dims[:1] and spot.dims[0][0] == along for spot in spots)


def _cuts(seen: Seen) -> bool:
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


def _with_what_follows(draft: Draft, work: float) -> float:
    return math.inf if draft.op in _CHOOSES else work


def _work(draft: Draft) -> int:
    if draft.extents:
        return draft.repeats * math.prod(draft.extents.values())
    return max(draft.operations[0], sum(number for number, _ in (*draft.reads, *draft.writes)))


def _named(found: Iterable[Work]) -> str:
    """The operations with most work, and their modules."""
    works: dict[Where, float] = {}
    for draft, work in found:
        where = (draft.op, draft.name)
        works[where] = works.get(where, 0) + work
    most = sorted(works, key=lambda where: -works[where])
    names = ", ".join(f"{op} in {module or 'the model'}" for op, module in most[:_NAMED])
    more = len(most) - _NAMED
    return names + (f" and {more} more" if more > 0 else "")
