"""The straight-through gradient that every format's ``quantize`` has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_effnn._autograd import quick_apply
from lightning_effnn.formats._carrier import carried

if TYPE_CHECKING:
    from lightning_effnn.formats.base import NumberFormat


class _StraightThrough(torch.autograd.Function):
    """Round forward, copy the gradient backward where the format did not saturate.

    Rounding has a gradient of zero almost everywhere; taking that of the identity instead is the
    straight-through estimator of Bengio, Léonard and Courville (2013), arXiv 1308.3432. An autograd
    function, not ``x + (q - x).detach()``: the sum would round a second time and miss the level. It has
    no forward-mode rule: torch.compile refuses functions that have one.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, number_format: NumberFormat) -> Tensor:
        """Return the nearest levels in the dtype of ``x``."""
        return number_format._round(carried(x)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, NumberFormat], output: Tensor) -> None:
        """Keep ``x`` only: it is alive anyway as a rule, a mask would be new memory."""
        x, ctx.number_format = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on where the format did not saturate."""
        (x,), (gradient,) = ctx.saved_tensors, gradients
        inside = ctx.number_format._inside(carried(x))
        # where, not a product: an infinite gradient times zero would be NaN.
        return gradient if inside is None else torch.where(inside, gradient, 0.0), None


straight_through = quick_apply(_StraightThrough)
"""Levels of a tensor in a format, with the gradient described above."""
