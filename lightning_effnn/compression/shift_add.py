r"""Reference inference with integers only: activations are shifted and added, never multiplied.

Activations are fixed-point integers, weights codes of powers of two, plain or recentralised. A plain weight
:math:`\pm 2^e` adds one shifted activation; a recentralised one, :math:`\mu + \sigma l`, adds two. The sum
is an integer and a common exponent; where it fits in 53 bits it equals the float64 result of the
quantised layer exactly. Slow and plain: what a chip would do, to check others against.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_effnn.formats import NumberFormat, PowerOfTwo, RecentralizedPowerOfTwo

_ACCUMULATOR_BITS = 62


class Accumulated(NamedTuple):
    """Sums as integers: their values are ``integers * 2**exponent * scale``.

    Attributes:
        integers: int64.
        exponent: of one unit.
        scale: of the weights' format, 1 for most; the one factor a chip would fold into the next layer.
    """

    integers: Tensor
    exponent: int
    scale: float

    def values(self) -> Tensor:
        """Return the sums in float64, in units of the activations' last place."""
        # Adding to the exponent; only a scale that is not 1 multiplies, once a result.
        values = torch.ldexp(self.integers.double(), torch.tensor(self.exponent, device=self.integers.device))
        return values if self.scale == 1.0 else values * self.scale


def shift_add_linear(x: Tensor, codes: Tensor, number_format: NumberFormat) -> Accumulated:
    """A linear layer without bias.

    Args:
        x: integers ``[..., in_features]``, the activations in units of their last place.
        codes: ``[out_features, in_features]``, from ``number_format.encode(weight)``.
        number_format: :class:`PowerOfTwo` or :class:`RecentralizedPowerOfTwo`.

    Returns:
        Sums ``[..., out_features]``. A bias is one addition an output and left to the caller.

    Raises:
        TypeError: if ``x`` or ``codes`` are not integers, or the format is another.
        ValueError: if shapes do not fit, or a sum could leave 62 bits.

    Source: arXiv 1903.03046, section 3.2.

    >>> pow2 = PowerOfTwo(4)
    >>> codes = pow2.encode(torch.tensor([[0.5, -0.25], [1.0, 0.0]]))
    >>> sums = shift_add_linear(torch.tensor([[6, 4]]), codes, pow2)
    >>> sums.integers, sums.exponent, sums.values()
    (tensor([[ 8, 24]]), -2, tensor([[2., 6.]], dtype=torch.float64))
    """
    x = _integers("x", x)
    if codes.dim() != 2 or x.dim() < 1 or x.shape[-1] != codes.shape[1]:
        raise ValueError(
            f"codes must be [out_features, {x.shape[-1] if x.dim() else '?'}] for x of shape {tuple(x.shape)}, "
            f"got {tuple(codes.shape)}"
        )
    columns = x.reshape(-1, x.shape[-1], 1)
    sums, exponent, scale = _product(columns, codes, number_format)
    return Accumulated(sums.reshape(*x.shape[:-1], codes.shape[0]), exponent, scale)


