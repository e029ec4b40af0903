"""The operations of a captured graph, sorted by what an integer runtime does with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_KINDS = {
    "convolution": (aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding, aten.conv1d.padding),
    "linear": (aten.linear.default,),
    "matmul": (aten.matmul.default, aten.bmm.default),
    "add": (aten.add.Tensor,),
    "mul": (aten.mul.Tensor,),
    "cat": (aten.cat.default,),
    "average": (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    "sigmoid": (aten.sigmoid.default,),
    "limit": (aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default),
    "move": (
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.permute.default,
        aten.transpose.int,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.clone.default,
        aten.contiguous.default,
        aten.max_pool2d.default,
        aten.pad.default,
        aten.constant_pad_nd.default,
    ),
}
PRODUCTS = frozenset({"convolution", "linear", "matmul"})
_WITH_WEIGHTS = (aten.conv3d.default, aten.conv3d.padding, aten.conv_transpose1d.default,
                 aten.conv_transpose2d.input, aten.conv_transpose3d.input, aten.addmm.default)  # fmt: skip
_KIND_OF: dict[object, str] = {target: kind for kind, targets in _KINDS.items() for target in targets}
_NEVER_NEGATIVE = (aten.sigmoid.default, aten.softmax.int, aten._softmax.default)


def kind(node: fx.Node) -> str:
    """Return what sort of operation ``node`` is.

    ``"convolution"``, ``"linear"``, ``"matmul"``: products; ``"add"``, ``"mul"``, ``"cat"``, ``"average"``,
    ``"sigmoid"``: what joins or changes values that were rounded; ``"limit"``: cuts values off below zero, perhaps
    also above; ``"move"``: gives values that it was given, or zeros; ``"other"``: anything else.

    >>> graph = torch.fx.Graph()
    >>> x = graph.placeholder("x")
    >>> kind(graph.call_function(aten.relu.default, (x,))), kind(graph.call_function(aten.gelu.default, (x,)))
    ('limit', 'other')
    """
    if node.op != "call_function":
        return "other"
    name = _KIND_OF.get(node.target, "other")
    wrong = (
        (name == "move" and _pads(node) and not _pads_zeros(node))
        or (name == "limit" and highest(node) is None)
        or (name == "average" and node.target is aten.adaptive_avg_pool2d.default and not is_global(node))
        or (name == "add" and node.kwargs.get("alpha", 1) != 1)
        or (name in ("add", "mul") and not all(isinstance(arg, fx.Node) for arg in node.args[:2]))
    )
    return "other" if wrong else name


def has_weights(node: fx.Node) -> bool:
    """Whether ``node`` is a layer, one of those that there are integer kernels for or another."""
    return kind(node) in ("convolution", "linear") or node.target in _WITH_WEIGHTS


def highest(node: fx.Node) -> float | None:
    """Return above which value a limit cuts off, infinity where it doesn't; ``None`` if it is no limit at zero."""
    if node.target is aten.relu.default:
        return float("inf")
    if node.target is aten.relu6.default:
        return 6.0
    low, high = (*node.args[1:3], *(None,) * (3 - len(node.args)))[:2]
    if low != 0 or not (high is None or isinstance(high, int | float)):
        return None
    return float("inf") if high is None else float(high)


def is_global(node: fx.Node) -> bool:
    """Whether an average is that of all positions."""
    size: Any = node.args[1]
    return node.target is aten.adaptive_avg_pool2d.default and list(size) == [1, 1]


def sources(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the nodes that an arithmetic operation reads its activations from."""
    if kind(node) == "cat":
        return tuple(arg for arg in node.args[0] if isinstance(arg, fx.Node))  # type: ignore[union-attr]
    count = 2 if kind(node) in ("add", "mul", "matmul") else 1
    return tuple(arg for arg in node.args[:count] if isinstance(arg, fx.Node))


def before_moves(node: fx.Node) -> fx.Node:
    """Return where the values of ``node`` were made: the first node back that doesn't only move them."""
    while kind(node) == "move":
        (node,) = (arg for arg in node.args[:1] if isinstance(arg, fx.Node))
    return node


def readers(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield each node that reads the values of ``node``, moved or not, and the node that it reads them from."""
    for user in node.users:
        if kind(user) == "move" and user.args[0] is node:
            yield from readers(user)
        elif user.target not in (aten.sym_size.int,):
            yield user, node


def never_negative(node: fx.Node) -> bool | None:
    """Return whether no value of ``node`` is below zero, as far as its operation tells; ``None``: only data tell."""
    node = before_moves(node)
    sort = kind(node)
    if sort == "limit" or node.target in _NEVER_NEGATIVE:
        return True
    if sort in ("add", "mul", "cat", "average"):
        parts = [never_negative(source) for source in sources(node)]
        return True if all(parts) else None if None in parts else False
    return False if sort in ("convolution", "linear", "matmul") else None


def varying(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that depend on an input of the graph, numbers such as sizes left out."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        fed = node.op == "placeholder" or any(source in found for source in node.all_input_nodes)
        if fed and node.op != "output" and isinstance(node.meta.get("val"), Tensor | tuple | list):
            found.add(node)
    return found


def _pads(node: fx.Node) -> bool:
    return node.target in (aten.pad.default, aten.constant_pad_nd.default)


def _pads_zeros(node: fx.Node) -> bool:
    rest = list(node.args[2:])
    mode = rest.pop(0) if node.target is aten.pad.default and rest else "constant"
    value = rest[0] if rest else node.kwargs.get("value", 0)
    return node.kwargs.get("mode", mode) == "constant" and (value is None or bool(value == 0))
