"""What would hide operations from a look at them: compiled models and fused layers, switched off for a while."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack

import torch


class _Shown:
    """What would hide operations, switched off for all threads while any trace is open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._stack = ExitStack()

    def enter(self) -> None:
        """Switch it off, if this is the first trace."""
        with self._lock:
            self._open += 1
            if self._open > 1:
                return
            if torch.backends.mha.get_fastpath_enabled():
                torch.backends.mha.set_fastpath_enabled(False)
                self._stack.callback(torch.backends.mha.set_fastpath_enabled, True)
            # A model cannot be compiled without dynamo imported, and importing it takes a second.
            if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
                self._stack.enter_context(torch.compiler.set_stance("force_eager"))

    def leave(self) -> None:
        """Switch it on again, if this was the last."""
        with self._lock:
            self._open -= 1
            if not self._open:
                self._stack.close()


_SHOWN = _Shown()


def show_all(stack: ExitStack) -> None:
    """Switch off what would hide operations until ``stack`` is closed."""
    _SHOWN.enter()
    stack.callback(_SHOWN.leave)
