"""Telling whoever watches a run how a tensor is stored.

A trace of the hardware listens (:mod:`lightning_effnn.hardware.trace`); quantisers speak. They meet here, so that
a quantiser needs nothing but the formats. Without a listener nothing happens.

A listener is a dispatch mode of torch, and it hears what is said in the thread that opened it (and in the threads
that run that thread's backward pass), for that is where torch keeps its modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from lightning_effnn._torch import modes
from lightning_effnn.formats.base import NumberFormat


class Listener(Protocol):
    """A dispatch mode that understands what quantisers say.

    Attributes:
        simulated: how many :func:`simulated` blocks are open; above 0 nothing that runs is recorded.
        aside: how many :func:`aside` blocks are open; above 0 nothing that runs needs to be looked at.
    """

    simulated: int
    aside: int

    def tag(self, tensor: Tensor, number_format: NumberFormat) -> None:
        """Note that ``tensor`` is stored in ``number_format``."""


def listeners() -> list[Listener]:
    """Return the listeners that are open in this thread, the outermost first.

    >>> listeners()
    []
    """
    if torch.compiler.is_compiling():
        return []  # compiled code runs eagerly while a trace is open
    return [mode for mode in modes() if hasattr(mode, "simulated")]


def tag(tensor: Tensor, number_format: NumberFormat) -> Tensor:
    """Declare how the values of ``tensor`` are stored, and return it; nothing happens when no trace is open.

    The tag belongs to the memory: views carry it, copies and gathers hand it on, writing in place ends it.

    Args:
        tensor: any tensor, a parameter too.
        number_format: how its values are stored.

    Example:
        >>> import torch
        >>> from lightning_effnn.formats import FixedPoint
        >>> tag(torch.ones(2), FixedPoint(8))
        tensor([1., 1.])
    """
    for listener in listeners():
        listener.tag(tensor, number_format)
    return tensor


@contextmanager
def simulated() -> Iterator[None]:
    """Mark operations that only simulate what the chip does by itself (rounding to a grid).

    A trace does not record them; what they compute counts as written by whoever wrote their input.

    Example:
        >>> import torch
        >>> with simulated():
        ...     grid = torch.tensor([0.4, 1.6]).round()
        >>> grid
        tensor([0., 2.])
    """
    present = listeners()
    for listener in present:
        listener.simulated += 1
    try:
        yield
    finally:
        for listener in present:
            listener.simulated -= 1


@contextmanager
def aside() -> Iterator[None]:
    """Mark operations beside the model's own run, whose results only a loss reads: a teacher, an attack.

    A trace that is open does not look at them, so they take as long as without it.

    Example:
        >>> import torch
        >>> with aside():
        ...     penalty = torch.nn.Linear(2, 1)(torch.zeros(1, 2)).abs().mean()
    """
    present = listeners()
    for listener in present:
        listener.aside += 1
    try:
        yield
    finally:
        for listener in present:
            listener.aside -= 1
