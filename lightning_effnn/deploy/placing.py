"""Where numbers are rounded so that a runtime can do all of a network's products in integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from lightning_effnn.deploy.backend import Backend
from lightning_effnn.deploy.operations import PRODUCTS, before_moves, kind, never_negative, readers, sources, varying
from lightning_effnn.deploy.widths import FLOAT, Width

_JOINED_BITS = 8
"""Of what goes into and comes out of additions and the like, which plans say nothing about."""


@dataclass
class Rounding:
    """One quantiser of activations.

    Attributes:
        at: the node whose values are rounded.
        bits: the most that a reader asks for.
        signed: whether there are negative values; ``None`` if only data tell.
        only: the nodes that read the rounded values; all do if it is ``None``.
    """

    at: fx.Node
    bits: int
    signed: bool | None
    only: set[fx.Node] | None


@dataclass
class Placement:
    """What runs in integers, and where numbers are rounded for it.

    Attributes:
        integer: operations that run in integers, in order.
        roundings: quantisers by the node that they stand behind.
        inputs: the node behind which the input of each layer is rounded.
        left: products that stay in floating point, and why.
    """

    integer: list[fx.Node] = field(default_factory=list)
    roundings: dict[fx.Node, Rounding] = field(default_factory=dict)
    inputs: dict[fx.Node, fx.Node] = field(default_factory=dict)
    left: dict[fx.Node, str] = field(default_factory=dict)


def place(graph: fx.Graph, backend: Backend, widths: Mapping[fx.Node, Width]) -> Placement:
    """Say where the values of ``graph`` are rounded so that ``backend`` computes in integers.

    Layers run in integers if the plan gives them widths that there are kernels for, and so do products of two
    activations. Additions and the like do where one of their inputs is rounded anyway. A value is rounded once, for
    all that read it, where it has to be or where all of its readers want it; otherwise only for those that do.

    Args:
        graph: of :func:`lightning_effnn.deploy.capture.capture`.
        backend: where it is to run.
        widths: of each layer.
    """
    placement = Placement()
    changing = varying(graph)
    forced: set[fx.Node] = set()
    for node in graph.nodes:
        sort = kind(node)
        if node not in changing or sort in ("other", "move", "limit"):
            continue
        if sort not in backend.integer:
            why = f"{backend.name} has no integer kernel for it"
        elif node in widths:
            why = _refusal(backend, widths[node], node, changing)
        elif sort == "matmul":
            why = "" if _both_vary(node, changing) else "its weight is neither a convolution's nor a linear layer's"
        else:
            why = "" if _both_vary(node, changing) and any(_rounded(s, forced) for s in sources(node)) else "float"
        if why:
            if sort in PRODUCTS:
                placement.left[node] = why
            continue
        placement.integer.append(node)
        if sort in backend.rounds_output:
            forced.add(node)
    _ask_for_roundings(placement, forced, widths)
    return placement


def group_end(node: fx.Node) -> fx.Node:
    """Return the limit that is fused into ``node``, or ``node`` itself where there is none."""
    users = list(node.users)
    return users[0] if len(users) == 1 and kind(users[0]) == "limit" else node


def _refusal(backend: Backend, width: Width, node: fx.Node, changing: set[fx.Node]) -> str:
    """Why a layer can't run in integers, or nothing."""
    if node.args[1] in changing:
        return "its weight is computed from the input"
    if FLOAT in width:
        return (
            "the plan gives its "
            + " and its ".join(what for what, bits in zip(("weight", "input"), width, strict=True) if bits == FLOAT)
            + " no bits"
        )
    for what, bits, known in (
        ("weights", width.weight, backend.weight_bits),
        ("activations", width.activation, backend.activation_bits),
    ):
        if bits not in known:
            return f"{backend.name} has no kernel for {what} of {bits} bits (from {known[0]} to {known[-1]})"
    return ""


def _both_vary(node: fx.Node, changing: set[fx.Node]) -> bool:
    return all(source in changing for source in sources(node))


def _rounded(node: fx.Node, forced: Iterable[fx.Node]) -> bool:
    """Whether the values of ``node`` are rounded anyway, for what makes them gives integers only."""
    origin = before_moves(node)
    return origin in forced or (kind(origin) == "limit" and any(n in forced for n in origin.all_input_nodes))


def _ask_for_roundings(placement: Placement, forced: set[fx.Node], widths: Mapping[fx.Node, Width]) -> None:
    integer = set(placement.integer)
    for node in placement.integer:
        bits = widths[node].activation if node in widths else _JOINED_BITS
        for source in sources(node):
            origin = before_moves(source)
            everyone = _rounded(origin, forced) or all(
                user in integer and at in sources(user) for user, at in readers(origin)
            )
            at = origin if everyone else source
            _ask(placement, at, bits, None if everyone else node)
            if node in widths:
                placement.inputs[node] = at
        if node in forced:
            _ask(placement, group_end(node), 0, None)
    for rounding in placement.roundings.values():
        rounding.bits = rounding.bits or _JOINED_BITS


def _ask(placement: Placement, at: fx.Node, bits: int, reader: fx.Node | None) -> None:
    known = never_negative(at)
    rounding = placement.roundings.get(at)
    if rounding is None:
        signed = None if known is None else not known
        only = None if reader is None else {reader}
        placement.roundings[at] = Rounding(at, bits, signed, only)
        return
    rounding.bits = max(rounding.bits, bits)
    if rounding.only is not None:
        rounding.only = None if reader is None else rounding.only | {reader}
