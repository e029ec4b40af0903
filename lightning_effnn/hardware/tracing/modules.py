"""Which module is running: a stack kept by torch's global forward hooks.

Nothing is hooked on the user's modules, and a module that is not called through ``__call__`` (the
``training_step`` of a LightningModule) needs no special care: its children carry names from
``named_modules()`` whoever calls them. Only calls in the thread that traces are followed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

_COMPILED = "_orig_mod"  # where torch.compile keeps the user's module


@dataclass(frozen=True, slots=True)
class Frame:
    """One running call of a module: its name, whether it is (inside) a loss or metric, and its number."""

    name: str = ""
    loss: bool = False
    number: int = 0


class ModuleStack:
    """Follows module calls while it is entered.

    Args:
        model: the module whose names count; it is the root, ``""``.
        on_enter: called with each module and its arguments before it runs.
        on_leave: called with the frame, the module, its arguments and its result after it ran.
    """

    def __init__(
        self,
        model: nn.Module,
        on_enter: Callable[[nn.Module, Any], None],
        on_leave: Callable[[Frame, nn.Module, Any, Any], None],
    ) -> None:
        self._names = {id(m): clean_name(name) for name, m in model.named_modules()}
        self._on_enter, self._on_leave = on_enter, on_leave
        self._stack: list[Frame] = [Frame()]
        self._calls = 0
        self._thread = threading.get_ident()

    @property
    def frame(self) -> Frame:
        """The innermost call that is running."""
        return self._stack[-1]

    def enter(self, stack: ExitStack) -> None:
        """Put the hooks in; ``stack`` takes them out."""
        stack.callback(torch_module.register_module_forward_pre_hook(self._before).remove)
        after = torch_module.register_module_forward_hook(self._after, always_call=True)
        stack.callback(after.remove)

    def _before(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return  # torch's global hooks hear every thread
        parent = self.frame
        name = self._names.get(id(module))
        if name is None:  # made on the fly
            name = f"{parent.name}.{type(module).__name__}".lstrip(".")
        self._calls += 1
        self._stack.append(Frame(name, parent.loss or is_loss(module), self._calls))
        self._on_enter(module, args)

    def _after(self, module: nn.Module, args: Any, result: Any) -> None:
        if threading.get_ident() == self._thread and len(self._stack) > 1:
            frame = self._stack.pop()
            self._on_leave(frame, module, args, result)


def clean_name(name: str) -> str:
    """``name`` without torch.compile's wrapper, so that compiled and eager models compare.

    >>> clean_name("net._orig_mod.conv1")
    'net.conv1'
    """
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def is_loss(module: nn.Module) -> bool:
    """Whether ``module`` is a torch loss or a torchmetrics metric (told by name, without importing it)."""
    kind: type = type(module)
    return _is_loss(kind)


@lru_cache(maxsize=256)
def _is_loss(kind: type) -> bool:
    return any(
        (c.__name__ == "_Loss" and c.__module__ == "torch.nn.modules.loss")
        or (c.__name__ == "Metric" and c.__module__.startswith("torchmetrics"))
        for c in kind.__mro__
    )
