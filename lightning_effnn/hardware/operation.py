"""One operation of a traced run: what was computed, on how much data, stored how.

An :class:`Operation` is the hand-over between the trace, which fills it, and the cost model, which
prices it. It knows nothing of torch dispatch and nothing of chips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from lightning_effnn.formats import FixedPoint, NumberFormat

MacKind = Literal["conv", "depthwise", "gemm"]
VectorKind = Literal[
    "elementwise",  # one or more simple operations an element, same shape in and out
    "norm",  # batch, layer, group, instance normalisation
    "softmax",
    "pool",
    "reduce",  # sum, mean, max, cumulative sums
    "gather",  # embedding, indexing: memory traffic
    "scatter",  # scatter, index_add: memory traffic and adds
    "sort",  # sort, topk, unique
    "move",  # copies, concatenation, padding, casts
    "unknown",  # counted by elements moved; lowers the coverage
]
Kind = Literal[MacKind, VectorKind]
Phase = Literal["forward", "backward", "loss"]

MAC_KINDS: tuple[str, ...] = get_args(MacKind)
VECTOR_KINDS: tuple[str, ...] = get_args(VectorKind)
DIMENSIONS = ("B", "G", "K", "C", "OY", "OX", "FY", "FX")
"""Loop extents in the order of the reference tables: batch, groups, output channels a group, input
channels a group, output rows and columns, filter rows and columns."""

_INT8 = FixedPoint(8)
_INT16 = FixedPoint(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of one inference (or training step).

    Multiply-accumulate kinds (``conv``, ``depthwise``, ``gemm``) are described by their eight loop
    extents; a product of ``[M, C]`` by ``[C, K]`` is ``B=M``. All other kinds are described by the
    elements they read and write and the simple operations they do.

    Attributes:
        name: qualified name of the module it ran in, ``""`` for the root.
        op: name of the aten operation, ``"convolution"``.
        kind: one of :data:`MAC_KINDS` or :data:`VECTOR_KINDS`.
        phase: ``"forward"``, ``"backward"`` or ``"loss"`` (run inside a loss or a metric).
        w_format, i_format, o_format: how weights (or the second factor), inputs and outputs are
            stored. Vector kinds use ``i_format`` and ``o_format``.
        accumulator_bits: width of a partial sum; ``None`` leaves it to the accelerator.
        w_density, i_density, o_density: share of non-zero elements, in [0, 1].
        w_constant: whether the second factor is a parameter, not an activation.
        elements_in, elements_out, operations: vector kinds only: elements read and written, and
            simple operations (an addition or a comparison each).
        fused: vector kinds only: its main input is the output of the operation before it, read by
            nobody else, so a chip applies it on the way out; ``elements_in`` then counts only the
            other inputs.
        possible_macs: unknown kinds only: multiply-accumulates that it could be, from the sizes of its operands.
        repeats: how often the operation runs with these extents; a mean where it differs between inferences.
    """

    name: str
    op: str
    kind: Kind
    phase: Phase = "forward"
    B: int = 1
    G: int = 1
    K: int = 1
    C: int = 1
    OY: int = 1
    OX: int = 1
    FY: int = 1
    FX: int = 1
    stride_y: int = 1
    stride_x: int = 1
    dilation_y: int = 1
    dilation_x: int = 1
    w_format: NumberFormat = _INT8
    i_format: NumberFormat = _INT8
    o_format: NumberFormat = _INT8
    accumulator_bits: int | None = None
    w_density: float = 1.0
    i_density: float = 1.0
    o_density: float = 1.0
    w_constant: bool = True
    elements_in: int = 0
    elements_out: int = 0
    operations: int = 0
    fused: bool = False
    possible_macs: int = 0
    repeats: float = 1

    @property
    def is_mac(self) -> bool:
        """Whether the operation is a multiply-accumulate."""
        return self.kind in MAC_KINDS

    @property
    def extents(self) -> tuple[int, ...]:
        """The loop extents in the order of :data:`DIMENSIONS`."""
        return (self.B, self.G, self.K, self.C, self.OY, self.OX, self.FY, self.FX)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, repeats included; 0 for vector kinds."""
        return round(math.prod(self.extents) * self.repeats) if self.is_mac else 0

    @property
    def effectual_macs(self) -> float:
        """Multiply-accumulates with two non-zero factors, zeros taken as independent."""
        return self.macs * self.w_density * self.i_density

    @property
    def weights(self) -> int:
        """Elements of the second factor; 0 for vector kinds."""
        return self.G * self.K * self.C * self.FY * self.FX if self.is_mac else 0

    @property
    def inputs(self) -> int:
        """Elements of the first factor, padding included; 0 for vector kinds."""
        if not self.is_mac:
            return 0
        rows = _span(self.OY, self.FY, self.stride_y, self.dilation_y)
        columns = _span(self.OX, self.FX, self.stride_x, self.dilation_x)
        return self.B * self.G * self.C * rows * columns

    @property
    def work(self) -> float:
        """What coverage is measured in: multiply-accumulates, or elements moved and operated on.

        Of an operation that isn't known it is what it could be: the multiply-accumulates of a product with operands
        of these sizes.
        """
        if self.is_mac:
            return self.macs
        return max(self.operations, self.elements_in + self.elements_out, self.possible_macs) * self.repeats


@dataclass(slots=True)
class UnknownOperation:
    """An operation whose cost is not known, in all its calls.

    Attributes:
        elements: how many it read and wrote.
        modules: names of the modules it ran in.
        reason: why its cost is not known.
    """

    elements: int = 0
    modules: set[str] = field(default_factory=set)
    reason: str = ""


def _span(outputs: int, taps: int, stride: int, dilation: int) -> int:
    """Distinct positions ``stride * o + dilation * f``."""
    common = math.gcd(stride, dilation)
    return outputs * taps - max(0, taps - stride // common) * (outputs - dilation // common)
