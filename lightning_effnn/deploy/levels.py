"""Which bytes the quantisers of a graph give, limits before them taken into account."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import fx, nn

from lightning_effnn.deploy.operations import highest, kind
from lightning_effnn.quantization import TensorQuantizer
from lightning_effnn.quantization.rounding import grid_of

ZERO_POINT = 128
"""Of signed values in unsigned bytes: the same levels as int8."""


class Bytes(NamedTuple):
    """The bytes that a quantiser gives.

    Attributes:
        zero: which stands for zero.
        low, high: the lowest and the highest.
    """

    zero: int
    low: int
    high: int


def quantizer_at(node: fx.Node, network: nn.Module) -> TensorQuantizer | None:
    """Return the quantiser of activations that ``node`` calls, if it calls one."""
    found = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, TensorQuantizer) else None


def bytes_of(quantizer: TensorQuantizer, node: fx.Node) -> Bytes:
    """Return the bytes that ``quantizer``, called at ``node``, gives; a limit right before it ends them early."""
    grid = grid_of(quantizer.bits, bool(quantizer.is_signed))
    zero = ZERO_POINT if grid.low < 0 else 0
    before: Any = node.args[0]
    top = highest(before) if kind(before) == "limit" else None
    high = grid.high
    if top is not None and not math.isinf(top):
        high = min(high, round(top / float(quantizer.step().detach())))  # half to even
    return Bytes(zero, grid.low + zero, high + zero)


def is_cut_by_rounding(limit: fx.Node, network: nn.Module) -> bool:
    """Whether all that reads a limit is a quantiser without negative levels, which cuts off in its place."""
    (user, *others) = limit.users
    quantizer = None if others else quantizer_at(user, network)
    return quantizer is not None and not bool(quantizer.is_signed)
