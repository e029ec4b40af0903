"""Which tensors are the example batch, which of their axes the batch lies along, and how many inferences it holds.

The rule, in this order:

1. What the user says: ``batch_dim`` and the number of ``inferences``.
2. A torch-geometric ``Batch`` holds as many inferences as graphs; every axis along which it concatenates them is
   the batch. Nodes and edges of a single graph (recognised by ``Data``, an argument called ``edge_index`` or
   ``adj_t``, a square sparse matrix, or an int64 tensor [2, E] of indices into another tensor) are no batch. A
   vector called ``batch`` that numbers the nodes tells how many graphs there are. Features with three axes or more
   have the batch in front, whatever the edges.
3. A list of images ([C, H, W] each), of mappings, or of tensors whose first extents differ is one inference an item.
4. Else axis 0 of the first tensor with two axes or more that is no mask [T, T] of another's T tokens. Other tensors
   of the same extent there are taken to go along with it, unless what they are added to says otherwise.

Two findings overrule 4 while the batch runs: a module with ``batch_first=False`` that gets the axis as its steps
(then the batch is axis 1), and a buffer or weight that mixes rows of the axis (then they are nodes of one graph).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_effnn.hardware.tracing.axes import Label

_HOW_TO_SAY = "batch_dim and inferences say it otherwise"


@dataclass
class Batch:
    """What the example batch holds.

    Attributes:
        tensors: every tensor found in it.
        size: inferences in it; ``None`` if it holds no tensor with an axis.
        graph: whether it is one graph, whose nodes are not a batch.
        axes: tensors that have the batch, the axis, and its label.
        samples: tensors of one inference each, and the label of the axis they would be stacked along.
        main: the label of the batch.
        other: the label of axis 1, which is the batch if a module says that axis 0 holds steps.
        given: whether the user said which axis it is.
        notes: readings that may be wrong.
    """

    tensors: tuple[Tensor, ...] = ()
    size: int | None = None
    graph: bool = False
    axes: list[tuple[Tensor, int, Label]] = field(default_factory=list)
    samples: list[tuple[Tensor, Label]] = field(default_factory=list)
    main: Label | None = None
    other: Label | None = None
    given: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def concatenated(self) -> bool:
        """Whether its inferences are of different sizes, one behind the other, as graphs are."""
        return any(label.size != self.size for _, _, label in self.axes)

    @property
    def sizes(self) -> frozenset[int]:
        """Extents that an axis of the batch may have."""
        return frozenset(label.size for _, _, label in self.axes) | frozenset(label.size for _, label in self.samples)


def inspect_batch(
    example: Any, batch_dim: int | None = None, inferences: int | None = None, time_major: bool = False
) -> Batch:
    """Find the tensors of ``example`` and how many inferences they are.

    Args:
        example: any nest of tensors, mappings, sequences, dataclasses and torch-geometric data.
        batch_dim: the axis of the batch; ``None`` to find out.
        inferences: how many inferences the example holds; ``None`` to find out.
        time_major: whether the model has modules that take the batch as their second axis.

    Raises:
        ValueError: if the batch is empty, or ``batch_dim`` is an axis that no tensor has.

    Example:
        >>> inspect_batch({"x": torch.zeros(8, 3), "y": torch.zeros(8)}).size
        8
        >>> inspect_batch((torch.zeros(5, 3), torch.tensor([[0, 1], [1, 4]]))).graph
        True
        >>> inspect_batch(([torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)],)).size
        2
    """
    leaves = list(_leaves(example))
    tensors = tuple(leaf for _, leaf in leaves if isinstance(leaf, Tensor))
    if batch_dim is not None:
        return _along(tensors, batch_dim, inferences)
    graph = graph_data_of(example)
    if graph is not None:
        return _graphs(tensors, graph, inferences)
    packed = next((leaf for _, leaf in leaves if isinstance(leaf, PackedSequence)), None)
    if packed is not None:
        label = Label(packed.data.shape[0], True)
        size = inferences or int(packed.batch_sizes[0])
        return Batch((*tensors, packed.data), size, axes=[(packed.data, 0, label)], main=label)
    stacked = any(t.is_floating_point() and not t.is_nested and t.dim() > 2 for t in tensors)
    if (_has_edges(leaves) and not stacked) or _numbering(leaves) is not None:
        return _nodes(leaves, tensors, inferences)
    samples = samples_of(example)
    if samples:
        return _listed(tensors, samples, inferences)
    named = ("edge_index", "adj_t")
    edges = {id(leaf) for name, leaf in leaves if name in named}
    batch = _first(tuple(t for t in tensors if id(t) not in edges), tensors, inferences, time_major)
    if inferences is None:
        batch.notes += _said_of_lists(example)
    return batch


def is_graph_data(value: Any) -> bool:
    """Whether ``value`` is a torch-geometric ``Data``, ``HeteroData`` or ``Batch`` (without importing it)."""
    return any(
        c.__module__.startswith("torch_geometric.data") and c.__name__ in ("BaseData", "Data", "HeteroData")
        for c in type(value).__mro__
    )


def graph_data_of(example: Any) -> Any:
    """The first torch-geometric ``Data``, ``HeteroData`` or ``Batch`` in ``example``; ``None`` if there is none."""
    return next((leaf for _, leaf in _leaves(example) if is_graph_data(leaf)), None)


def _along(tensors: tuple[Tensor, ...], dim: int, inferences: int | None) -> Batch:
    having = [t for t in tensors if -t.dim() <= dim < t.dim()]
    if not having:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors if not t.is_nested) or "none"
        raise ValueError(f"batch_dim={dim!r}: no tensor of the batch has that axis (shapes: {shapes})")
    main = next((t for t in having if t.dim() > 1), having[0])
    label = Label(main.shape[dim], True)
    _refuse_empty(label.size, tensors, dim)
    axes = [
        (t, dim % t.dim(), label if t is main or t.dim() == 1 else Label(label.size))
        for t in having
        if t.shape[dim] == label.size
    ]
    return Batch(tensors, inferences or label.size, axes=axes, main=label, given=True)


def _graphs(tensors: tuple[Tensor, ...], graph: Any, inferences: int | None) -> Batch:
    inside = [(key, t, store) for store in graph.stores for key, t in store.items() if isinstance(t, Tensor)]
    every = tensors + tuple(t for _, t, _ in inside)
    number = inferences or int(getattr(graph, "num_graphs", 1) or 1)
    if number == 1 and not hasattr(graph, "num_graphs"):
        return Batch(every, 1, graph=True)
    labels: dict[int, Label] = {number: Label(number, True)}
    batch = Batch(every, number, main=labels[number])
    for key, t, store in inside:
        dim = graph.__cat_dim__(key, t, store)
        if isinstance(dim, int) and t.dim() and t.layout is torch.strided:
            size = t.shape[dim]
            batch.axes.append((t, dim % t.dim(), labels.setdefault(size, Label(size, True))))
    return batch


def _nodes(leaves: list[tuple[str, Any]], tensors: tuple[Tensor, ...], inferences: int | None) -> Batch:
    numbering = _numbering(leaves)
    number = inferences
    notes: list[str] = []
    if number is None and numbering is not None and numbering.numel() and _has_values(numbering):
        number = int(numbering.max()) + 1
        notes = [f"the vector called batch numbers {number} graphs: each was taken as one inference; {_HOW_TO_SAY}"]
    if inferences is None and number in (None, 1):
        return Batch(tensors, 1, graph=True)
    labels: dict[int, Label] = {}
    batch = Batch(tensors, number, notes=notes)
    for name, t in leaves:
        if isinstance(t, Tensor) and t.dim() and t.layout is torch.strided:
            dim = t.dim() - 1 if name in ("edge_index", "adj_t") else 0
            size = t.shape[dim]
            batch.axes.append((t, dim, labels.setdefault(size, Label(size, True))))
    batch.main = batch.axes[0][2]
    return batch


def _listed(tensors: tuple[Tensor, ...], samples: Sequence[Any], inferences: int | None) -> Batch:
    number = inferences or len(samples)
    label = Label(len(samples), True)
    batch = Batch(tensors, number, main=label)
    inside = [t for sample in samples for _, t in _leaves(sample) if isinstance(t, Tensor)]
    batch.samples = [(t, label) for t in inside]
    known = {id(t) for t in inside}
    rest = [t for t in tensors if id(t) not in known and not t.is_nested and t.dim() and t.shape[0] == label.size]
    batch.axes = [(t, 0, Label(label.size, given=True)) for t in rest]
    batch.notes.append(f"a list of {len(samples)} items was taken as {number} inferences; {_HOW_TO_SAY}")
    return batch


def _first(having: tuple[Tensor, ...], tensors: tuple[Tensor, ...], inferences: int | None, time_major: bool) -> Batch:
    nested = next((t for t in having if t.is_nested), None)
    if nested is not None:
        size = int(nested.size(0))
        return Batch(tensors, inferences or size, axes=[(nested, 0, label := Label(size, True))], main=label)
    with_axes = [t for t in having if t.dim() and t.layout is torch.strided]
    candidates = [t for t in with_axes if t.dim() > 1 and not _is_mask(t, with_axes)] or with_axes
    if not candidates:
        return Batch(tensors, inferences)
    main = candidates[0]
    label = Label(main.shape[0], True)
    _refuse_empty(label.size, tensors, 0)
    batch = Batch(tensors, inferences or label.size, main=label)
    for t in with_axes:
        if t.shape[0] == label.size:
            batch.axes.append((t, 0, label if t is main or t.dim() == 1 else Label(label.size, given=True)))
    if time_major and main.dim() > 1 and main.shape[1] > 1:
        batch.other = Label(main.shape[1])
        batch.axes += [(t, 1, batch.other) for t in with_axes if t.dim() > 1 and t.shape[1] == main.shape[1]]
    others = sorted({t.shape[0] for t in candidates if t.dim() > 1} - {label.size, 1})
    if others and inferences is None:
        batch.notes.append(
            f"axis 0 of the first input, of extent {label.size}, was taken for the batch (axis 0 of others has the"
            f" extent {', '.join(map(str, others))}); {_HOW_TO_SAY}"
        )
    return batch


def _is_mask(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether it says which of T tokens sees which: [T, T], where another tensor has T tokens."""
    square = tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]
    return square and any(t is not tensor and t.dim() > 1 and t.shape[1] == tensor.shape[0] for t in others)


