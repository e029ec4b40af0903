"""Where the batch goes: from the axes of an operation's inputs to those of its results.

Most operations leave each axis where it is, or line axes up from the right as broadcasting does. The rules below
are for the others: reductions, products, concatenations, indexing. What has no rule keeps its axes where a
dimension of the same extent is, else the batch is somewhere in the result and the trace says that it lost it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.hardware.tracing import tables
from lightning_effnn.hardware.tracing.axes import NOWHERE, ONE_ROW, Axis, Label, Spot, place, strides_of
from lightning_effnn.hardware.tracing.pieces import Call

Found = Sequence[tuple[Tensor, Any, tuple[Spot, ...]]]
"""Each tensor that an operation reads, what is known of it, and what it holds of the batch."""
Rule = Callable[[Call, int, Tensor, int, Tensor], "int | None"]
"""``(call, number of the input, input, its dimension, result)`` to the result's dimension, ``GONE`` or ``None``
(can't say)."""

GONE = -1
"""The axis was summed over or looked up: the result doesn't have it."""


def same(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Each dimension stays where it is."""
    if dim < result.dim() and (result.dim() == source.dim() or result.shape[dim] == source.shape[dim]):
        return dim
    return GONE if result.dim() < source.dim() else None


def aligned(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Dimensions line up from the right."""
    dim += result.dim() - source.dim()
    return dim if dim >= 0 and result.shape[dim] == source.shape[dim - result.dim() + source.dim()] else None


def repeated(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Dimensions line up from the right, each as often as is said."""
    return dim + result.dim() - source.dim()


def reduced(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Dimensions that are summed over are gone, the others close up."""
    dims = call.get("dim")
    axes = range(source.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {axis % max(1, source.dim()) for axis in axes}
    if dim in gone:
        return GONE
    return dim if result.dim() == source.dim() else dim - sum(axis < dim for axis in gone)


def product(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """``[G, M, C] @ [G, C, K]``, with what is added before it where the operation says so."""
    if call.name in tables.WITH_BIAS:
        number -= 1
        if number < 0:
            return aligned(call, number, source, dim, result)
    if number > 1:
        return GONE
    if source.dim() == 3 and dim == 0:
        return 0 if result.dim() == 3 else GONE
    transposed = number == 1 and call.name in tables.TRANSPOSED
    from_end = dim - source.dim()
    if source.dim() == 1 or from_end == (-1 if (number == 0) != transposed else -2):
        return GONE
    return result.dim() - 2 + number if result.dim() > 1 else 0


def linear(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """``x @ W.T`` kept whole."""
    if number == 0:
        return dim if dim < source.dim() - 1 else GONE
    return result.dim() - 1 if number == 1 and dim == 0 else GONE


def concatenated(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Stacking makes room for a new dimension, concatenation does not."""
    along = (call.get("dim") or 0) % max(1, result.dim())
    return dim + (dim >= along) if call.name in ("stack", "_stack") else dim


def convolved(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Samples stay, also where they lie among the channels with filters of their own."""
    if number == 0:
        kept = result.dim() == source.dim() and (dim == 0 or result.shape[dim] == source.shape[dim] or dim == 1)
        return dim if kept and (dim != 1 or (call.get("groups") or 1) > 1) else GONE
    return 1 if number == 1 and dim == 0 and not call.get("transposed") else GONE


def convolved_back(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """The gradient of the input has its axes, those of weight and bias have none but of their own."""
    origin = call.get("input")
    if result.shape == origin.shape:
        return dim if number < 2 else GONE
    weight = call.get("weight")
    return dim if source is weight and result.shape == weight.shape else GONE


def normalised_back(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """The gradient of the input has its axes, those of scale and shift are sums."""
    return dim if result.shape == call.inputs[0].shape and source.shape == result.shape else GONE


def looked_up(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """An embedding has its indices' dimensions, and those of its rows."""
    if source is call.get("weight"):
        return GONE if dim == 0 else result.dim() - 1
    return dim


def selected(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """``index_select``: the index takes the place of the dimension that it looks into."""
    along = int(call.get("dim")) % max(1, result.dim())
    if number == 0:
        return GONE if dim == along else dim
    return along


def indexed(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """``x[i, :, j]``: the indices' dimensions stand where the first of them stood, or in front."""
    origin = call.get("self")
    indices: list[Tensor | None] = list(call.get("indices"))
    spans: list[tuple[int, Tensor | None]] = []  # the dimensions of x that each index takes
    at = 0
    for index in indices:
        width = index.dim() if index is not None and index.dtype in tables.MASKS else 1
        spans += [(at + n, index) for n in range(width)]
        at += width
    taken = [d for d, index in spans if index is not None]
    masks = any(index is not None and index.dtype in tables.MASKS for index in indices)
    block = 1 if masks else max((index.dim() for index in indices if index is not None), default=0)
    adjacent = taken == list(range(taken[0], taken[0] + len(taken))) if taken else True
    start = taken[0] if adjacent and taken else 0
    if source is not origin:
        return start if masks else start + dim + block - source.dim()
    if dim in taken:
        return start if masks and source.dim() and block else GONE
    before = sum(d < dim for d in range(origin.dim()) if d not in taken)
    return before + (block if before >= start else 0)


def into(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Scattering: what is sent has the dimensions of where it goes, but the one that is looked up."""
    if number == 0:
        return dim
    along = call.get("dim")
    if isinstance(along, int) and dim == along % max(1, result.dim()) and call.name.startswith("index_"):
        return dim  # rows of the batch sent to rows of the batch
    if source.dim() == result.dim():
        return dim
    return dim if dim < result.dim() else None


def masked(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """``masked_scatter``: what is sent fills the mask's places, whatever its own dimensions."""
    return aligned(call, number, source, dim, result) if number < 2 else GONE


def attended(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Samples and heads stay; rows are those of the queries, columns those of the values."""
    if dim < source.dim() - 2:
        return dim
    if number == 0 and dim == source.dim() - 2:
        return dim
    return GONE


def recurrent(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Sequences keep their dimensions; a state has no steps."""
    if number == 0 and result.dim() == source.dim():
        return dim if result.shape[dim] == source.shape[dim] else None
    samples = max(0, source.dim() - 2)
    return result.dim() - 2 if dim == samples and result.dim() > 1 else GONE


def picked_back(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """The gradient of ``x.select(dim, i)`` has the dimension back."""
    return dim + (dim >= int(call.get("dim")) % result.dim())


def gone(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Summed over whatever the dimension."""
    return GONE


def first(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """As many rows as the values decide, one below the other."""
    return 0 if result.dim() else GONE


def packed(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """The rows of all steps, and how many there are in each."""
    return 0 if result is call.outputs[0] and number == 0 else GONE


def crossed(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Distances of all rows of the first to all of the second."""
    if number < 2 and dim == source.dim() - 2:
        return result.dim() - 2 + number
    return dim if dim < source.dim() - 2 else GONE


def solved(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """Systems of equations: the result has the right-hand sides' dimensions, and systems that are stacked."""
    if dim < source.dim() - 2:
        return max(GONE, dim + result.dim() - source.dim())
    sides = source is call.get("B", "b", "self") and source.dim() == result.dim()
    return dim if sides and result is call.outputs[0] else GONE


def anywhere(call: Call, number: int, source: Tensor, dim: int, result: Tensor) -> int | None:
    """No rule: where a dimension has the same extent."""
    extent = source.shape[dim]
    if dim < result.dim() and result.shape[dim] == extent:
        return dim
    from_right = aligned(call, number, source, dim, result)
    if from_right is not None:
        return from_right
    alike = [d for d in range(result.dim()) if result.shape[d] == extent]
    return alike[0] if len(alike) == 1 else None


RULES: dict[str, Rule] = {
    **dict.fromkeys(tables.MATRIX_PRODUCTS, product),
    **dict.fromkeys(("linear", "mkldnn_linear"), linear),
    **dict.fromkeys(("cat", "stack", "_stack", "_chunk_cat"), concatenated),
    **dict.fromkeys(tables.CONVOLUTIONS, convolved),
    **dict.fromkeys(("convolution_backward", "convolution_backward_overrideable"), convolved_back),
    **dict.fromkeys(tables.NORM_BACKWARDS, normalised_back),
    **dict.fromkeys(("embedding", "_embedding_bag", "_embedding_bag_forward_only"), looked_up),
    **dict.fromkeys(("embedding_dense_backward", "_embedding_bag_dense_backward"), gone),
    **dict.fromkeys(("index_select", "index_select_backward"), selected),
    **dict.fromkeys(("index", "_unsafe_index"), indexed),
    **dict.fromkeys(("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "_unique"), first),
    **dict.fromkeys(tables.SCATTERS, into),
    **dict.fromkeys(("masked_scatter",), masked),
    **dict.fromkeys(("bincount", "histc"), gone),
    **dict.fromkeys(tables.ATTENTIONS, attended),
    **dict.fromkeys(("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"), recurrent),
    **dict.fromkeys(("select_backward",), picked_back),
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), crossed),
    **dict.fromkeys(tables.CUMULATIVE, same),
    **dict.fromkeys(
        tables.SOFTMAXES | tables.BATCH_NORMS | tables.OTHER_NORMS | tables.POOLS | tables.SORTS | tables.FOURIER, same
    ),
    **dict.fromkeys((*tables.TAPS, "im2col", "col2im", "constant_pad_nd", "gather", "slice_backward"), same),
    **dict.fromkeys(
        ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "grid_sampler_2d", "grid_sampler_3d"), same
    ),
    **dict.fromkeys(("tril", "triu", "flip", "roll", "diag_embed"), same),
    **dict.fromkeys(("_pack_padded_sequence",), packed),
    **dict.fromkeys(("repeat",), repeated),
    **dict.fromkeys(tables.SOLVES, solved),
}
"""By operation; those that torch tags as pointwise or as reductions are found by their handler."""


_INNERMOST = ("repeat", "cat", "_pack_padded_sequence")
"""What makes more rows of a dimension by putting the batch within it, not around it."""


def dims_reached(rule: Rule, call: Call, number: int, source: Tensor, spot: Spot, result: Tensor) -> Iterator[Any]:
    """Where a spot of an input goes in one result: ``(dimension or None, rows, indices a row)``."""
    for dim, rows, each in spot.dims:
        reached = rule(call, number, source, dim, result)
        if reached == GONE:
            continue
        if reached is None or not 0 <= reached < result.dim():
            yield None, rows, each
            continue
        extent = result.shape[reached]
        if extent != source.shape[dim] and extent % rows == 0 and call.name not in _INNERMOST:
            each = max(1, extent // rows)
        yield reached, rows, each


def rule_of(call: Call) -> Rule:
    """The rule of an operation."""
    if call.name in RULES:
        return RULES[call.name]
    if call.elementwise or call.name == "copy":
        return aligned
    return reduced if call.reduces else anywhere


def inherit_axes(call: Call, found: Found, result: Tensor) -> tuple[tuple[Axis, ...], bool]:
    """The axes of a result's storage, and whether one of them was lost.

    Args:
        call: the operation.
        found: what it read.
        result: one of its results.
    """
    loose: list[Spot] = []
    most: dict[tuple[Label, int], tuple[int, Axis]] = {}
    rule = rule_of(call)
    plain = _is_plain(result)
    if plain and not result.numel():
        return (), False
    if rule is into and any(spot.label.verdict for spot in found[0][2]):
        found = found[:1]  # what is written into has its own axes, whatever is sent there
    for number, (source, _, spots) in enumerate(found):
        for spot in spots:
            if not spot.dims or not plain:
                loose.append(spot)
                continue
            went = list(dims_reached(rule, call, number, source, spot, result))
            places = [(dim, rows, each) for dim, rows, each in went if dim is not None]
            loose += [spot] * (len(went) - len(places))
            for dim, rows, axis in _placed(spot, places, result):
                key = (spot.label.root, dim)
                if key not in most or most[key][0] < rows:  # who has most of it tells where its rows are
                    most[key] = (rows, axis)
    axes: dict[int, Axis] = {}
    for _, axis in most.values():
        if axis.stride in axes:  # one axis of the result: whatever it is, it is the same
            axis.label.join(axes[axis.stride].label)
        axes.setdefault(axis.stride, axis)
    if call.name in ("cat", "stack"):
        return _joined(call, found, result, tuple(axes.values()))
    if rule in (indexed, selected, looked_up) and plain and not loose:
        if not axes:
            return _picked(call, found, result), False
        if rule is indexed and any(
            axis.label.verdict for axis in axes.values()
        ):  # rows looked up in each sample are no samples
            for axis in axes.values():
                axis.label.refute()
    placed = {axis.label.root for axis in axes.values()}
    kept, lost = list(axes.values()), False
    for spot in loose:
        if spot.label.root in placed:
            continue
        placed.add(spot.label.root)
        if spot.axis.size == 1:  # in a batch of one, or one row of it
            kept.append(spot.axis)
            continue
        axis, found_it = _placed_by_size(spot, result)
        lost = lost or not found_it
        kept.append(axis)
    return tuple(kept), lost


def filled(before: Sequence[Axis], written: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes of a storage that is filled sample by sample: the axis that it was made with is the batch.

    Args:
        before: the axes it had.
        written: the axes of what is written into a part of it.
    """
    axes: list[Axis] = []
    for axis in written:
        hosts = [host for host in before if axis.stride == ONE_ROW and host.stride > 0 and host.size == axis.whole]
        if hosts:  # samples lie one behind the other
            host = max(hosts, key=lambda host: host.stride)
            host.label.join(axis.label)
            axis = Axis(axis.label, host.stride, host.size, axis.whole)
        axes.append(axis)
    return tuple(axes)


def _placed(spot: Spot, places: list[tuple[int, int, int]], result: Tensor) -> Iterator[tuple[int, int, Axis]]:
    """The axis of a result that a spot becomes: its first dimension there, rows covered, and the axis."""
    shape, strides = result.shape, strides_of(result)
    if len(spot.dims) == 1 or not places:
        for dim, rows, each in places:
            yield dim, rows, place(spot.label, shape, strides, dim, rows, spot.axis.whole, each)
        return
    (first, rows, each), last = places[0], places[-1]
    nested = all(strides[d] == strides[inner] * shape[inner] for (d, _, _), (inner, _, _) in pairwise(places))
    if nested and len(places) == len(spot.dims):  # rows in several dimensions are still one axis
        yield first, spot.rows, Axis(spot.label, strides[last[0]] * last[2], spot.rows, spot.axis.whole)
    else:
        whole = max(rows, spot.axis.whole * rows // spot.rows)
        yield first, rows, place(spot.label, shape, strides, first, rows, whole, each)


def made_from_sizes(
    call: Call, result: Tensor, sizes: frozenset[int], merged: Mapping[int, int] | None = None
) -> tuple[Axis, ...]:
    """Axes that a new tensor may have, made from sizes or constants alone.

    Args:
        call: the operation.
        result: its result.
        sizes: extents of the batch.
        merged: extents of the batch and what is in it together, and the batch's.
    """
    if not _is_plain(result):
        return ()
    axes: list[Axis] = []
    for dim, size in _repeated_to(call, result, sizes, merged or {}):
        stride = strides_of(result)[dim] * (result.shape[dim] // size)
        given = call.random and not axes  # the batch stands in front
        axes.append(Axis(Label(size, given=given), stride if size > 1 else NOWHERE, size, size))
    return tuple(axes[:1] if 1 in sizes else axes)


def _repeated_to(call: Call, result: Tensor, sizes: frozenset[int], merged: Mapping[int, int]) -> list[tuple[int, int]]:
    """Dimensions that hold as many of something as the batch has, and how many that is."""
    if call.name in tables.FACTORIES or call.name in tables.NEW:
        found = [(d, size) for d, size in enumerate(result.shape) if size in sizes]
        return (
            found
            + [(d, merged[size]) for d, size in enumerate(result.shape) if size in merged and size not in sizes][:1]
        )
    if call.name == "repeat":
        repeats = call.get("repeats")
        if 1 in sizes and any(times not in sizes for times in repeats):
            return []  # in a batch of one: what repeats something else isn't taken to repeat it for the batch
        return [(d, times) for d, times in enumerate(repeats) if times in sizes]
    along = (call.get("dim") or 0) if call.name in ("cat", "stack") else None
    if along == 0 and 1 < len(call.inputs) in sizes and len({t.shape for t in call.inputs}) == 1:
        return [(0, len(call.inputs))]  # one for each sample
    return []


def _joined(call: Call, found: Found, result: Tensor, axes: tuple[Axis, ...]) -> tuple[tuple[Axis, ...], bool]:
    """Concatenation and stacking: parts of the batch become more of it."""
    along = (call.get("dim") or 0) % max(1, result.dim())
    loose = [spot for _, _, spots in found for spot in spots if not spot.dims]
    ones = [spot for spot in loose if spot.rows == 1 < spot.axis.whole]
    placed = [axis for axis in axes if axis.stride != ONE_ROW]
    size, stride = result.shape[along], strides_of(result)[along]
    if len(ones) == len(call.inputs) > 1 and (call.name == "stack" or along == 0):
        whole = ones[0].axis.whole
        if call.name == "cat" and len({t.shape[0] for t in call.inputs}) == 1:  # as many of each sample
            each = call.inputs[0].shape[0]
            return (Axis(ones[0].label, stride * each, len(ones), max(whole, len(ones))),), False
        return (Axis(ones[0].label, stride, size, max(whole, size)),), False
    kept: dict[tuple[Label, int], Axis] = {}
    for axis in placed:
        if axis.stride == stride and call.name == "cat" and axis.size != size and axis.stride > 0:
            whole = size if axis.size == axis.whole else max(axis.whole, size)
            axis = Axis(axis.label, stride, size, whole)
        kept.setdefault((axis.label.root, axis.stride), axis)
    for spot in loose:
        if spot.axis.stride <= 0 and all(spot.label.root is not label for label, _ in kept):
            kept[spot.label.root, spot.axis.stride] = spot.axis
    return tuple(kept.values()), False


def _picked(call: Call, found: Found, result: Tensor) -> tuple[Axis, ...]:
    """What was picked from among the batch's rows by indices of which nothing is known, drawn at random for instance.

    Of as many rows as the batch has, or a multiple of them, each sample is taken to have its share.
    """
    if not result.dim() or not any(index.numel() > 1 for index, _, _ in found[1:]):
        return ()
    along = call.get("dim") % result.dim() if call.name == "index_select" else 0
    each, rest = divmod(result.shape[along], max((spot.rows for spot in found[0][2]), default=1))
    return tuple(
        place(spot.label, result.shape, strides_of(result), along, spot.rows, spot.axis.whole, each)
        for spot in found[0][2][:1]
        if each and not rest and spot.rows == spot.axis.whole and spot.label.verdict is not False
    )


def _placed_by_size(spot: Spot, result: Tensor) -> tuple[Axis, bool]:
    axis, rows = spot.axis, spot.rows
    if _is_plain(result):
        exact = [d for d, size in enumerate(result.shape) if size == rows]
        multiples = [d for d, size in enumerate(result.shape) if size % rows == 0 and size]
        for dim in (*exact[:1], *multiples[:1]):
            return place(
                axis.label, result.shape, result.stride(), dim, rows, axis.whole, result.shape[dim] // rows
            ), True
    return Axis(axis.label, NOWHERE, rows, axis.whole), result.dim() == 0


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested
