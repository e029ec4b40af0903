"""Autograd functions, called quickly."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Positional(inspect.Signature):
    """The signature of a function that is called with all its arguments in order: nothing is left to be bound."""

    def bind(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return ``args`` as they are."""
        return _Bound(args, kwargs)


class _Bound(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply_defaults(self) -> None:
        """There are none."""


def quick_apply(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """Return ``function.apply`` of a function with a ``setup_context``.

    At each call torch works out the signature of ``forward`` and binds the arguments to it, which takes longer than to
    round a small tensor. Call what is returned with all arguments in order.

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
    forward.__signature__ = _Positional(tuple(inspect.signature(forward).parameters.values()))
    apply: Callable[..., Tensor] = function.apply
    return apply