def _refuse_empty(size: int, tensors: tuple[Tensor, ...], dim: int) -> None:
    if size == 0:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(
            f"the example batch is empty (shapes {shapes}): tracing needs at least one sample along axis {dim}"
        )


def samples_of(example: Any, depth: int = 0) -> Sequence[Any]:
    """The first list in ``example`` whose items are one inference each."""
    if isinstance(example, Mapping):
        return next((found for item in example.values() if (found := samples_of(item, depth + 1))), ())
    if not isinstance(example, list | tuple) or hasattr(example, "_fields"):
        return ()
    if depth and _are_samples(example):
        return example
    return next((found for item in example if (found := samples_of(item, depth + 1))), ())


def _said_of_lists(example: Any, depth: int = 0) -> list[str]:
    """Of a list of tensors of one shape: which reading was taken."""
    if isinstance(example, Mapping):
        return [note for item in example.values() for note in _said_of_lists(item, depth + 1)]
    if not isinstance(example, list | tuple) or hasattr(example, "_fields"):
        return []
    shapes = {tuple(t.shape) for t in example if isinstance(t, Tensor) and not t.is_nested and t.dim() > 1}
    number = len(example)
    if depth and number > 1 and len(shapes) == 1 and all(isinstance(item, Tensor) for item in example):
        return [
            f"a list of {number} tensors of the shape {shapes.pop()} was taken for {number} inputs with the whole batch"
            f" in each, not for one inference an item; inferences={number} says otherwise"
        ]
    return [note for item in example for note in _said_of_lists(item, depth + 1)]


