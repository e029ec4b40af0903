"""Autograd functions, called quickly."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def quick_apply(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """Return ``function.apply`` of a function with a ``setup_context``.

    At each call torch asks for the signature of ``forward``; to work it out takes longer than to round a small tensor.

    >>> class Twice(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(x: Tensor) -> Tensor:
    ...         return 2 * x
    ...
    ...     @staticmethod
    ...     def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None: ...
    >>> quick_apply(Twice)(torch.ones(2))
    tensor([2., 2.])
    """
    forward: Any = function.forward
    forward.__signature__ = inspect.signature(forward)
    apply: Callable[..., Tensor] = function.apply
    return apply
