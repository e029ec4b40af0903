"""The dispatch mode: sees every aten operation, lets it run unchanged, tells the recorder.

Whatever goes wrong in looking at an operation must not reach the user's training: an operation that a
handler cannot make sense of is counted as unknown, by what it could be, and listed with the reason. Whoever
works on the handlers traces strictly: then the exception comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_effnn._torch import (
    DispatchMode,
    in_backward,
    is_composite,
    next_sequence_number,
    node_of_backward,
)
from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.operation import Phase, UnknownOperation
from lightning_effnn.hardware.tracing import (  # noqa: F401 (they register their handlers)
    handlers_attention,
    handlers_conv,
    handlers_linalg,
    handlers_mac,
    handlers_quantized,
    handlers_recurrent,
    tables,
)
from lightning_effnn.hardware.tracing.handlers_vector import elements, elementwise, handler_of, reduction, untagged
from lightning_effnn.hardware.tracing.memo import Met, signature
from lightning_effnn.hardware.tracing.modules import ModuleStack
from lightning_effnn.hardware.tracing.nested import has_nested, unnested
from lightning_effnn.hardware.tracing.pieces import Call, Handler, Piece, Product, Vector
from lightning_effnn.hardware.tracing.recorder import Recorder
from lightning_effnn.hardware.tracing.rules import has_rule, possible_macs, rule_for
from lightning_effnn.hardware.tracing.seen import Place, Seen


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """What is known of an operation whatever its arguments."""

    func: Any  # it lives as long as this does, so that nothing else gets its identity
    name: str
    composite: bool  # made of others: look at those
    free: bool
    view: bool
    handler: Handler | None
    arguments: tuple[tuple[str, Any], ...]  # names and defaults
    writes: tuple[str, ...]  # arguments changed in place
    results: tuple[str, ...]  # those that are only written
    elementwise: bool
    reduces: bool
    random: bool
    fills: bool
    recurs: bool  # whether what it leads to follows from its arguments, its inputs' layouts and what is known of them


STRICT = False
"""Whether every trace is strict; the tests of this package say so."""


class TraceMode(DispatchMode):
    """Records what runs while it is entered.

    Args:
        recorder: is told of each operation.
        modules: says where it runs.
        strict: let exceptions of handlers out.
    """

    supports_higher_order_operators = True

    def __init__(self, recorder: Recorder, modules: ModuleStack, strict: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.modules = modules
        self.strict = strict or STRICT
        self.simulated = self.aside = 0
        self.unknown: dict[str, UnknownOperation] = {}
        self.without_values = False
        self.unseen = 0
        self._here = Place("", 0, "forward")  # where the last operation ran that was not of a backward pass
        self._origins: dict[int, str] = {}  # module of each autograd node, by its sequence number
        self._node = -1  # the last one that was met

    def tag(self, tensor: Tensor, number_format: NumberFormat) -> None:
        """Note how ``tensor`` is stored."""
        if not self.aside:
            self.recorder.tag(tensor, number_format)

    def paused(self) -> _Paused:
        """Let operations of our own pass unseen."""
        return _Paused(self)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` unchanged and record it."""
        kwargs = kwargs or {}
        if self.unseen or self.aside:
            return func(*args, **kwargs)
        if types and any(hasattr(t, "__tensor_flatten__") for t in types):
            return NotImplemented  # it unwraps itself, then we see what is inside
        kind = _KINDS.get(id(func)) or _learn(func)
        if kind.composite and not has_rule(kind.name) and not any(isinstance(a, Tensor) and a.is_nested for a in args):
            with self:
                return func.decompose(*args, **kwargs)
        branches = _BRANCHES.get(kind.name)
        if branches is not None:
            with self:
                return branches(*args, **kwargs)
        backward = in_backward()
        if not backward:
            self._meet_node()
        inputs: list[Tensor] = []
        read = {name: value for name, value in kwargs.items() if name not in kind.results} if kwargs else kwargs
        arguments = signature(args, read, inputs)
        if kind.view and not self.simulated:
            result = func(*args, **kwargs)
            if inputs and self.recorder.holdings.follows(kind.name):
                call = self._call(kind, args, kwargs, inputs, result)
                self.recorder.holdings.view(kind.name, call.arguments, inputs[0], call.outputs)
            return result
        seen: Seen | None = None
        met: Met | None = None
        reason: Exception | None = None
        try:
            place = self._place(inputs, backward)
            if kind.recurs and not self.simulated:
                met = self.recorder.meet_again(kind, arguments, inputs, place)
            if met is None or met.step is None:
                seen = self.recorder.look(inputs, count=not kind.free and not self.simulated)
        except Exception as error:
            if self.strict:
                raise
            reason = error
        result = func(*args, **kwargs)
        try:
            if reason is not None:
                raise TypeError(f"its inputs could not be looked at ({reason})")
            if met is not None and met.step is not None:
                outputs: list[Tensor] = []
                if type(result) is Tensor:
                    outputs.append(result)
                else:
                    _collect(result, outputs)
                if self.recorder.repeat(met, met.step, inputs, outputs, place):
                    return result
            if seen is None:
                seen = self.recorder.look(inputs, count=not kind.free)
            self._note(func, kind, args, kwargs, inputs, met, seen, place, result)
        except Exception as error:
            if self.strict:
                raise
            if not kind.free:
                self._unknown(str(func), sum(t.numel() for t in inputs), error)
                self.recorder.miss(kind.name, str(func), inputs, self._place(inputs, backward))
        return result

    def _note(
        self,
        func: Any,
        kind: _Kind,
        args: Any,
        kwargs: Any,
        inputs: list[Tensor],
        met: Met | None,
        seen: Seen,
        place: Place,
        result: Any,
    ) -> None:
        call = self._call(kind, args, kwargs, inputs, result)
        if self.simulated:
            self.recorder.pass_on(call, seen)
            return
        touched = call.inputs or call.outputs  # a profiler's mark has no tensors
        if touched and not self.without_values:
            self.without_values = any(t.is_meta or hasattr(t, "fake_mode") for t in touched)
        pieces = self._pieces(func, kind, call, args, kwargs, result) if touched and not kind.free else []
        self.recorder.record(call, seen, pieces, place, met)

    def _pieces(self, func: Any, kind: _Kind, call: Call, args: Any, kwargs: Any, result: Any) -> list[Piece]:
        pieces, reason = None, None
        try:
            handler = None if has_rule(kind.name) else kind.handler
            if handler is not None:
                pieces = unnested(handler, call) if has_nested(call) else handler(call)
            rule = rule_for(func, kind.name) if pieces is None else None
            if rule is not None:
                pieces = rule(call, args, kwargs, result)
        except Exception as error:  # a signature or a layout the handler was not written for
            if self.strict:
                raise
            reason = error
        if pieces is None:
            self._unknown(str(func), elements(call.inputs) + elements(call.outputs), reason)
            return [Vector("unknown", call.inputs, call.outputs, possible_macs=possible_macs(call))]
        if len(pieces) == 1 and not isinstance(pieces[0], Product):
            call.keeps_format = pieces[0].keeps_format
        return pieces

    def _unknown(self, op: str, number: int, reason: Exception | None) -> None:
        entry = self.unknown.setdefault(op, UnknownOperation())
        entry.elements += number
        entry.modules.add(self.modules.frame.name)
        if not entry.reason:
            entry.reason = f"{type(reason).__name__}: {reason}" if reason else "no rule says what it costs"

    def _call(self, kind: _Kind, args: Any, kwargs: Any, inputs: list[Tensor], result: Any) -> Call:
        arguments = dict(kind.arguments)
        arguments.update(zip(arguments, args, strict=False))
        arguments.update(kwargs)
        written: list[Tensor] = []
        for name in kind.writes:
            _collect(arguments[name], written)
        outputs: list[Tensor] = []
        _collect(result, outputs)
        return Call(
            name=kind.name,
            arguments=arguments,
            inputs=inputs,
            outputs=outputs or written,
            written=written,
            varies=self.recorder.holdings.varies,
            backward=in_backward(),
            elementwise=kind.elementwise,
            reduces=kind.reduces,
            random=kind.random,
            fills=kind.fills,
        )

    def _meet_node(self) -> None:
        # autograd made this operation's node just before dispatching it: the first operation to
        # see a sequence number is the one that the node belongs to.
        node = next_sequence_number() - 1
        if node != self._node:
            self._node = node
            self._origins.setdefault(node, self.modules.frame.name)

    def _place(self, inputs: list[Tensor], backward: bool) -> Place:
        if backward:
            return Place(self._origin(inputs), -1, "backward")
        frame = self.modules.frame
        if self._here.frame != frame.number:
            phase: Phase = "loss" if frame.loss else "forward"
            self._here = Place(frame.name, frame.number, phase)
        return self._here

    def _origin(self, inputs: list[Tensor]) -> str:
        node = node_of_backward()
        name = self._origins.get(node) if node is not None else None
        if name is not None:
            return name
        records = [r for r in map(self.recorder.book.of, inputs) if r is not None]
        owner = next((r.parameter for r in records if r.parameter), None)
        if owner is not None:
            return owner.rpartition(".")[0]
        return next((r.module for r in records if r.module), "")


