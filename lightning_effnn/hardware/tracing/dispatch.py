"""The dispatch mode: sees every aten operation, lets it run unchanged, tells the recorder.

Whatever goes wrong in looking at an operation must not reach the user's training: an operation that a
handler cannot make sense of is counted as unknown, by the elements it reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, _dispatch_has_kernel_for_dispatch_key
from torch._C._autograd import _get_sequence_nr
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.operation import Phase
from lightning_effnn.hardware.tracing import (  # noqa: F401 (they register their handlers)
    handlers_attention,
    handlers_conv,
    handlers_mac,
    handlers_recurrent,
)
from lightning_effnn.hardware.tracing.handlers_vector import elements, handler_of
from lightning_effnn.hardware.tracing.modules import ModuleStack
from lightning_effnn.hardware.tracing.pieces import Call, Handler, Piece, Product, Vector
from lightning_effnn.hardware.tracing.recorder import Place, Recorder
from lightning_effnn.hardware.tracing.tables import FREE


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is known of an operation whatever its arguments."""

    name: str
    composite: bool  # made of others: look at those
    free: bool
    handler: Handler | None
    arguments: tuple[tuple[str, Any], ...]  # names and defaults
    writes: tuple[str, ...]  # arguments changed in place


class TraceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what runs while it is entered.

    Args:
        recorder: is told of each operation.
        modules: says where it runs.
    """

    supports_higher_order_operators = True

    def __init__(self, recorder: Recorder, modules: ModuleStack) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.modules = modules
        self.simulated = self.aside = 0
        self._paused = False
        self._origins: dict[int, str] = {}  # module of each autograd node, by its sequence number

    def tag(self, tensor: Tensor, number_format: NumberFormat) -> None:
        """Note how ``tensor`` is stored."""
        if not self.aside:
            self.recorder.tag(tensor, number_format)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let operations of our own pass unseen."""
        before, self._paused = self._paused, True
        try:
            with torch.no_grad():
                yield
        finally:
            self._paused = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` unchanged and record it."""
        kwargs = kwargs or {}
        if self._paused or self.aside:
            return func(*args, **kwargs)
        if any(hasattr(t, "__tensor_flatten__") for t in types):
            return NotImplemented  # it unwraps itself, then we see what is inside
        kind = _KINDS.get(func) or _learn(func)
        if kind.composite:
            with self:
                return func.decompose(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        if self.simulated:
            self._meet_node()
            result = func(*args, **kwargs)
            with suppress(Exception):
                self.recorder.pass_on(self._call(kind, args, kwargs, inputs, _tensors(result)))
            return result
        watched = not kind.free
        seen = place = None
        with suppress(Exception):  # a kind of tensor that has no storage, strides or values to look at
            seen, place = self.recorder.look(inputs, count=watched), self._place(inputs)
        result = func(*args, **kwargs)
        try:
            if seen is None or place is None:
                raise TypeError("the inputs could not be looked at")
            call = self._call(kind, args, kwargs, inputs, _tensors(result))
            touched = call.inputs or call.outputs  # a profiler's mark has no tensors
            self.recorder.record(call, seen, self._pieces(func, kind, call) if watched and touched else [], place)
        except Exception:
            if watched:
                self.recorder.miss(kind.name, str(func), inputs, self.modules.frame)
        return result

    def _pieces(self, func: Any, kind: _Kind, call: Call) -> list[Piece]:
        pieces: list[Piece] | None = None
        if kind.handler is not None:
            try:
                pieces = kind.handler(call)
            except Exception:  # a signature or a layout the handler was not written for
                pieces = None
        if pieces is None:
            self.recorder.note_unknown(str(func), elements(call.inputs) + elements(call.outputs))
            return [Vector("unknown", call.inputs, call.outputs)]
        if len(pieces) == 1 and not isinstance(pieces[0], Product):
            call.keeps_format = pieces[0].keeps_format
        return pieces

    def _call(
        self, kind: _Kind, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor], outputs: list[Tensor]
    ) -> Call:
        arguments = dict(kind.arguments)
        arguments.update(zip(arguments, args, strict=False))
        arguments.update(kwargs)
        written = _tensors([arguments[name] for name in kind.writes])
        batch = self.recorder.batch
        return Call(
            name=kind.name,
            arguments=arguments,
            inputs=inputs,
            outputs=outputs or written,
            written=written,
            tainted=self.recorder.book.tainted,
            batch_size=None if batch is None else batch.size,
            backward=_in_backward(),
        )

    def _meet_node(self) -> None:
        # autograd made this operation's node just before dispatching it: the first operation to
        # see a sequence number is the one that the node belongs to.
        if not _in_backward():
            self._origins.setdefault(_get_sequence_nr() - 1, self.modules.frame.name)

    def _place(self, inputs: list[Tensor]) -> Place:
        if _in_backward():
            return Place(self._origin(inputs), -1, "backward")
        self._meet_node()
        frame = self.modules.frame
        phase: Phase = "loss" if frame.loss else "forward"
        return Place(frame.name, frame.number, phase)

    def _origin(self, inputs: list[Tensor]) -> str:
        node = torch._C._current_autograd_node()
        name = self._origins.get(node._sequence_nr()) if node is not None else None
        if name is not None:
            return name
        records = [r for r in map(self.recorder.book.of, inputs) if r is not None]
        owner = next((r.parameter for r in records if r.parameter), None)
        if owner is not None:
            return owner.rpartition(".")[0]
        return next((r.module for r in records if r.module), "")


_KINDS: dict[Any, _Kind] = {}
_NO_WORK = ("prim", "fsdp", "c10d", "_c10d_functional", "c10d_functional")
"""Namespaces of what is none of an inference's work: bookkeeping, and weights sent between training processes."""


def _learn(func: Any) -> _Kind:
    schema = getattr(func, "_schema", None)
    if schema is None:  # a higher-order operator
        name = str(getattr(func, "name", lambda: func)())
        kind = _Kind(name, False, False, handler_of(func, name), (), ())
    else:
        namespace, _, name = schema.name.partition("::")
        name = name if name.startswith("__") else name.rstrip("_")
        composite = _dispatch_has_kernel_for_dispatch_key(func.name(), DispatchKey.CompositeImplicitAutograd)
        free = func.is_view or name in FREE or torch.Tag.inplace_view in func.tags or namespace in _NO_WORK
        known = name if namespace == "aten" else f"{namespace}::{name}"
        kind = _Kind(
            name=known,
            composite=composite,
            free=free,
            handler=handler_of(func, known),
            arguments=tuple((a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments),
            writes=tuple(a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write),
        )
    _KINDS[func] = kind
    return kind


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _tensors(value: Any) -> list[Tensor]:
    """Tensors in arguments or results, in their order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v)]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    return []
