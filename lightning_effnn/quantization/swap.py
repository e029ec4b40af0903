"""Weights that are read as their levels by the thread that runs their module, and by nobody else.

The parameters stay where they are, under their names, whoever runs the model: for optimisers, state dicts, copies
and averages, and for other threads.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn._threads import Lock

_PATIENCE = 1.0
"""Seconds that a thread waits for a recurrent module before it looks whether the one that has it still runs."""


class Parameters(dict[str, Any]):
    """The parameters of a module; a thread that runs the module reads levels in the place of some.

    ``module.weight`` is looked up by ``[]``. What lists, saves, copies, moves or optimises parameters goes past that
    and sees the parameters themselves.

    Attributes:
        levels: by thread and name.
        traced: by name, in what ``torch.compile`` traces, which sees no threads.

    >>> parameters = Parameters(weight=1.0)
    >>> parameters.levels[threading.get_ident(), "weight"] = 0.5
    >>> parameters["weight"], dict(parameters)
    (0.5, {'weight': 1.0})
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.levels: dict[tuple[int, str], Tensor] = {}
        self.traced: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Any:
        """Return what the thread computes with."""
        if torch.compiler.is_dynamo_compiling():
            return self.traced[name] if name in self.traced else super().__getitem__(name)
        if self.levels:
            levels = self.levels.get((threading.get_ident(), name))
            if levels is not None:
                return levels
        return super().__getitem__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Parameters, (), None, None, iter(self.items())


class WeightSwap:
    """One weight of one module, which reads as its levels while any of its hosts runs, in the thread that it runs in.

    Calls are told apart by their Python frames. So calls may nest, one that Ctrl-C ended without its hook being run is
    noticed by the next, and a hook that runs without its counterpart does nothing. ``torch.compile`` sees neither
    frames nor threads, and carries out what it has traced by writing whole dictionaries anew: it has one of its own.

    Args:
        site: name of the weight's site.
        owner: module that owns the weight.
        parameter_name: its name in ``owner``.
        quantizer: maps the parameter to its levels.
        lock: held while anything that is attached to the model quantises.
    """

    def __init__(self, site: str, owner: nn.Module, parameter_name: str, quantizer: nn.Module, lock: Lock) -> None:
        self.site, self.owner, self.parameter_name, self.quantizer = site, owner, parameter_name, quantizer
        self.lock = lock
        if not isinstance(owner._parameters, Parameters):
            owner.__dict__["_parameters"] = Parameters(owner._parameters)
        self._turn = Turn(owner, parameter_name) if isinstance(owner, nn.RNNBase) else None
        self._calls: dict[int, list[FrameType]] = {}  # by thread
        self._traced = 0  # calls that torch.compile is in

    @property
    def parameter(self) -> Tensor:
        """The parameter itself, while it reads as its levels too."""
        weight = self.owner._parameters.get(self.parameter_name)
        assert weight is not None
        return weight

    @property
    def present(self) -> Tensor:
        """What this thread computes with now: the parameter or its levels."""
        weight = self.owner._parameters[self.parameter_name]
        assert weight is not None
        return weight

    def enter(self, call: FrameType | None, training: bool) -> None:
        """Let the weight read as its levels, unless a call that still runs has done so.

        Args:
            call: see :func:`call_of_module`.
            training: the mode that the quantiser is in.
        """
        if call is None:
            if not self._traced:
                self._trace(quantised(self.quantizer, self.parameter, training, self.lock))
            self._traced += 1
            return
        thread = threading.get_ident()
        calls = self._calls.get(thread, [])
        while calls and not _is_running(calls[-1], sys._getframe()):
            calls.pop()
        if not calls:
            self._hide(thread)
            levels = quantised(self.quantizer, self.parameter, training, self.lock)
            self._show(thread, call, levels)
            calls = self._calls[thread] = []
        calls.append(call)

    def leave(self, call: FrameType | None) -> None:
        """Let the parameter read as itself once the outermost call is over."""
        if call is None:
            self._traced -= 1
            if not self._traced:
                self._trace(None)
            return
        thread = threading.get_ident()
        calls = self._calls.get(thread, [])
        if calls and calls[-1] is call:
            calls.pop()
            if not calls:
                self._hide(thread)

    def remove(self) -> None:
        """End this, whoever may be running: the module is what it was."""
        for thread in list(self._calls):
            self._hide(thread)
        if isinstance(self.owner, nn.RNNBase):
            self.owner._flat_weights = list(self.owner._flat_weights)
        parameters = self.owner._parameters
        if isinstance(parameters, Parameters) and not parameters.levels:
            self.owner.__dict__["_parameters"] = dict(parameters)

    def _trace(self, levels: Tensor | None) -> None:
        traced = self.owner._parameters.traced  # type: ignore[attr-defined]
        if levels is None:
            del traced[self.parameter_name]
        else:
            traced[self.parameter_name] = levels
        if isinstance(self.owner, nn.RNNBase):
            _write_flat(self.owner, self.parameter_name, self.parameter if levels is None else levels)

    def _show(self, thread: int, call: FrameType, levels: Tensor) -> None:
        if self._turn is not None:
            self._turn.take(call, levels)
        self.owner._parameters.levels[thread, self.parameter_name] = levels  # type: ignore[attr-defined]

    def _hide(self, thread: int) -> None:
        self._calls.pop(thread, None)
        parameters = self.owner._parameters
        if isinstance(parameters, Parameters):
            parameters.levels.pop((thread, self.parameter_name), None)
        if self._turn is not None:
            self._turn.give(thread, self.parameter)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_calls": {}, "_traced": 0}