class _Paused:
    """Operations of our own pass a mode unseen, and make no gradients, while this is entered."""

    def __init__(self, mode: TraceMode) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        self._mode.unseen += 1
        self._grad = torch.is_grad_enabled()
        if self._grad:
            torch.set_grad_enabled(False)

    def __exit__(self, *error: object) -> None:
        self._mode.unseen -= 1
        if self._grad:
            torch.set_grad_enabled(True)


def _cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()) -> Any:
    return (true_fn if pred else false_fn)(*operands)


def _while(cond_fn: Callable[..., Any], body_fn: Callable[..., Any], carried: Any, additional: Any = ()) -> Any:
    while cond_fn(*carried, *additional):
        carried = body_fn(*carried, *additional)
    return carried


_BRANCHES: dict[str, Callable[..., Any]] = {"cond": _cond, "while_loop": _while}
"""Control flow: what runs inside is looked at, the branch that is taken."""
_KINDS: dict[int, _Kind] = {}  # by the identity of the operation, whose own hash is slow
_NO_WORK = ("prim", "fsdp", "c10d", "_c10d_functional", "c10d_functional")
"""Namespaces of what is none of an inference's work: bookkeeping, and weights sent between training processes."""


def _learn(func: Any) -> _Kind:
    schema = getattr(func, "_schema", None)
    if schema is None:  # a higher-order operator
        name = str(getattr(func, "name", lambda: func)())
        kind = _Kind(func, name, False, False, False, handler_of(func, name), (), (), (), *[False] * 5)
    else:
        namespace, _, name = schema.name.partition("::")
        name = name if name.startswith("__") else name.rstrip("_")
        known = name if namespace == "aten" else f"{namespace}::{name}"
        handler = handler_of(func, known)
        free = func.is_view or name in tables.FREE or torch.Tag.inplace_view in func.tags or namespace in _NO_WORK
        results = tuple(a.name for a in schema.arguments if a.is_out)
        plain = namespace == "aten" and not results and handler is not handlers_mac.grouped  # it reads how many rows
        kind = _Kind(
            func=func,
            name=known,
            composite=is_composite(func),
            free=free,
            view=func.is_view or torch.Tag.inplace_view in func.tags,  # the memory stays what it was
            handler=handler,
            arguments=tuple((a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments),
            writes=tuple(a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write),
            results=results,
            elementwise=handler in (elementwise, untagged),
            reduces=handler is reduction,
            random=known in tables.RANDOM,
            fills=known in tables.FACTORIES | tables.NEW | tables.LIKE and known not in tables.RANDOM,
            recurs=plain and (free or handler is not None),
        )
    _KINDS[id(func)] = kind
    return kind


def _collect(value: Any, found: list[Tensor]) -> None:
    """Tensors in arguments or results, in their order."""
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for part in value:
            _collect(part, found)
    elif isinstance(value, dict):
        for part in value.values():
            _collect(part, found)
