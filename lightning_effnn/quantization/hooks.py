"""The forward hooks through which quantisers see a model, and the bookkeeping that puts everything back.

A weight is quantised by a plain write into the ``_parameters`` of its module before the module runs, and taken back
after. Between calls the model is what it was: the same parameters under the same names, for optimisers, state dicts,
copies and averages. Hooks are bound methods of plain objects, so that ``deepcopy`` and ``pickle`` carry them along.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class WeightSwap:
    """One weight of one module, replaced by its levels while any of its hosts runs.

    Calls are told apart by their Python frames. So calls may nest, one that Ctrl-C ended without its hook being run is
    noticed by the next, and a hook that runs without its counterpart does nothing. ``torch.compile`` sees no frames:
    calls that it traces have ``None`` for one, and are taken to end as they should.

    Args:
        site: name of the weight's site.
        owner: module that owns the weight.
        parameter_name: its name in ``owner``.
        quantizer: maps the parameter to its levels.
    """

    def __init__(self, site: str, owner: nn.Module, parameter_name: str, quantizer: nn.Module) -> None:
        self.site, self.owner, self.parameter_name, self.quantizer = site, owner, parameter_name, quantizer
        self._calls: list[FrameType | None] = []
        self._saved: Tensor | None = None

    @property
    def parameter(self) -> Tensor:
        """The parameter itself, while it is replaced too."""
        return self.present if self._saved is None else self._saved

    @property
    def present(self) -> Tensor:
        """What the module computes with now: the parameter or its levels."""
        weight = self.owner._parameters[self.parameter_name]
        assert weight is not None
        return weight

    def enter(self, call: FrameType | None) -> None:
        """Replace the weight, unless a call that still runs has done so."""
        while call is not None and self._calls and not _is_running(self._calls[-1]):
            self._calls.pop()
        if not self._calls:
            self.restore()
            parameter = self.parameter
            self._write(self.quantizer(parameter))
            self._saved = parameter
        self._calls.append(call)

    def leave(self, call: FrameType | None) -> None:
        """Put the parameter back once the outermost call is over."""
        if self._calls and (self._calls[-1] is call or self._calls[-1] is None):
            self._calls.pop()
            if not self._calls:
                self.restore()

    def restore(self) -> None:
        """Put the parameter back, whoever may be running."""
        self._calls.clear()
        if self._saved is not None:
            self._write(self._saved)
            self._saved = None

    def _write(self, weight: Tensor) -> None:
        self.owner._parameters[self.parameter_name] = weight  # type: ignore[assignment]
        if isinstance(self.owner, nn.RNNBase):  # it computes with a list of its own, and looks whether that is stale
            place = self.owner._flat_weights_names.index(self.parameter_name)
            self.owner._flat_weights[place] = weight
            self.owner._flat_weight_refs[place] = weakref.ref(weight)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_calls": [], "_saved": None}


class Host:
    """The hooks of one module: its input is quantised, its weights are replaced while it runs.

    Args:
        name: name of the module's activation site.
        arguments: names of the first arguments of its ``forward``, those that are quantised.
    """

    def __init__(self, name: str, arguments: tuple[str, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.quantizer: nn.Module | None = None
        self.swaps: list[WeightSwap] = []
        self.observing: bool | None = None  # as the module: while it is in train mode
        self.passing = False  # the input goes in as it is

    def attach(self, module: nn.Module) -> None:
        """Put the hooks on ``module``."""
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        if self.swaps:
            module.register_forward_hook(self.after, always_call=True)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook: quantise what goes in and what it is multiplied with."""
        training = module.training if self.observing is None else self.observing
        call = _call_of_module() if self.swaps else None
        for swap in self.swaps:
            _set_mode(swap.quantizer, training)
            swap.enter(call)
        if self.quantizer is None or self.passing:
            return args, kwargs
        _set_mode(self.quantizer, training)
        done: list[tuple[Tensor, Tensor]] = []  # self-attention asks whether its three inputs are one
        count = len(self.arguments)
        args = (*(self._levels(x, done) for x in args[:count]), *args[count:])
        return args, {k: self._levels(x, done) if k in self.arguments else x for k, x in kwargs.items()}

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook, called after an exception too: put the parameters back."""
        call = _call_of_module()
        for swap in self.swaps:
            swap.leave(call)

    def _levels(self, x: Any, done: list[tuple[Tensor, Tensor]]) -> Any:
        assert self.quantizer is not None
        if isinstance(x, PackedSequence):
            return PackedSequence(self._levels(x.data, done), x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.layout is torch.strided and not x.is_nested):
            return x
        for before, levels in done:
            if before is x:
                return levels
        levels = self.quantizer(x)
        done.append((x, levels))
        return levels


def hosts_of(model: nn.Module) -> Iterator[tuple[nn.Module, Host]]:
    """Yield the modules of ``model`` that have hooks of this package, and whose they are."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            host = getattr(hook, "__self__", None)
            if isinstance(host, Host):
                yield module, host


def remove_hooks(module: nn.Module) -> None:
    """Take the hooks of this package off ``module``; handles would not survive a copy."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), Host):
                del hooks[key]
                for options in (
                    module._forward_pre_hooks_with_kwargs,
                    module._forward_hooks_with_kwargs,
                    module._forward_hooks_always_called,
                ):
                    options.pop(key, None)


def _set_mode(quantizer: nn.Module, training: bool) -> None:
    if quantizer.training != training:
        quantizer.train(training)


def _call_of_module() -> FrameType | None:
    """The frame of the module call that a hook is run by; ``None`` in what ``torch.compile`` traces."""
    if torch.compiler.is_compiling():
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_call_impl":
        frame = frame.f_back
    return frame


def _is_running(call: FrameType | None) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is not None
