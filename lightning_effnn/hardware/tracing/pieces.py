"""What a handler says of one aten call: the products and the vector steps it consists of.

A handler takes a :class:`Call` and answers with pieces, in the order in which they run; ``[]`` means
the call costs nothing (a view), ``None`` that the handler cannot say (it is then counted as unknown).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.operation import MacKind, VectorKind


@dataclass(slots=True)
class Product:
    """Multiply-accumulates with the loop extents of :class:`~lightning_effnn.hardware.operation.Operation`.

    Attributes:
        weight, input, output: the tensors whose formats and densities the operands have; ``None`` is
            dense and of the output's dtype.
        axes: the dimensions that each extent is made of, as pairs of a tensor and its dimension: the
            batch, wherever it lies in them, is in that extent.
        windows: strides and dilations, by field name.
        w_format: how the second factor is stored, where its tensor only packs it.
    """

    kind: MacKind
    extents: dict[str, int]
    weight: Tensor | None = None
    input: Tensor | None = None
    output: Tensor | None = None
    axes: dict[str, list[tuple[Tensor, int]]] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    repeats: int = 1
    w_format: NumberFormat | None = None

    @property
    def writes(self) -> Sequence[Tensor]:
        """The tensors written."""
        return () if self.output is None else (self.output,)


@dataclass(slots=True)
class Vector:
    """Elements read and written, and the simple operations between.

    Attributes:
        reads: tensors read, the main one first. Their stored elements are what is read, unless
            ``elements_in`` says otherwise (a gather reads only what it takes).
        writes: tensors written; likewise ``elements_out``.
        also: tensors that are read whole beside ``elements_in`` (indices).
        fusable: whether a chip can apply it to the main input on its way out.
        keeps_format: whether what is written are values of what was read (a copy, a maximum).
        loss: whether it belongs to the loss whatever module it runs in.
        possible_macs: multiply-accumulates that an operation which isn't known could be.
    """

    kind: VectorKind
    reads: Sequence[Tensor]
    writes: Sequence[Tensor]
    operations: int = 0
    elements_in: int | None = None
    elements_out: int | None = None
    also: Sequence[Tensor] = ()
    fusable: bool = False
    keeps_format: bool = False
    loss: bool = False
    possible_macs: int = 0


Piece = Product | Vector


@dataclass(slots=True)
class Call:
    """One aten call with its arguments by name.

    Attributes:
        name: the operation's name without namespace and in-place underscore, ``"add"``.
        arguments: every argument of the schema, defaults filled in.
        inputs, outputs: all tensors among the arguments and results.
        written: the arguments changed in place.
        varies: says of a tensor whether it depends on the example batch, or may.
        backward: whether autograd's backward is running.
        keeps_format: whether the results have values of the inputs, so that a tag passes on.
        elementwise: whether inputs and results line up as in broadcasting.
        reduces: whether it sums over dimensions.
        fills: whether its results are values known beforehand, whatever it reads.
        random: whether its results are drawn anew each time.
    """

    name: str
    arguments: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    written: list[Tensor]
    varies: Callable[[Tensor], bool]
    backward: bool = False
    keeps_format: bool = False
    elementwise: bool = False
    reduces: bool = False
    random: bool = False
    fills: bool = False

    def get(self, *names: str) -> Any:
        """The first of these arguments that the schema has; ``None`` if it has none of them."""
        for name in names:
            if name in self.arguments:
                return self.arguments[name]
        return None

    def overwritten(self) -> list[Tensor]:
        """The arguments whose values it changes, those too that its schema doesn't say so of."""
        undeclared = [self.arguments.get(name) for name in UNDECLARED_WRITES]
        return [*self.written, *(tensor for tensor in undeclared if tensor is not None)]


UNDECLARED_WRITES = ("running_mean", "running_var")
"""Arguments that batch normalisation changes and does not say so."""
Handler = Callable[[Call], "list[Piece] | None"]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for the aten operations of these names."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register
