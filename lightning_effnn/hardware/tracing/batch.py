"""Which tensors are the example batch, and how many inferences it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Batch:
    """What the example batch holds.

    Attributes:
        tensors: every tensor found in it.
        size: inferences in it; ``None`` if it holds no tensor with an axis.
        graph: whether it is one graph (or a batch of graphs), whose nodes are not a batch.
    """

    tensors: tuple[Tensor, ...] = ()
    size: int | None = None
    graph: bool = False


def inspect_batch(example: Any, batch_dim: int = 0) -> Batch:
    """Find the tensors of ``example`` and how many inferences they are.

    Args:
        example: any nest of tensors, mappings, sequences, dataclasses and torch-geometric data.
        batch_dim: the axis of the batch.

    Raises:
        ValueError: if the batch is empty.

    Example:
        >>> inspect_batch({"x": torch.zeros(8, 3), "y": torch.zeros(8)}).size
        8
        >>> inspect_batch((torch.zeros(5, 3), torch.tensor([[0, 1], [1, 4]]))).graph
        True
    """
    leaves = list(_leaves(example))
    tensors = tuple(leaf for _, leaf in leaves if isinstance(leaf, Tensor))
    graphs = [leaf for _, leaf in leaves if is_graph_data(leaf)]
    if graphs:
        inside = tuple(t for g in graphs for _, t in _leaves(_contents(g)) if isinstance(t, Tensor))
        return Batch(tensors + inside, int(getattr(graphs[0], "num_graphs", 1) or 1), True)
    packed = next((leaf for _, leaf in leaves if isinstance(leaf, PackedSequence)), None)
    if packed is not None:
        return Batch((*tensors, packed.data), int(packed.batch_sizes[0]))
    if _has_edges(leaves):
        return Batch(tensors, 1, True)
    size = _size(tensors, batch_dim)
    if size == 0:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(
            f"the example batch is empty (shapes {shapes}): tracing needs at least one sample along axis {batch_dim}"
        )
    return Batch(tensors, size)


def is_graph_data(value: Any) -> bool:
    """Whether ``value`` is a torch-geometric ``Data``, ``HeteroData`` or ``Batch`` (without importing it)."""
    return any(
        c.__module__.startswith("torch_geometric.data") and c.__name__ in ("BaseData", "Data", "HeteroData")
        for c in type(value).__mro__
    )


def _size(tensors: tuple[Tensor, ...], batch_dim: int) -> int | None:
    with_axis = [t for t in tensors if t.dim() > batch_dim]
    floating = [t for t in with_axis if t.is_floating_point() or t.is_complex()]
    first = next(iter(floating or with_axis), None)
    return None if first is None else first.shape[batch_dim]


def _has_edges(leaves: list[tuple[str, Any]]) -> bool:
    tensors = [leaf for _, leaf in leaves if isinstance(leaf, Tensor)]
    if any(name in ("edge_index", "adj_t") for name, _ in leaves):
        return True
    if any(t.layout is not torch.strided and t.dim() == 2 and t.shape[0] == t.shape[1] for t in tensors):
        return True  # a square sparse matrix: an adjacency
    nodes = [t for t in tensors if t.dim() > 0 and t.shape[0] != 2]
    for t in tensors:
        # Two rows of int64 may also be two sentences of token ids: then everything has two rows, or
        # an id is larger than the number of rows it would have to point into.
        if nodes and t.dtype is torch.int64 and t.dim() == 2 and t.shape[0] == 2 and t.numel():
            return bool(t.max() < max(n.shape[0] for n in nodes))
    return False


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor | PackedSequence) or is_graph_data(value):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, str(key))
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _leaves(item, name)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for part in dataclasses.fields(value):
            yield from _leaves(getattr(value, part.name, None), part.name)
    elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, torch.nn.Module | type):
        # A batch class of the user's own: look one level down.
        for key, item in vars(value).items():
            if isinstance(item, Tensor):
                yield key, item


def _contents(graph: Any) -> Any:
    return [dict(store.items()) for store in graph.stores]
