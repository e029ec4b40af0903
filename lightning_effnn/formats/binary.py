"""Binary: the sign alone, times a scale."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_effnn.formats import _checks
from lightning_effnn.formats.base import FormatKind, NumberFormat


@dataclass(frozen=True)
class Binary(NumberFormat):
    r"""Two levels, :math:`\{-s, +s\}`, in one bit: code 0 is minus, code 1 is plus.

    .. math:: Q(x) = s \text{ if } x \ge 0 \text{, else } -s

    Both zeros go to +s. The gradient passes where :math:`|x| \le s`, the rule of the paper below.

    Args:
        scale: :math:`s`, in [2**-100, 2**100].

    Raises:
        TypeError: if ``scale`` is not a number.
        ValueError: if it is out of range.

    Source: Hubara et al. (2016), "Binarized Neural Networks", NeurIPS.

    >>> Binary(0.5).quantize(torch.tensor([0.1, -3.0, 0.0]))
    tensor([ 0.5000, -0.5000,  0.5000])
    """

    bits: int = field(init=False, default=1, repr=False)
    scale: float = 1.0
    kind: ClassVar[FormatKind] = "binary"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _checks.scale("scale", self.scale))

    @property
    def name(self) -> str:
        """``"binary"``; the scale is not part of it."""
        return "binary"

    def fit(self, x: Tensor) -> Binary:
        """Return this format with the mean magnitude of ``x`` as scale; 1 if all of ``x`` is zero.

        It minimises the squared error: Rastegari et al. (2016), "XNOR-Net", arXiv 1603.05279.

        Args:
            x: floating-point tensor of any shape, finite, not empty.

        Raises:
            TypeError: if ``x`` is not a floating-point tensor.
            ValueError: if ``x`` is empty or not finite.

        >>> Binary().fit(torch.tensor([-3.0, 1.0]))
        Binary(scale=2.0)
        """
        return replace(self, scale=_checks.clamped_scale(_checks.magnitudes(x).mean().item()))

    def _inside(self, x: Tensor) -> Tensor:
        return x.abs() <= self.scale

    def _to_codes(self, x: Tensor) -> Tensor:
        return (x >= 0).to(torch.int64)

    def _from_codes(self, codes: Tensor) -> Tensor:
        return (2 * codes - 1).to(torch.float32) * self.scale
