"""Weights and biases of a layer as an integer kernel has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_effnn.quantization.clipping import MIN_SCALE
from lightning_effnn.quantization.quantizer import ScaleSource, TensorQuantizer
from lightning_effnn.quantization.rounding import Grid, grid_of

_MOST_BIAS = 2.0**30  # of 2**31 - 1, so that a scale that is rounded does not overflow


class WeightQuantizer(TensorQuantizer):
    """A quantiser of weights whose steps are never below ``floor``, given for each channel."""

    floor: Tensor | None = None

    def step(self) -> Tensor:
        """Return the steps that levels are multiples of, float32: [channels], or of no axes."""
        step = super().step().detach()
        if self.floor is None:
            return step
        # Weights that are all zero leave it to the bias.
        return torch.maximum(step if self.ready() else torch.zeros_like(step), self.floor.clamp(min=MIN_SCALE))

    def _scale_and_grid(self, x: Tensor) -> tuple[Tensor, Grid]:
        scale, grid = super()._scale_and_grid(x)
        return (scale if self.floor is None else torch.maximum(scale, self.floor)), grid


class LayerQuantizer(nn.Module):
    r"""Rounds the weight of a layer, and its bias to multiples of input scale times weight scale.

    That is the unit in which an integer kernel sums, :math:`b = s_x s_w \mathrm{round}(b / (s_x s_w))` in 32 bits. A
    channel whose weights are so small that its bias would not fit gets larger steps: its weights are below what the
    bias is rounded to. Gradients pass straight through.

    Args:
        bits: of a weight.
        source: quantiser of the layer's input, not owned; ``None`` leaves biases as they are.
        scale: ``"learned"`` or ``"observed"``, see :class:`~lightning_effnn.quantization.TensorQuantizer`; observed
            steps are those of the present weight in train mode, and stay in eval mode.
        axis: 0 for a scale for each output channel, ``None`` for one.

    Source: Jacob et al. (2018), arXiv 1712.05877, section 2.4.
    """

    def __init__(self, bits: int, source: TensorQuantizer | None, scale: ScaleSource, axis: int | None) -> None:
        super().__init__()
        momentum = 1.0  # the present weight alone counts
        self.weight = WeightQuantizer(bits, scale=scale, axis=axis, signed=True, momentum=momentum)
        self._source = [source]  # in a list, so that it is no submodule of this one too

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the levels of ``weight`` [channels, ...] and of ``bias`` [channels]."""
        self._set_floor(bias)
        levels = self.weight(weight)
        unit = self.bias_step()
        if bias is None or unit is None:
            return levels, bias
        rounded = torch.round(bias.detach() / unit) * unit
        return levels, bias + (rounded - bias.detach())

    @torch.no_grad()
    def integers(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return weight as int8 and its steps, bias as int32 and its steps (both ``None`` if it stays as it is).

        Args:
            weight, bias: as for :meth:`forward`.
        """
        levels, _ = self(weight, bias)
        step = self.weight.step()
        wide = step if not step.dim() else step.view(-1, *[1] * (weight.dim() - 1))
        grid = grid_of(self.weight.bits, True)
        codes = torch.round(levels / wide).clamp(grid.low, grid.high).to(torch.int8)
        unit = self.bias_step()
        if bias is None or unit is None:
            return codes, step, None, None
        return codes, step, torch.round(bias / unit).to(torch.int32), unit

    def bias_step(self) -> Tensor | None:
        """Return what biases are multiples of, [channels] or of no axes; ``None`` while it isn't known."""
        source = self._source[0]
        if source is None or not source.ready():
            return None
        return source.step().detach() * self.weight.step()

    @torch.no_grad()
    def _set_floor(self, bias: Tensor | None) -> None:
        source = self._source[0]
        if bias is None or source is None or not source.ready():
            return
        floor = bias.abs().float() / (source.step() * _MOST_BIAS)
        self.weight.floor = floor if self.weight.axis is not None else floor.max()
