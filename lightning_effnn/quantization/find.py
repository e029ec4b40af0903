"""Find the weights of a model by what multiplies in a run of it, whatever the classes of its modules."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lightning_effnn._shown import show_all
from lightning_effnn.quantization.lineage import Lineage, Source, Sources
from lightning_effnn.quantization.probe import as_in_inference
from lightning_effnn.quantization.products import RECURRENT, Factor, factors, tensors_in
from lightning_effnn.quantization.selection import Selection
from lightning_effnn.quantization.weights import WeightUse, note_use, uses_of


def find_weights_(model: nn.Module, *inputs: Any, **kwargs: Any) -> Selection:
    """Run ``model(*inputs, **kwargs)`` once, and know from then on which of its parameters are weights.

    A parameter is a weight if it is a factor of a product with something that depends on the batch: as it is, viewed,
    permuted, cast, sliced, concatenated, or scaled element by element (masks, weight norm, spectral norm), which
    leaves zeros zero. One that goes through anything else before (a standardisation, a sum with another matrix) is
    left alone: its zeros and levels would not reach the product. So class names don't matter: ``transformers``'
    ``Conv1D``, experts stacked in three axes, projections by ``einsum``.

    What was seen is kept on the modules; :func:`~lightning_effnn.quantization.weight_sites` and everything that is
    built on it goes by it. Parameters that took no part are known by their class as before. The run is in eval mode
    without gradients, and the model is left as it was.

    Args:
        model: any module, initialised.
        inputs, kwargs: an example batch; it needs no values that mean anything.

    Returns:
        What is taken and what is left out, with shares; it prints as text.

    Raises:
        RuntimeError: if an operation of the run could not be looked at.
        ValueError: if the model has uninitialised lazy modules.

    >>> import torch
    >>> class Experts(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up = nn.Parameter(torch.randn(4, 8, 16))
    ...     def forward(self, x):
    ...         return torch.einsum("end,edh->enh", x, self.up)
    >>> model = nn.Sequential(Experts(), nn.LayerNorm(16))
    >>> print(find_weights_(model, torch.randn(4, 2, 8)))
    1 weight, with 100.0 % of the multiply-accumulates and 94.1 % of the parameters
    left out: biases, norms and other vectors (5.9 % of the parameters)
    >>> from lightning_effnn.quantization import weight_sites
    >>> [(site.name, site.axis) for site in weight_sites(model)]
    [('0.up', 2)]
    """
    with as_in_inference(model), WeightFinder(model) as finder:
        model(*inputs, **kwargs)
    if finder.error is not None:
        raise RuntimeError(f"the run could not be followed: {type(finder.error).__name__}: {finder.error}")
    return Selection(model)


@dataclass(slots=True)
class _Tally:
    """What was seen of one parameter.

    Attributes:
        channels: of each of its axes that was an output's: in how many multiply-accumulates.
        changed: by which operation it was changed before, and in how many multiply-accumulates.
    """

    macs: int = 0
    unchanged: int = 0
    looked_up: bool = False
    channels: dict[int, int] = field(default_factory=dict)
    changed_by: str = ""
    takes_input: bool = False


class WeightFinder:
    """Watches a run, one of somebody else's training too: nothing is computed otherwise.

    Whatever goes wrong in looking ends the look, is kept in :attr:`error`, and never reaches the run. It may be used in
    a ``with`` statement, or opened and closed.

    Args:
        model: any part of it may run.

    Raises:
        ValueError: if the model has uninitialised lazy modules.
    """

    def __init__(self, model: nn.Module) -> None:
        Selection(model)  # refuses lazy modules
        self.model = model
        self.error: Exception | None = None
        self._stack: ExitStack | None = None
        self._watch: _Watch | None = None

    def __enter__(self) -> WeightFinder:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def open(self) -> None:
        """Watch what runs from here on in this thread; after :meth:`pause`, go on."""
        if self._stack is not None:
            return
        if self._watch is None:
            self._watch = _Watch(self.model)
        with ExitStack() as stack:
            show_all(stack)
            stack.callback(register_module_forward_pre_hook(self._watch.enter).remove)
            stack.callback(register_module_forward_hook(self._watch.leave, always_call=True).remove)
            stack.enter_context(self._watch)
            self._stack = stack.pop_all()

    def pause(self) -> None:
        """Watch nothing for a while; does nothing if none is watched."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def close(self) -> None:
        """End the look, and keep what was seen on the modules."""
        watch = self._watch
        self.abandon()
        if watch is not None:
            self.error = watch.error
            if watch.error is None:
                _note(self.model, watch)

    def abandon(self) -> None:
        """End the look and keep nothing; does nothing if none is open."""
        self.pause()
        self._watch = None


class _Watch(Lineage):  # type: ignore[no-untyped-call]
    """Notes the parameters among the factors of each product."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.tallies: dict[int, _Tally] = {}
        self.constant: dict[int, _Tally] = {}  # seen in products of constants only
        self._numbers = {id(p): p.numel() for p in model.parameters()}
        self._owners: dict[int, set[int]] = {}
        for module in model.modules():
            inner = [m for m in module.children() if isinstance(m, nn.ParameterList | nn.ParameterDict)]
            for owner in (module, *inner):  # lists are read by who holds them
                for parameter in owner._parameters.values():
                    if parameter is not None:
                        self._owners.setdefault(id(parameter), set()).add(id(module))
        self._thread = threading.get_ident()
        self._running: list[tuple[int, set[int]]] = []  # modules, and the memory of what went into them

    def multiplied(self, name: str, macs: int, args: tuple[Any, ...]) -> None:
        """Note a product."""
        if name in RECURRENT:
            self._recurrent(args)
            return
        first, second = factors(name, args)
        sources = [self.sources(factor.tensor) for factor in (first, second)]
        if None not in sources:
            for factor, source in zip((first, second), sources, strict=True):
                self._add(self.constant, factor, source or {}, macs, None)
        elif sources[1]:
            self._add(self.tallies, second, sources[1], macs, first.tensor)
        elif sources[0]:
            self._add(self.tallies, first, sources[0], macs, second.tensor)

    def looked_up(self, table: Tensor) -> None:
        """Note a table: what is looked up are rows, whose axis is the last."""
        self._add(self.tallies, Factor(table, table.dim() - 1), self.sources(table) or {}, 0, None)

    def copied(self, source: Tensor, result: Tensor) -> None:
        """What goes into a module goes there as a copy too."""
        if self._running and source.is_floating_point() and self.sources(source) is None:
            key, copy = self._key(source), self._key(result)
            for _, memory in self._running:
                if key in memory and copy is not None:
                    memory.add(copy)

    def enter(self, module: nn.Module, args: object) -> None:
        """Global pre-hook of modules."""
        if threading.get_ident() == self._thread and self.error is None:
            keys = (self._key(tensor) for tensor in tensors_in(args) if tensor.is_floating_point())
            self._running.append((id(module), {key for key in keys if key is not None}))

    def leave(self, module: nn.Module, args: object, result: object) -> None:
        """Global hook of modules."""
        if threading.get_ident() == self._thread and self._running:
            self._running.pop()

    def _recurrent(self, args: tuple[Any, ...]) -> None:
        steps = args[0].numel() // max(args[0].shape[-1], 1)
        for weight in list(tensors_in(args))[1:]:
            if weight.dim() == 2 and self.sources(weight):
                self._add(self.tallies, Factor(weight, 0), self.sources(weight) or {}, steps * weight.numel(), args[0])

    def _add(
        self, tallies: dict[int, _Tally], factor: Factor, sources: Sources, macs: int, other: Tensor | None
    ) -> None:
        whole = [source for source in sources.values() if not source.changed_by] or list(sources.values())
        elements = sum(self._numbers[source.parameter] for source in whole)
        for source in whole:
            tally = tallies.setdefault(source.parameter, _Tally())
            share = macs * self._numbers[source.parameter] // max(elements, 1)
            tally.macs += share
            if source.changed_by:
                tally.changed_by = tally.changed_by or source.changed_by
                continue
            tally.unchanged += share
            tally.looked_up = tally.looked_up or not macs
            tally.takes_input = tally.takes_input or (other is not None and self._goes_in(source, other))
            if factor.channel is not None:
                for axis in source.axes_along(factor.tensor, factor.channel):
                    tally.channels[axis] = tally.channels.get(axis, 0) + share

    def _goes_in(self, source: Source, other: Tensor) -> bool:
        owners, key = self._owners[source.parameter], self._key(other)
        return any(module in owners and key in memory for module, memory in self._running)


def _note(model: nn.Module, watch: _Watch) -> None:
    tallies = watch.tallies
    if not any(tally.macs for tally in tallies.values()):
        # Where the data is a constant of the model itself (a graph in a buffer), all products are of constants.
        tallies = watch.constant | tallies
    for module in model.modules():
        declared = uses_of(module)
        for name, parameter in module._parameters.items():
            tally = tallies.get(id(parameter))
            if parameter is None or tally is None:
                continue
            before = declared.get(name)
            if before is not None and before.declared:
                note_use(module, name, WeightUse(before.channel, tally.macs, declared=True))
                continue
            reason = ""
            if not tally.unchanged and not tally.looked_up:
                reason = f"goes through {tally.changed_by} before the product, which its zeros and levels do not reach"
            note_use(module, name, WeightUse(_channel(tally, parameter), tally.macs, reason, tally.takes_input))


def _channel(tally: _Tally, parameter: Tensor) -> int | None:
    """Of several axes of outputs (heads and their features) the longer one, of as long ones the last."""
    most = max(tally.channels.values(), default=0)
    axes = [axis for axis, macs in tally.channels.items() if 2 * macs >= most]
    return max(axes, key=lambda axis: (parameter.shape[axis], axis), default=None)
