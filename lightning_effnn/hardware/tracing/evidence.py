"""What operations say about axes whose meaning isn't known: which are the same, which are no batch at all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor, nn

from lightning_effnn.hardware.tracing import tables
from lightning_effnn.hardware.tracing.axes import Label, Spot
from lightning_effnn.hardware.tracing.batch import Batch
from lightning_effnn.hardware.tracing.pieces import Call
from lightning_effnn.hardware.tracing.storage import Record

Looked = Sequence[tuple[Tensor, "Record | None", tuple[Spot, ...]]]
"""What an operation reads: each tensor, what is known of its memory, and the axes of the batch that it holds."""
_Key = Callable[[int, Tensor, int], "Hashable | None"]


def meet(call: Call, looked: Looked, where: str) -> None:
    """Join labels that an operation lines up with each other, refute those that meet an axis which is none.

    Args:
        call: the operation.
        looked: what it reads.
        where: the module it runs in.
    """
    if not _worth_it(call, looked):
        return
    key = _key(call)
    if key is None:
        return
    groups: dict[Hashable, dict[int, dict[int, Label]]] = {}  # by place, by indices a row, by tensor
    ones: list[Label] = []
    opposed: dict[Hashable, list[Label]] = {}  # by the whole dimension, in which there may be more than the axis
    for number, (tensor, _, spots) in enumerate(looked):
        for spot in spots:
            for dim, rows, each in spot.dims:
                at = key(number, tensor, dim)
                if at is not None and rows == spot.axis.whole:
                    groups.setdefault((at, rows), {}).setdefault(each, {})[number] = spot.label
                    opposed.setdefault((at, rows if at == "c" else tensor.shape[dim]), []).append(spot.label)
            if not spot.dims and spot.axis.whole == spot.axis.size == 1:  # in batches of one the place is unknown
                ones.append(spot.label)
    _join(ones)
    for by_each in groups.values():
        # Of two axes in one dimension the inner one has fewer indices a row: those that agree in that are the same.
        same = [alike for alike in by_each.values() if len(alike) > 1]
        every = [(number, label) for alike in by_each.values() for number, label in alike.items()]
        if not same and len({number for number, _ in every}) == len(every):
            same = [dict(every)]
        for alike in same:
            _join(list(alike.values()))
    for number, (tensor, record, spots) in enumerate(looked):
        held = {dim for spot in spots for dim, _, _ in spot.dims}
        if record is None or any(not spot.dims for spot in spots):
            continue  # its axes are somewhere: it can't witness
        for dim, extent in enumerate(tensor.shape):
            if extent == 1 or dim in held or not tensor.stride(dim):
                continue
            at = key(number, tensor, dim)
            for label in opposed.get((at, extent), ()):
                if (
                    at == "c"
                    and not call.backward
                    and not record.tainted
                    and record.parameter
                    and label.verdict is not None
                ):
                    _mix(label, where)
                else:
                    label.refute()


def _join(labels: Sequence[Label]) -> None:
    for label in labels[1:]:
        label.join(labels[0])


def look_up(call: Call, looked: Looked, where: str) -> None:
    """Notice where rows of the batch are picked, or sent, by an index that is a constant of the model."""
    if call.name in ("index_select", "index", "_unsafe_index"):
        indices = looked[1:]
    elif call.name in ("index_add", "scatter_add", "scatter_reduce", "index_reduce", "scatter", "index_put"):
        indices = [entry for entry in looked[1:] if not entry[0].is_floating_point()]
    else:
        return
    along = call.get("dim") if isinstance(call.get("dim"), int) else 0
    _join_indices(call, looked, indices)
    fixed = [t for t, r, spots in indices if r is not None and r.parameter and not r.tainted and not spots]
    if not fixed or not all(t.dim() for t in fixed):
        return
    for tensor, _, spots in looked:
        for spot in spots:
            for dim, rows, _ in spot.dims:
                if dim == along % max(1, tensor.dim()) and rows == tensor.shape[dim] and spot.label.verdict:
                    if call.name in ("index", "_unsafe_index") and call.get("indices")[0] is None:
                        continue
                    _mix(spot.label, where)


def _join_indices(call: Call, looked: Looked, indices: Looked) -> None:
    """``x[arange(N), ...]``: an index made from sizes that looks into the batch is of the batch."""
    along, first = 0, None
    if call.name == "index_select":
        along, first = call.get("dim") % max(1, looked[0][0].dim()), call.get("index")
    elif call.name in ("index", "_unsafe_index", "index_put"):
        first = call.get("indices")[0]
    mine = [spot.label for spot in looked[0][2] if spot.label.verdict and spot.dims and spot.dims[0][0] == along]
    for tensor, _, spots in indices:
        for spot in spots:
            front = spot.dims[:1] and spot.dims[0][0] == 0
            if mine and front and tensor is first and spot.label.verdict is None and spot.rows == mine[0].size:
                spot.label.join(mine[0])


def says_steps_first(module: nn.Module) -> bool:
    """Whether a module takes the batch as the second axis of its input.

    >>> says_steps_first(nn.LSTM(4, 4)), says_steps_first(nn.LSTM(4, 4, batch_first=True))
    (True, False)
    """
    return vars(module).get("batch_first") is False


def steps_first(name: str, size: int, single: bool) -> str:
    """Say that axis 0 was taken for steps.

    Args:
        name: the module that says so.
        size: extent of axis 1.
        single: whether the input is one sequence, without a batch.
    """
    what = "the input was taken for a single sequence" if single else (
        f"axis 1 of the input, of extent {size}, was taken for the batch"
    )  # fmt: skip
    return f"{what}, since {name or 'the model'} has batch_first=False; batch_dim says it otherwise"


def settle(batch: Batch | None, reading: str, wanted: Sequence[Label]) -> list[str]:
    """Decide what is still open, and return what was assumed.

    Args:
        batch: the example batch.
        reading: what a module said of the axes, as a note.
        wanted: labels of axes that multiply-accumulates run along.
    """
    if batch is None or batch.main is None:
        return [] if batch is None else list(batch.notes)
    notes = list(batch.notes)
    main = batch.main.root
    if main.mixed and not batch.given and not batch.graph and batch.size == main.size:
        main.verdict = False
        batch.size, batch.graph = 1, True
        return [
            f"a constant of {main.mixed or 'the model'} mixes the rows of the first input: they were taken for the"
            " nodes of one graph, and nothing was rescaled; batch_dim=0 says that they are a batch"
        ]
    if reading:
        notes = [reading]
    elif batch.other is not None:
        batch.other.refute()
    against = {label.size for _, _, label in batch.axes if label.root.given and label.verdict is False}
    if against and not batch.graph:
        notes.append(
            f"an axis of extent {', '.join(map(str, sorted(against)))} of another input was taken for something else"
            " than the batch, since it met an axis that is none; a batch of another size tells"
        )
    for size in sorted({label.size for label in wanted if label.verdict is None and label.root.given}):
        notes.append(
            f"an axis of extent {size} of another input, or of random numbers, was taken to go along with the batch;"
            " a batch of another size tells"
        )
    return notes


def _mix(label: Label, where: str) -> None:
    label.root.mixed = label.root.mixed or where or "the model"


def _worth_it(call: Call, looked: Looked) -> bool:
    first: Label | None = None
    for _, _, spots in looked:
        for spot in spots:
            label = spot.label.root
            if label.verdict is None or (first is not None and label is not first):
                return True
            first = label
    return first is not None and call.name in tables.MATRIX_PRODUCTS and not call.backward


def _key(call: Call) -> _Key | None:
    if call.name in tables.MATRIX_PRODUCTS:
        shift = call.name in tables.WITH_BIAS
        flipped = call.name in tables.TRANSPOSED

        def of_product(number: int, tensor: Tensor, dim: int) -> Hashable | None:
            number -= shift
            if number not in (0, 1) or tensor.dim() < 2:
                return None
            if tensor.dim() == 3 and dim == 0:
                return "g"
            last = dim == tensor.dim() - 1
            return "c" if last == ((number == 0) != (flipped and number == 1)) else None

        return of_product
    if call.name in ("cat", "stack", "gather"):
        along = call.get("dim") or 0
        return lambda number, tensor, dim: None if dim == along % max(1, tensor.dim()) else dim
    if call.name == "masked_scatter":  # what is sent is taken from its first dimension on
        first = -call.inputs[0].dim()
        return lambda number, tensor, dim: dim - tensor.dim() if number < 2 else first if dim == 0 else None
    if call.name in tables.ATTENTIONS:
        return _of_attention
    if call.name in tables.BATCH_NORMS:
        return lambda number, tensor, dim: "channels" if dim == (number == 0) else None
    if call.name in tables.SCATTERS:
        return lambda number, tensor, dim: dim
    if call.name == "mkldnn_rnn_layer":
        return lambda number, tensor, dim: "n" if dim == tensor.dim() - 2 else None
    if call.elementwise or call.name == "copy":
        return lambda number, tensor, dim: dim - tensor.dim()
    return None


def _of_attention(number: int, tensor: Tensor, dim: int) -> Hashable | None:
    at = dim - tensor.dim()
    if at < -2:
        return at
    if number > 2:  # a mask [..., queries, keys]
        return "queries" if at == -2 else "keys"
    return None if at == -1 else ("queries" if number == 0 else "keys")