def shift_add_conv2d(
    x: Tensor,
    codes: Tensor,
    number_format: NumberFormat,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Accumulated:
    """A convolution of images without bias, with zeros around them.

    Args:
        x: integers ``[batch, in_channels, height, width]``.
        codes: ``[out_channels, in_channels / groups, kernel height, kernel width]``.
        number_format, stride, padding, dilation, groups: as for :func:`shift_add_linear` and ``conv2d``.

    Returns:
        Sums ``[batch, out_channels, height, width]``.

    Raises:
        TypeError: if ``x`` or ``codes`` are not integers, or the format is another.
        ValueError: if shapes do not fit, or a sum could leave 62 bits.

    >>> pow2 = PowerOfTwo(3)
    >>> codes = pow2.encode(torch.full((1, 1, 2, 2), 0.5))
    >>> shift_add_conv2d(torch.arange(9).view(1, 1, 3, 3), codes, pow2).values()
    tensor([[[[ 4.,  6.],
              [10., 12.]]]], dtype=torch.float64)
    """
    x = _integers("x", x)
    if x.dim() != 4 or codes.dim() != 4:
        raise ValueError(f"x and codes must have 4 axes, got shapes {tuple(x.shape)} and {tuple(codes.shape)}")
    outputs, depth = codes.shape[:2]
    if groups < 1 or outputs % groups or x.shape[1] != depth * groups:
        raise ValueError(
            f"x must have {depth} * groups channels and codes a multiple of groups outputs, got x of shape "
            f"{tuple(x.shape)}, codes of shape {tuple(codes.shape)} and groups={groups}"
        )
    patches, size = _patches(x, codes.shape[2:], _pair(stride), _pair(padding), _pair(dilation))
    batch, rows = x.shape[0], outputs // groups
    used = _used_exponents(codes, number_format)
    sums = [
        _product(
            patches[:, group * depth : (group + 1) * depth].reshape(batch, -1, size[0] * size[1]),
            codes[group * rows : (group + 1) * rows].reshape(rows, -1),
            number_format,
            used,
        )
        for group in range(groups)
    ]
    joined = torch.cat([part.integers for part in sums], 1).reshape(batch, outputs, *size)
    return Accumulated(joined, sums[0].exponent, sums[0].scale)


def _product(
    columns: Tensor, codes: Tensor, number_format: NumberFormat, used: tuple[int, int] | None = None
) -> Accumulated:
    """Sums ``[batch, out, columns]`` of ``columns [batch, in, columns]`` under ``codes [out, in]``."""
    low, high = used or _used_exponents(codes, number_format)
    largest = int(columns.abs().max()) if columns.numel() else 0
    needed = largest.bit_length() + high - low + math.ceil(math.log2(max(2 * codes.shape[1], 1)))
    if needed > _ACCUMULATOR_BITS:
        raise ValueError(
            f"a sum could take {needed} bits, more than {_ACCUMULATOR_BITS}: activations of "
            f"{largest.bit_length()} bits, {codes.shape[1]} inputs, exponents {low} to {high}"
        )
    sums = columns.new_zeros(columns.shape[0], codes.shape[0], columns.shape[2])
    for negative, exponent, chosen in _terms(codes.long(), number_format):
        outputs, inputs = chosen.nonzero(as_tuple=True)
        shifted = columns[:, inputs] << (exponent - low)
        sums.index_add_(1, outputs, -shifted if negative else shifted)
    return Accumulated(sums, low, getattr(number_format, "scale", 1.0))


def _terms(codes: Tensor, number_format: NumberFormat) -> Iterator[tuple[bool, int, Tensor]]:
    """Signed powers of two and where ``codes`` have them, so that a weight is the sum of its terms."""
    if isinstance(number_format, PowerOfTwo):
        sign = 1 << (number_format.bits - 1)
        for place, exponent in enumerate(number_format.exponents, 1):
            yield False, exponent, codes == place
            yield True, exponent, codes == sign + place
    elif isinstance(number_format, RecentralizedPowerOfTwo):
        sign, top = 1 << (number_format.bits - 2), 1 << (number_format.bits - 1)
        yield True, _exponent(number_format.mean_negative), (codes > 0) & (codes < top)
        yield False, _exponent(number_format.mean_positive), codes >= top
        power, sigma = codes & (sign - 1), _exponent(number_format.sigma)
        for place, exponent in enumerate(number_format.exponents, 1):
            yield False, sigma + exponent, (power == place) & (codes & sign == 0)
            yield True, sigma + exponent, (power == place) & (codes & sign != 0)
    else:
        raise TypeError(f"number_format must be PowerOfTwo or RecentralizedPowerOfTwo, got {number_format!r}")


def _used_exponents(codes: Tensor, number_format: NumberFormat) -> tuple[int, int]:
    number_format.decode(_integers("codes", codes))  # refuses codes that are none
    used = [exponent for _, exponent, chosen in _terms(codes.long(), number_format) if bool(chosen.any())]
    return (min(used), max(used)) if used else (0, 0)


def _patches(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """Patches ``[batch, channels, kernel positions, places]`` and how many places there are each way."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = ((x.shape[2 + a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1))
    if height < 1 or width < 1:
        raise ValueError(f"the kernel {tuple(kernel)} with dilation {dilation} is larger than the padded images")
    windows = [
        x[
            :,
            :,
            top : top + stride[0] * (height - 1) + 1 : stride[0],
            left : left + stride[1] * (width - 1) + 1 : stride[1],
        ]
        for top in range(0, dilation[0] * kernel[0], dilation[0])
        for left in range(0, dilation[1] * kernel[1], dilation[1])
    ]
    return torch.stack(windows, 2).flatten(3), (height, width)


def _integers(name: str, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {getattr(x, 'dtype', type(x))}")
    return x.long()


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _exponent(power: float) -> int:
    return math.frexp(power)[1] - 1
