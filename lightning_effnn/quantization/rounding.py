"""The levels of a quantiser, and rounding to them with a gradient for the scale."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_effnn._autograd import quick_apply
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


@functools.cache
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
        levels = _signs(x) if grid.binary else _integers_(_ratio(x, scale), grid)
        return levels.float().add_(0.0).mul_(scale).to(x.dtype)  # + 0.0 turns -0.0 into the one zero there is

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Grid], output: Tensor) -> None:
        """Keep ``x``, which is alive anyway, rather than masks."""
        x, scale, ctx.grid = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of ``x`` and of the scale; that of ``x`` is sparse if what came is."""
        (x, scale), (gradient,), grid = ctx.saved_tensors, gradients, ctx.grid
        with simulated():
            if not gradient.is_sparse:
                return *_gradients(x, scale, gradient, grid, ctx.needs_input_grad), None
            gradient = gradient.coalesce()  # of an embedding: the rows that were looked up
            if gradient.sparse_dim() > 1:
                gradient = gradient.to_dense().to_sparse(1)
            (rows,) = gradient.indices()
            apart = scale.dim() > 0 and scale.shape[0] > 1
            to_x, to_scale = _gradients(
                x[rows], scale[rows] if apart else scale, gradient.values(), grid, ctx.needs_input_grad
            )
            if to_x is not None:
                to_x = torch.sparse_coo_tensor(gradient.indices(), to_x, x.shape, is_coalesced=True, device=x.device)
            if to_scale is not None and apart:
                to_scale = torch.zeros_like(scale).index_add_(0, rows, to_scale)
        return to_x, to_scale, None


def _gradients(
    x: Tensor, scale: Tensor, gradient: Tensor, grid: Grid, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    ratio = _ratio(x, scale)
    wide = gradient.to(ratio.dtype)
    # One pass, several times faster on a CPU than comparisons and a selection. Not a product with a mask: an
    # infinite gradient times zero would be NaN.
    passed = torch.ops.aten.hardtanh_backward(wide, ratio, *_open_range(grid))
    to_x = passed.to(x.dtype) if needed[0] else None
    if not needed[1]:
        return to_x, None
    if grid.binary:
        slope = _signs(x) * wide
    else:  # inside the range less the ratio, outside it the level alone
        ratio = ratio.clamp(grid.low - 1, grid.high + 1)  # infinities would cancel to NaN below
        slope = _integers_(ratio.clone(), grid).sub_(ratio).mul_(wide).add_((wide - passed).mul_(ratio))
    return to_x, slope.sum_to_size(scale.shape).to(scale.dtype)


round_to_levels = quick_apply(_Rounding)
"""``round_to_levels(x, scale, grid)``: levels of ``x``, with the gradients described above."""


def _ratio(x: Tensor, scale: Tensor) -> Tensor:
    """``x`` in units of the scale, in float32 (float64 for float64)."""
    wide = x if x.dtype == torch.float64 else x.float()
    return wide * scale.to(wide.dtype).reciprocal()


def _signs(x: Tensor) -> Tensor:
    """1 or -1; NaN stays. Of ``x`` itself: the tiniest numbers in units of a scale are zero, which has no sign."""
    return torch.where(x.isnan(), x, torch.where(x >= 0, 1.0, -1.0).to(x.dtype))


def _integers_(ratio: Tensor, grid: Grid) -> Tensor:
    """The nearest integers of the grid, in place of ``ratio``; NaN stays."""
    return ratio.clamp_(grid.low, grid.high).round_()


def _open_range(grid: Grid) -> tuple[float, float]:
    """The open interval of ratios whose gradient passes: those that round to a level (a tie to the even integer)."""
    beyond = 1 + 2.0**-23  # the float32 number next to one
    if grid.binary:
        return -beyond, beyond
    # lowest levels are even, so the tie below them rounds to them; highest are odd, the tie above them does not
    return (grid.low - 0.5) * beyond, grid.high + 0.5
