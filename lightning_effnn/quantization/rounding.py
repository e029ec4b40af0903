"""The levels of a quantiser, and rounding to them with a gradient for the scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lightning_effnn.formats import Binary, FixedPoint, NumberFormat
from lightning_effnn.formats.tagging import simulated


class Grid(NamedTuple):
    """The levels before scaling: all integers from ``low`` to ``high``, or -1 and 1 alone.

    Attributes:
        bits: what one takes.
        low, high: the smallest and the largest.
        binary: whether they are -1 and 1 alone.
    """

    bits: int
    low: int
    high: int
    binary: bool

    def number_format(self, scale: float) -> NumberFormat:
        """Return the format with these levels times ``scale``."""
        return Binary(scale) if self.binary else FixedPoint(self.bits, scale=scale, signed=self.low < 0)


def grid_of(bits: int, signed: bool) -> Grid:
    """Return the levels of ``bits``: one signed bit is -1 and 1, everything else fixed point.

    >>> grid_of(4, True)
    Grid(bits=4, low=-8, high=7, binary=False)
    >>> grid_of(1, True).binary, grid_of(1, False)
    (True, Grid(bits=1, low=0, high=1, binary=False))
    """
    if bits == 1 and signed:
        return Grid(1, -1, 1, True)
    return Grid(bits, *FixedPoint(bits, signed=signed).integer_range, False)


class _Rounding(torch.autograd.Function):
    """Levels forward; backward straight through to ``x`` inside the range, and the slope of LSQ to the scale.

    The slope of the levels with respect to the scale is round(v) - v for v = x / scale inside the range, and the
    level it saturates at outside: Esser et al. (2020), arXiv 1902.08153, equation 3.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        """Return the levels of ``x`` in its dtype; ``scale`` is float32 and broadcasts to it."""
        integers = _integers(_carried(x), scale, grid)
        integers = integers.clamp_(grid.low, grid.high).float().add_(0.0)  # turns -0.0 into the one zero there is
        return (integers * scale).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Grid], output: Tensor) -> None:
        """Keep ``x``, which is alive anyway, rather than masks."""
        x, scale, ctx.grid = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of ``x`` and of the scale."""
        (x, scale), (gradient,), grid = ctx.saved_tensors, gradients, ctx.grid
        to_x = to_scale = None
        with simulated():
            wide = _carried(x)
            integers = _integers(wide, scale, grid)
            ratio = wide * (1.0 / scale.to(wide.dtype))
            inside = ratio.abs() <= 1 if grid.binary else (integers >= grid.low) & (integers <= grid.high)
            if ctx.needs_input_grad[0]:
                # where, not a product: an infinite gradient times zero would be NaN
                to_x = torch.where(inside, gradient, 0.0)
            if ctx.needs_input_grad[1]:
                slope = integers.clamp(grid.low, grid.high)
                if not grid.binary:
                    slope = torch.where(inside, slope - ratio, slope)
                to_scale = (slope * gradient).sum_to_size(scale.shape).to(scale.dtype)
        return to_x, to_scale, None


round_to_levels = cast("Callable[[Tensor, Tensor, Grid], Tensor]", _Rounding.apply)
"""``round_to_levels(x, scale, grid)``: levels of ``x``, with the gradients described above."""


def _carried(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _integers(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The nearest integers before clamping; NaN stays."""
    ratio = x * (1.0 / scale.to(x.dtype))
    if grid.binary:
        return torch.where(x.isnan(), x, torch.where(ratio >= 0, 1.0, -1.0))
    return ratio.round_()
