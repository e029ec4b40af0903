"""The forward hooks through which quantisers see a model, and the bookkeeping that puts everything back.

Weights are swapped for their levels while a module runs (:mod:`lightning_effnn.quantization.swap`), inputs are
quantised on their way in. Hooks are bound methods of plain objects, so that ``deepcopy`` and ``pickle`` carry them
along.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_effnn._threads import Lock
from lightning_effnn.quantization.swap import WeightSwap, call_of_module, quantised


class Setting(NamedTuple):
    """How one thread wants a host to run, for a while.

    Attributes:
        observing: whether observed scales learn; ``None``: while the module is in train mode.
        passing: whether the input goes in as it is.
    """

    observing: bool | None = None
    passing: bool = False


_PLAIN = Setting()


class Host:
    """The hooks of one module: its input is quantised, its weights are replaced while it runs.

    Args:
        name: name of the module's activation site.
        lock: held while anything that is attached to the model quantises.
        arguments: names of the first arguments of its ``forward``, those that are quantised.

    Attributes:
        settings: of the threads that have one, by thread.
    """

    def __init__(self, name: str, lock: Lock, arguments: tuple[str, ...] = ()) -> None:
        self.name, self.lock, self.arguments = name, lock, arguments
        self.quantizer: nn.Module | None = None
        self.swaps: list[WeightSwap] = []
        self.settings: dict[int, Setting] = {}

    def attach(self, module: nn.Module) -> None:
        """Put the hooks on ``module``."""
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        if self.swaps:
            module.register_forward_hook(self.after, always_call=True)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook: quantise what goes in and what it is multiplied with.

        Raises:
            RuntimeError: in a replica that ``DataParallel`` has made, whose weights are out of reach.
        """
        if "_is_replica" in module.__dict__:
            raise RuntimeError(
                f"{self.name or type(module).__name__} has quantisers attached and runs in DataParallel, whose replicas"
                " would share one state: use DistributedDataParallel, or bake_ the model first"
            )
        setting = self._setting()
        training = module.training if setting.observing is None else setting.observing
        call = call_of_module() if self.swaps else None
        for swap in self.swaps:
            swap.enter(call, training)
        if self.quantizer is None or setting.passing:
            return args, kwargs
        done: list[tuple[Tensor, Tensor]] = []  # self-attention asks whether its three inputs are one
        count = len(self.arguments)
        args = (*(self._levels(x, training, done) for x in args[:count]), *args[count:])
        return args, {k: self._levels(x, training, done) if k in self.arguments else x for k, x in kwargs.items()}

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook, called after an exception too: put the parameters back."""
        call = call_of_module()
        for swap in self.swaps:
            swap.leave(call)

    def _setting(self) -> Setting:
        if not self.settings:
            return _PLAIN
        if torch.compiler.is_dynamo_compiling():  # which sees no threads
            return next(iter(self.settings.values()))
        return self.settings.get(threading.get_ident(), _PLAIN)

    def _levels(self, x: Any, training: bool, done: list[tuple[Tensor, Tensor]]) -> Any:
        assert self.quantizer is not None
        if isinstance(x, PackedSequence):
            levels = self._levels(x.data, training, done)
            return PackedSequence(levels, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.layout is torch.strided and not x.is_nested):
            return x
        for before, levels in done:
            if before is x:
                return levels
        levels = quantised(self.quantizer, x, training, self.lock)
        done.append((x, levels))
        return levels

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"settings": {}}


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
