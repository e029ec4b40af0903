"""What was worked out for a tensor, kept as long as the tensor stays the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found")


class Remembered(Generic[Found]):
    """The last thing that was worked out, for whole graphs are the same tensors each epoch.

    Threads may ask about different tensors. Copies and pickles carry nothing: it can be worked out again.

    >>> import torch
    >>> sums, x = Remembered(), torch.ones(3)
    >>> sums.of(x, lambda: float(x.sum())), sums.of(x, lambda: "not called")
    (3.0, 3.0)
    >>> _ = x.add_(1)
    >>> sums.of(x, lambda: float(x.sum()))
    6.0
    """

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], int, Found] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin anew."""
        Remembered.__init__(self)

    def of(self, x: Tensor, find: Callable[[], Found]) -> Found:
        """Return what ``find`` gave for ``x``; calls it where ``x`` is another tensor than last time, or has changed.

        It runs without gradients.
        """
        if x.is_inference():  # nobody knows whether it has changed
            return find()
        last = self._last  # all in one, for another thread may be at work
        if last is None or last[0]() is not x or last[1] != x._version:
            with torch.inference_mode(False), torch.no_grad():  # what is found in a validation serves in training
                last = self._last = weakref.ref(x), x._version, find()
        return last[2]
