"""A gradient for what is switched off.

A rectifier that gives zero has no gradient: along it, no attack could switch a neuron on, which is all that burns
energy. Within :func:`live_rectifiers` the outputs are what they were, and the gradient of a neuron that is off falls
with its distance from being on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_effnn._torch import in_checkpoint

_RECTIFIERS = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6)
_RECTIFIED_AGAIN = (
    "a rectifier inside a gradient checkpoint is computed again in the backward pass, where it passes nothing if off; "
    "checkpoint while model.training alone: attacks run the model in eval mode"
)


class _Live(torch.autograd.Function):
    """The rectifier, with a gradient of 1 where it is on and of reach² / (reach² + x²) where it is off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: float, most: float | None) -> Tensor:
        """Return ``x`` rectified."""
        ctx.save_for_backward(x)
        ctx.reach = reach
        return x.clamp(0.0, most)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of ``x``."""
        (x,) = ctx.saved_tensors
        slope = x.clamp(max=0).div_(ctx.reach).square_().add_(1).reciprocal_()
        return slope.mul_(gradients[0]), None, None


_live = cast("Callable[[Tensor, float, float | None], Tensor]", _Live.apply)


class _Mode(TorchFunctionMode):
    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = reach

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _RECTIFIERS or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if in_checkpoint():
            raise ValueError(_RECTIFIED_AGAIN)
        x = args[0] if args else kwargs["input"]
        return _live(x, self.reach, 6.0 if func is F.relu6 else None)


@contextmanager
def live_rectifiers(reach: float = 0.5) -> Iterator[None]:
    """Let gradients through rectifiers that are off; what they give stays as it is.

    Args:
        reach: distance from zero at which half of the gradient passes, in the units of what goes into the rectifier.

    Raises:
        ValueError: a reach that is not above 0; from a rectifier inside a gradient checkpoint.

    Source: a straight-through gradient for attacks: Athalye et al. (2018), "Obfuscated Gradients", arXiv 1802.00420,
    section 4.1 (backward pass differentiable approximation).

    >>> x = torch.tensor([-0.5, 1.0], requires_grad=True)
    >>> with live_rectifiers(reach=0.5):
    ...     y = F.relu(x)
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([0.0, 1.0], [0.5, 1.0])
    """
    if not reach > 0:
        raise ValueError(f"reach is {reach!r}: use a number above 0")
    with _Mode(reach):
        yield
