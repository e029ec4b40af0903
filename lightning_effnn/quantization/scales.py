"""Training learned scales apart from the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class ScaleOptimizer:
    """Adam on the logarithms of learned scales, for whoever keeps them out of the model's own optimiser.

    Scales differ by orders of magnitude between tensors, and a step of Adam is about its learning rate: on logarithms
    it is that share of a scale. Scales without a gradient stay.

    Args:
        scales: 0-dimensional parameters, or one-dimensional with a scale for each channel.
        lr: share of a scale that a step changes it by.

    Source: Adam: Kingma and Ba (2015), arXiv 1412.6980; logarithmic scales: Jain et al. (2020), "Trained Quantization
    Thresholds", arXiv 1903.08066, section 3.2.

    >>> scale = nn.Parameter(torch.tensor(0.5))
    >>> optimizer = ScaleOptimizer([scale], lr=0.1)
    >>> (scale - 0.1).square().backward()
    >>> optimizer.step()
    >>> round(float(scale), 3)  # 0.5 * exp(-0.1)
    0.452
    """

    def __init__(self, scales: Iterable[nn.Parameter], lr: float = 1e-3) -> None:
        self.scales = list(scales)
        self._logarithms = [nn.Parameter(torch.zeros_like(scale)) for scale in self.scales]
        self._adam = torch.optim.Adam(self._logarithms, lr=lr) if self.scales else None

    @torch.no_grad()
    def step(self) -> None:
        """Move the scales by their gradients, and forget these; gradients that are not finite are left out."""
        self._follow()
        pairs = [pair for pair in zip(self.scales, self._logarithms, strict=True) if pair[0].grad is not None]
        if self._adam is None or not pairs:
            return
        gradients = [scale.grad for scale, _ in pairs if scale.grad is not None]
        # one look at the device for all
        finite = torch.isfinite(torch.stack(torch._foreach_norm(gradients))).tolist()
        moved = [pair for pair, is_finite in zip(pairs, finite, strict=True) if is_finite]
        for scale, logarithm in moved:
            assert scale.grad is not None
            logarithm.grad = scale.grad * scale  # by its logarithm, whatever its sign
            logarithm.copy_(scale.abs().log())
        self._adam.step()
        for scale, logarithm in moved:
            scale.copy_(logarithm.exp())
            logarithm.grad = None
        for scale, _ in pairs:
            scale.grad = None

    def _follow(self) -> None:
        """Give scales that have met their channels, or their device, logarithms like them; Adam goes on with these."""
        for place, (scale, old) in enumerate(zip(self.scales, self._logarithms, strict=True)):
            if self._adam is None or (old.shape == scale.shape and old.device == scale.device):
                continue
            fresh = self._logarithms[place] = nn.Parameter(torch.empty_like(scale))
            self._adam.param_groups[0]["params"][place] = fresh
            known = self._adam.state.pop(old, {})
            moved = {name: value if name == "step" else value.to(scale.device) for name, value in known.items()}
            if moved:
                self._adam.state[fresh] = moved

    def state_dict(self) -> dict[str, Any]:
        """State of Adam; the scales are the quantisers' own."""
        return {} if self._adam is None else self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Args:
            state: what :meth:`state_dict` gave.
        """
        if self._adam is not None:
            self._adam.load_state_dict(state)
