"""Tables of what each choice of a graph network costs, in bits or in bit operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lightning_effnn.search.cost import CostTerm
from lightning_effnn.search.graph.layout import graph_sizes, message_bops, product_bops
from lightning_effnn.search.graph.space import GraphSpace

Chosen = Mapping[str, Any]


def bits_terms(space: GraphSpace, nodes: int, edges: int) -> list[CostTerm]:
    """Return the bits of every weight (group ``"weights"``) and of every activation (``"activations"``).

    Args:
        space: of the networks.
        nodes, edges: of the graph; one edge at each node itself counts as an edge.
    """
    terms = []
    for group, parts in (("weights", _WEIGHTS), ("activations", _BUFFERS)):
        for number in range(space.num_layers):
            for part, names in parts.items():
                stored = _stored(space, nodes, edges, group, f"blocks.{number}.{part}")
                terms.append(tabulate(space, f"blocks.{number}.{part}", choices(number, names), stored, group))
    features = _stored(space, nodes, edges, "activations", "input")
    return [*terms, tabulate(space, "input", ("input_a",), features, "activations")]


def bops_terms(space: GraphSpace, nodes: int, edges: int) -> list[CostTerm]:
    """Return the bit operations of every product and of the messages.

    Args:
        space, nodes, edges: as for :func:`bits_terms`.
    """
    terms = []
    for number in range(space.num_layers):

        def products(chosen: Chosen, number: int = number) -> float:
            config = space.config(chosen)
            in_bits = config.blocks[number - 1].out_bits if number else config.input_a
            return product_bops(config.blocks[number], config.in_widths[number], in_bits, nodes)

        def messages(chosen: Chosen, number: int = number) -> float:
            return message_bops(space.config(chosen).blocks[number], edges)

        read = ("width", "skip", "linear_w", *(_IN_BITS if number else ()))
        names = choices(number, read) + (() if number else ("input_a",))
        terms.append(tabulate(space, f"blocks.{number}.linear", names, products))
        read = ("width", "attention", "linear_a", "attention_a")
        terms.append(tabulate(space, f"blocks.{number}.aggregation", choices(number, read), messages))
    return terms


def choices(number: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the full names of a block's choices; those marked with ``<`` are of the block before, if there is one."""
    own = {name: f"blocks.{number}.{name}" for name in names if not name.startswith("<")}
    before = {name: f"blocks.{number - 1}.{name[1:]}" for name in names if name.startswith("<") and number}
    return tuple({**own, **before}[name] for name in names if name in own or name in before)


def tabulate(
    space: GraphSpace, name: str, read: Sequence[str], cost: Callable[[Chosen], float], group: str = ""
) -> CostTerm:
    """Return the cost at every combination of the choices ``read``, the others at their first option."""
    options = [space.options[choice] for choice in read]
    values = [cost({**space.first, **dict(zip(read, picks, strict=True))}) for picks in itertools.product(*options)]
    table = torch.tensor(values, dtype=torch.float64, device="cpu").reshape([len(names) for names in options])
    return CostTerm(name, tuple(read), table, group)


_IN = ("<width",)
_IN_BITS = (*_IN, "<activation", "<activation_a", "<aggregation_a")
_WEIGHTS = {
    "linear": (*_IN, "width", "linear_w"),
    "skip": (*_IN, "width", "skip", "linear_w"),
    "attention": ("attention", "width", "attention_w"),
    "bias": ("width",),
}
_BUFFERS = {
    "linear": ("width", "linear_a"),
    "attention": ("attention", "attention_a"),
    "skip": ("width", "skip", "linear_a"),
    "aggregation": ("width", "aggregation_a"),
    "activation": ("width", "activation", "activation_a"),
}


def _stored(space: GraphSpace, nodes: int, edges: int, group: str, name: str) -> Callable[[Chosen], float]:
    def total(chosen: Chosen) -> float:
        sizes = graph_sizes(space.config(chosen), nodes, edges)
        kept = sizes.weights if group == "weights" else sizes.buffers
        return sum(stored.total_bits for stored in kept if stored.name == name)

    return total
