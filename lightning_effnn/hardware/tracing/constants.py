"""The constants that an inference reads: parameters, buffers, and what is computed from them before deployment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from lightning_effnn.hardware.tracing import spread
from lightning_effnn.hardware.tracing.drafts import Draft, Read
from lightning_effnn.hardware.tracing.pieces import Piece, Product
from lightning_effnn.hardware.tracing.seen import Seen, StoredWeight
from lightning_effnn.hardware.tracing.storage import whole_elements


def reads(seen: Seen, piece: Piece, backward: bool, constants: Mapping[str, tuple[int, bool]]) -> Iterator[Read]:
    """The constants that a piece reads: what comes from a parameter, and whatever is a factor of a product.

    Args:
        seen: what its operation read.
        piece: the piece.
        backward: whether it is of a backward pass.
        constants: elements of each constant of the model, and whether it is a parameter.
    """
    for tensor, record, spots in seen.looked:
        if record is None or record.tainted or not tensor.dim() or (backward and record.computed):
            continue
        name = record.name_of(tensor)
        factor = isinstance(piece, Product) and any(tensor is t for t in (piece.weight, piece.input))
        elements, is_parameter = constants.get(name, (0, False))
        if not (is_parameter or factor) or (not name and tensor is not piece.weight):  # type: ignore[union-attr]
            continue  # a state of zeros is no constant that is stored
        key: object = name
        if record.computed or not name:
            key, elements = record.identity, whole_elements(tensor)
        stored_in = seen.formats[id(tensor)]
        if factor and isinstance(piece, Product) and piece.w_format is not None and tensor is piece.weight:
            stored_in, elements = piece.w_format, piece.extents["C"] * piece.extents["K"]
        # Repeated for each sample it is stored once, as it is where it was only expanded.
        repeated = [spot for spot in spots if not spread.is_expanded(tensor, spot)] if record.computed else []
        held = tuple(spot.held for spot in repeated)
        yield Read(key, name, elements, seen.counts[id(tensor)], stored_in, held, record.active)


def stored(drafts: Iterable[Draft]) -> tuple[StoredWeight, ...]:
    """Each constant that an inference reads once, as it was last read."""
    found: dict[object, StoredWeight] = {}
    for draft in drafts:
        if not draft.charged():
            continue
        for read in draft.constants:
            rows = [rows for label, _, rows in read.held if label.verdict]
            if any(label.verdict for label in read.active):
                continue
            elements = read.elements // math.prod(rows)
            nonzero = elements if read.count is None else round(read.count.density() * elements)
            found[read.key] = StoredWeight(read.name, elements, nonzero, read.format)
    return tuple(found.values())