def _are_samples(items: Sequence[Any]) -> bool:
    if len(items) > 1 and all(isinstance(item, Mapping) for item in items):
        return any(isinstance(t, Tensor) and t.dim() for item in items for _, t in _leaves(item))
    if not items or not all(isinstance(t, Tensor) and not t.is_nested for t in items):
        return False
    if all(t.dim() == 3 and t.shape[0] in (1, 3, 4) and t.is_floating_point() for t in items):
        return True  # images: colours first
    alike = {(t.dim(), t.dtype, tuple(t.shape[1:])) for t in items}
    return len(alike) == 1 and len({t.shape[:1] for t in items}) > 1  # sequences of different lengths


def _has_edges(leaves: list[tuple[str, Any]]) -> bool:
    tensors = [leaf for _, leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_nested]
    if any(name in ("edge_index", "adj_t") for name, _ in leaves):
        return True
    if any(t.layout is not torch.strided and t.dim() == 2 and t.shape[0] == t.shape[1] for t in tensors):
        return True  # a square sparse matrix: an adjacency
    nodes = [t for t in tensors if t.dim() > 0 and t.shape[0] != 2 and t.is_floating_point()]
    for t in tensors:
        # Two rows of int64 may also be two sentences of token ids: then everything has two rows, or there is
        # a mask of as many rows as there are tokens, or an id is larger than the rows it would point into.
        if t.dtype is torch.int64 and t.dim() == 2 and t.shape[0] == 2 and t.numel() and _has_values(t):
            pointed = [n for n in nodes if not (n.shape[0] == n.shape[-1] == t.shape[1])]
            return bool(pointed) and bool(t.max() < max(n.shape[0] for n in pointed))
    return False


def _numbering(leaves: list[tuple[str, Any]]) -> Tensor | None:
    """A vector called ``batch`` that says which graph each node belongs to."""
    for name, t in leaves:
        if name == "batch" and isinstance(t, Tensor) and t.dtype is torch.int64 and t.dim() == 1 and t.numel():
            rows = [o for _, o in leaves if isinstance(o, Tensor) and o is not t and o.dim() and o.shape[0] == len(t)]
            if rows and _has_values(t) and bool((t[1:] >= t[:-1]).all()):
                return t
    return None


def _has_values(tensor: Tensor) -> bool:
    return not (tensor.is_meta or hasattr(tensor, "fake_mode"))


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