class Turn:
    """Whose turn it is to run a recurrent module: it computes with one list of weights, whoever runs it.

    A call that Ctrl-C ended gives its turn back without knowing.

    Args:
        owner: the module.
        parameter_name: of the weight that is replaced in its list.
    """

    def __init__(self, owner: nn.RNNBase, parameter_name: str) -> None:
        self.owner, self.parameter_name = owner, parameter_name
        self._free, self._change = threading.Lock(), threading.Lock()
        self._holder: tuple[int, FrameType] | None = None

    def take(self, call: FrameType, levels: Tensor) -> None:
        """Wait until nobody runs the module, and have it compute with ``levels`` in this thread's ``call``."""
        while not self._free.acquire(timeout=_PATIENCE):
            with self._change:
                holder = self._holder
                if holder is not None and not _is_running(holder[1], sys._current_frames().get(holder[0])):
                    self._holder = None
                    self._free.release()
        if not isinstance(self.owner._flat_weights, _FlatWeights):
            self.owner._flat_weights = _FlatWeights(self.owner)
        _write_flat(self.owner, self.parameter_name, levels, looked_at=False)
        self._holder = threading.get_ident(), call

    def give(self, thread: int, parameter: Tensor) -> None:
        """End the turn of ``thread``, if it has one: the module computes with ``parameter`` again."""
        with self._change:
            if self._holder is not None and self._holder[0] == thread:
                _write_flat(self.owner, self.parameter_name, parameter)
                self._holder = None
                self._free.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Turn, (self.owner, self.parameter_name)


class _FlatWeights(list[Tensor | None]):
    """A recurrent module's list of weights; copies and pickles hold the parameters, whatever is computed with now."""

    def __init__(self, owner: nn.RNNBase) -> None:
        super().__init__(owner._flat_weights)
        self._parameters, self._names = owner._parameters, owner._flat_weights_names

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return list, ([self._parameters.get(name) for name in self._names],)


def quantised(quantizer: nn.Module, x: Tensor, training: bool, lock: Lock) -> Tensor:
    """Return ``x`` in the levels of ``quantizer``, which is in the mode that is asked for: one thread at a time."""
    if torch.compiler.is_dynamo_compiling():  # which can't see locks
        return _in_mode(quantizer, training)(x)
    with lock:
        return _in_mode(quantizer, training)(x)


def _in_mode(quantizer: nn.Module, training: bool) -> Callable[[Tensor], Tensor]:
    return quantizer if quantizer.training == training else quantizer.train(training)


def _write_flat(owner: nn.RNNBase, parameter_name: str, weight: Tensor, looked_at: bool = True) -> None:
    place = owner._flat_weights_names.index(parameter_name)
    owner._flat_weights[place] = weight
    # By these the module tells whether its list is stale, also when another thread saves it; None isn't looked at.
    owner._flat_weight_refs[place] = weakref.ref(weight) if looked_at else None  # type: ignore[arg-type]


def call_of_module() -> FrameType | None:
    """The frame of the module call that a hook is run by; ``None`` in what ``torch.compile`` traces."""
    if torch.compiler.is_dynamo_compiling():
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_call_impl":
        frame = frame.f_back
    assert frame is not None
    return frame


def _is_running(call: FrameType, innermost: FrameType | None) -> bool:
    frame = innermost
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is not None
