"""How the batch is spread over what an operation reads, writes and loops over."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_effnn._torch import in_backward
from lightning_effnn.hardware.tracing.axes import NOWHERE, Axis, Held, Label, Spot, locate, strides_of
from lightning_effnn.hardware.tracing.drafts import Draft, Extents, Size
from lightning_effnn.hardware.tracing.pieces import Call, Product
from lightning_effnn.hardware.tracing.seen import Seen
from lightning_effnn.hardware.tracing.storage import Record, stored_elements

JOINING = ("cat", "stack")
"""What puts parts of the batch together."""
Outputs = Sequence[tuple[Tensor, "Record | None", tuple[Spot, ...]]]
"""The results of an operation, what is known of them, and what each holds of the batch."""


def size(tensor: Tensor, spots: Sequence[Spot], parts: bool = False, copies: Axis | None = None) -> Size:
    """A tensor's elements and the axes in them.

    An expanded tensor that was written out is read where it was, as one that was only expanded is.

    Args:
        tensor: what is read or written.
        spots: what it holds of the batch.
        parts: whether it is one of several parts that are counted together.
        copies: along which axis of its storage its rows are all the same.
    """
    elements, dims = stored_elements(tensor), set[int]()
    if copies is not None and tensor.layout is torch.strided and not tensor.is_nested:
        found = locate(tensor.shape, strides_of(tensor), copies)
        if elements % found.rows == 0:
            elements, dims = elements // found.rows, {dim for dim, rows, _ in found.dims if rows == tensor.shape[dim]}
    axes: list[Held] = []
    for spot in spots:
        if is_expanded(tensor, spot) or any(dim in dims for dim, _, _ in spot.dims):
            continue  # stored once
        axes.append((spot.label, 1, 1) if parts else spot.held)
    return elements, (tuple(axes),) if axes else ()


def is_expanded(tensor: Tensor, spot: Spot) -> bool:
    """Whether all rows of an axis are the same memory."""
    return bool(spot.dims) and all(dim < tensor.dim() and tensor.stride(dim) == 0 for dim, _, _ in spot.dims)


def held_by(call: Call, tensor: Tensor, own: tuple[Spot, ...], seen: Seen) -> tuple[Spot, ...]:
    """What an input holds of the batch: what is known, else what its extents tell.

    A constant with as many rows as the batch, where it meets the batch, was made for it.

    Args:
        call: the operation, whose inputs line up from the right if it is elementwise, or which looks up a row of the
            first for each of an index.
        tensor: one of its inputs.
        own: what is known of it.
        seen: all inputs.
    """
    if any(spot.label.verdict is not False for spot in own):
        return own
    if tensor.layout is not torch.strided:
        return ()
    if call.name in ("index", "index_put", "index_select", "embedding", "_pack_padded_sequence"):
        origin, _, spots = seen.looked[0]
        along = call.get("dim") % max(1, origin.dim()) if call.name == "index_select" else 0
        if call.name == "_pack_padded_sequence" and not call.get("batch_first"):
            along = 1
        first = call.get("indices")[0] if call.name in ("index", "index_put") else tensor
        if first is not tensor or not tensor.dim() or not tensor.shape[0] == origin.shape[along] > 1:
            return ()
        found = [spot for spot in spots if spot.label.verdict and spot.dims[:1] and spot.dims[0][0] == along]
        return tuple(spot._replace(dims=((0, *spot.dims[0][1:]), *spot.dims[1:])) for spot in found)
    if not call.elementwise:
        return ()
    for other, _, spots in seen.looked:
        for spot in spots:
            dims = [dim + tensor.dim() - other.dim() for dim, _, _ in spot.dims]
            if (
                dims
                and spot.label.verdict
                and all(
                    d >= 0 and tensor.stride(d) and tensor.shape[d] == other.shape[dim] > 1
                    for d, (dim, _, _) in zip(dims, spot.dims, strict=True)
                )
            ):
                return (spot,)
    return ()


def bias(call: Call, seen: Seen) -> int:
    """Elements of a constant that is added, as a bias is; 0 if it isn't that."""
    if call.name != "add" or call.backward or call.get("alpha") not in (None, 1):
        return 0
    fixed = [t for t, r, spots in seen.looked if r is not None and not r.tainted and not spots]
    return stored_elements(fixed[0]) if len(fixed) == 1 and len(seen.looked) == 2 else 0


def share(call: Call, seen: Seen, outputs: Outputs) -> list[tuple[Label, int, int, bool]]:
    """The part of the batch's rows that an operation is about, by label, where it is not all of them."""
    parts: dict[Label, tuple[int, int]] = {}
    for _, _, spots in outputs if call.name in JOINING else seen.looked:
        for spot in spots:
            if spot.rows < spot.axis.whole:
                rows, whole = parts.get(spot.label, (1, 1))
                if spot.rows * whole < rows * spot.axis.whole:
                    parts[spot.label] = (spot.rows, spot.axis.whole)
    return [(label, rows, whole, True) for label, (rows, whole) in parts.items()]


def held(piece: Product, seen: Seen, outputs: Outputs) -> Extents:
    """The axes of the batch in each loop extent."""
    held: Extents = {}
    spots_of = {id(t): spots for t, _, spots in (*seen.looked, *outputs) if spots}
    if not spots_of:
        return held
    for extent, dims in piece.axes.items():
        steps: dict[Label, int] = {}  # indices a row: of two axes in one loop the inner one has fewer
        for tensor, at in dims:
            for spot in spots_of.get(id(tensor), ()):
                found = [entry for entry in spot.dims if entry[0] == at % max(1, tensor.dim())]
                if not found:
                    continue
                label, (dim, rows, each) = spot.label, found[0]
                first = dim == spot.dims[0][0]  # of an axis in several dimensions the first is scaled for all
                whole, rows = (spot.axis.whole, spot.rows) if first else (1, 1)
                there = held.setdefault(extent, [])
                for other, factor, divisor, _ in there:  # one loop runs along both: they are one axis
                    if (factor, divisor, steps[other]) == (whole, rows, each) and label.size == other.size:
                        label.join(other)
                steps.setdefault(label, each)
                if all(label.root is not other.root for other, _, _, _ in there):
                    there.append((label, whole, rows, first))
    loose = [spot for spots in spots_of.values() for spot in spots if not spot.dims and spot.axis.stride == NOWHERE]
    for spot in loose:
        if all(spot.label.root is not label.root for axes in held.values() for label, _, _, _ in axes):
            for extent in _likely(piece, seen, spot.rows):
                held.setdefault(extent, []).append((spot.label, 1, 1, True))
    return held


def _likely(piece: Product, seen: Seen, rows: int) -> tuple[str, ...]:
    """The extents that an axis is in whose place isn't known.

    Where both factors have it, it is the groups, or it is the rows of one and the columns of the other; where one
    has it, its rows.
    """
    both = piece.weight is not None and bool(seen.spots_of(piece.weight)) and bool(seen.spots_of(piece.input))
    groups, columns = piece.extents.get("G", 1), piece.extents["K"]
    if piece.kind != "gemm" or not both:
        return ("B",)
    if groups > 1 and groups % rows == 0:
        return ("G",)
    return ("B", "K") if columns == rows == 1 and not in_backward() else ("B",)


def read_once(draft: Draft, piece: Product, weight: Tensor, copies: Axis | None, spots: Sequence[Spot]) -> None:
    """Groups whose second factors are the same, or copies of one, are rows of one group: the factor is read once.

    Args:
        draft: of the product.
        piece: the product.
        weight: its second factor.
        copies: along which axis of the factor's storage its rows are all the same.
        spots: what the factor holds of the batch, along which nothing is shared.
    """
    groups = draft.extents.get("G", 1)
    if piece.kind != "gemm" or groups == 1:
        return
    dims = {dim % weight.dim() for t, dim in piece.axes.get("G", ()) if t is weight}
    batch = {dim for spot in spots for dim, _, _ in spot.dims}
    shared = [weight.shape[dim] for dim in dims - batch if not weight.stride(dim)]
    if copies is not None:
        shared += [rows for dim, rows, _ in locate(weight.shape, strides_of(weight), copies).dims if dim in dims]
    times = math.prod(shared)
    if times > 1 and groups % times == 0:
        draft.extents["G"] = groups // times
        draft.extents["B"] *= times
        if times == groups:  # whatever was among the groups is among the rows
            draft.held.setdefault("B", []).extend(draft.held.pop("G", []))
