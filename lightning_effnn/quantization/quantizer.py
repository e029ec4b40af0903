"""One tensor in few levels: a module that rounds it, and remembers with which scale."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_effnn._autograd import quick_apply
from lightning_effnn._torch import in_backward
from lightning_effnn.formats import FP32, NumberFormat
from lightning_effnn.formats.tagging import aside, listeners, simulated, tag
from lightning_effnn.quantization.clipping import (
    MAX_SCALE,
    MIN_SCALE,
    channels_first,
    least_error_scale,
    mean_magnitude,
)
from lightning_effnn.quantization.rounding import Grid, grid_of, round_to_levels

ScaleSource = Literal["learned", "observed", "dynamic"]
"""Where a scale comes from: the optimiser, a running estimate, the tensor at hand."""

MAX_BITS = 16
"""Up to here float32 holds every level; 32 stands for no quantisation."""
_NOT_TRACED = (
    "neither torch.jit.trace nor ONNX has an operation for the quantisers that are attached to this model: "
    "call lightning_effnn.quantization.bake_(model) first, which makes the weights their levels and takes the "
    "quantisers off, those of activations too; or use torch.export, which keeps them"
)


class TensorQuantizer(nn.Module):
    r"""Fake quantisation of one tensor: levels in the forward pass, straight-through gradient.

    .. math:: Q(x) = s \cdot \mathrm{clamp}(\mathrm{round}(x / s), l, h)

    with the levels and the rounding of :class:`~lightning_effnn.formats.FixedPoint`, and for one signed bit those of
    :class:`~lightning_effnn.formats.Binary`, :math:`s \cdot \mathrm{sign}(x)`. Two signed bits are the four levels of
    int2, not the three of ternary: the same storage, and the smaller error on weights (see the method card).

    NaN stays NaN and infinities saturate; neither counts for the scale. An empty tensor, and any tensor with 32 bits,
    comes out as it is. The arithmetic is float32 (float64 for float64), the answer has the dtype of the input. The
    module moves to the device of its input. While a trace is open the output is tagged with its format.

    Args:
        bits: 1 to 16; or 32 to leave tensors as they are.
        scale: where the scale :math:`s` comes from:
            ``"learned"``: parameter ``scale``, trained by its own gradient (LSQ), starts at
            :math:`2\,\mathrm{mean}|x| / \sqrt{h}` of the first tensor (one signed bit: :math:`\mathrm{mean}|x|`);
            its gradient is divided by :math:`\sqrt{n h}` with n elements a scale. Its magnitude counts.
            ``"observed"``: in train mode a running mean of the step that minimises the squared error on each tensor,
            in eval mode what it was; in eval mode before any tensor was seen, that of the tensor at hand.
            ``"dynamic"``: that of the tensor at hand, each time. For weights.
        axis: one scale for each index of this axis; one for the whole tensor if ``None``.
        signed: whether there are negative levels. ``None``: whether the first tensor seen has a negative element.
        momentum: weight of the newest tensor in the running mean, in (0, 1].

    Attributes:
        scale: float32, of no axes, or [channels] with ``axis`` (one element until the first tensor is seen).
        initialised: bool, whether a tensor with a value other than zero was seen.
        is_signed: bool, whether there are negative levels; meaningful once initialised.

    Raises:
        TypeError: if ``bits`` or ``axis`` is not an integer, or an input is not a floating-point tensor.
        RuntimeError: in ``torch.jit.trace`` or an export to ONNX, which have no operation for it.
        ValueError: if ``bits``, ``scale`` or ``momentum`` is none of the above, or an input has no such axis.

    Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv 1902.08153, sections 2.1 and 2.2.

    >>> quantizer = TensorQuantizer(4)
    >>> quantizer(torch.tensor([-0.8, 0.24, 0.7]))
    tensor([-0.8000,  0.2000,  0.7000])
    >>> quantizer.number_format
    FixedPoint(bits=4, scale=0.1, signed=True)
    """

    scale: Tensor
    initialised: Tensor
    is_signed: Tensor

    def __init__(
        self,
        bits: int,
        *,
        scale: ScaleSource = "observed",
        axis: int | None = None,
        signed: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if isinstance(bits, bool) or not isinstance(bits, int):
            raise TypeError(f"bits must be an integer from 1 to {MAX_BITS}, or 32, got {bits!r}")
        if not (1 <= bits <= MAX_BITS or bits == 32):
            raise ValueError(f"bits must be from 1 to {MAX_BITS}, or 32 for no quantisation, got {bits}")
        if scale not in get_args(ScaleSource):
            raise ValueError(f"scale must be one of {', '.join(get_args(ScaleSource))}, got {scale!r}")
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
            raise TypeError(f"axis must be an integer or None, got {axis!r}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum!r}")
        self.bits, self.source, self.axis = bits, scale, axis
        self.given_sign, self.momentum = signed, momentum
        shape = () if axis is None else (1,)
        if scale == "learned":
            self.scale = nn.Parameter(torch.ones(shape, dtype=torch.float32), requires_grad=bits != 32)
        else:
            self.register_buffer("scale", torch.ones(shape, dtype=torch.float32))
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("is_signed", torch.tensor(signed is not False))
        self._signed = signed is not False
        self._seen_ready = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the levels nearest to ``x``, in its shape, dtype and device.

        Args:
            x: floating-point tensor of any shape.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if self.bits == 32 or not x.numel():
            return x
        if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError(_NOT_TRACED)
        if self.axis is not None and not -x.dim() <= self.axis < x.dim():
            raise ValueError(f"x must have an axis {self.axis}, got shape {tuple(x.shape)}")
        if self.scale.device != x.device:
            self.to(x.device)
        with simulated():
            scale, grid = self._scale_and_grid(x)
            levels = round_to_levels(x, self._beside(scale, x, grid.high), grid)
            number_format = grid.number_format(_one_number(scale)) if listeners() else None
        return levels if number_format is None else tag(levels, number_format)

    @property
    def number_format(self) -> NumberFormat:
        """The present format; with ``axis`` its scale is the mean one, with 32 bits it is FP32."""
        if self.bits == 32:
            return FP32
        return grid_of(self.bits, bool(self.is_signed)).number_format(_one_number(self.scale))

    def step(self) -> Tensor:
        """Return the scale in use, float32, positive, of the shape of :attr:`scale`; 1 before a tensor was seen."""
        return self._magnitude()

    def extra_repr(self) -> str:
        """Return the arguments that were given."""
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"bits={self.bits}, scale={self.source!r}{axis}"

    def _scale_and_grid(self, x: Tensor) -> tuple[Tensor, Grid]:
        """The scale to use for ``x``, of the shape of :attr:`scale`, and the levels; learns from ``x``."""
        # What gradient checkpointing computes again in the backward pass must come out as it did.
        ready, observing = self.ready(), self.source == "observed" and self.training and not in_backward()
        if ready and self.source != "dynamic" and not observing:
            self._check_channels(x)
            return self._magnitude(), grid_of(self.bits, self._signed)
        # On a chip a scale is a constant, whatever it was learned from: to a trace it doesn't depend on the batch.
        with torch.no_grad(), aside():
            fresh, found, grid = self._measure(x, ready)
            if self.source == "observed" and not self.training:
                return fresh, grid
            if observing and ready:
                self._check_channels(x)
                self.scale.copy_(torch.where(found, torch.lerp(self.scale, fresh, self.momentum), self.scale))
            elif ready or bool(found.any()):
                self._remember(fresh, grid.low < 0)
            else:
                return fresh, grid
        return self._magnitude(), grid

    def _measure(self, x: Tensor, ready: bool) -> tuple[Tensor, Tensor, Grid]:
        """The scale that suits ``x`` alone, where it had a value other than zero, and the levels."""
        rows = channels_first(x.detach(), self.axis)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        rows = rows.nan_to_num(0.0, 0.0, 0.0)
        signed = self._signed if ready else self.given_sign
        grid = grid_of(self.bits, bool((rows < 0).any()) if signed is None else signed)
        scale, found = _first_learned(rows, grid) if self.source == "learned" else _least_error(rows, grid)
        scale = _filled(scale, found)
        return (scale, found, grid) if self.axis is not None else (scale.squeeze(0), found.squeeze(0), grid)

    def _magnitude(self) -> Tensor:
        if self.source == "learned":
            return self.scale.abs().clamp(MIN_SCALE, MAX_SCALE)
        return self.scale.clone()  # what a graph keeps must not change with the next tensor seen

    def _remember(self, fresh: Tensor, signed: bool) -> None:
        with torch.inference_mode(False), torch.no_grad():  # what is made here outlives a validation in inference mode
            if self.scale.shape != fresh.shape:
                self.scale.data = torch.empty(fresh.shape, device=fresh.device)
            self.scale.copy_(fresh)
            self.is_signed.fill_(signed)
            self.initialised.fill_(True)
        self._signed, self._seen_ready = signed, True

    def ready(self) -> bool:
        """Return whether a scale is known; once it is, the flag isn't read again, for a device waits for that."""
        if not self._seen_ready and bool(self.initialised):
            self._signed, self._seen_ready = bool(self.is_signed), True
        return self._seen_ready

    def _check_channels(self, x: Tensor) -> None:
        if self.axis is not None and x.shape[self.axis] != len(self.scale):
            raise ValueError(
                f"x must have {len(self.scale)} channels along axis {self.axis}, as before, got shape {tuple(x.shape)}"
            )

    def _beside(self, scale: Tensor, x: Tensor, high: int) -> Tensor:
        """``scale`` in a shape that broadcasts to ``x``; the gradient of a learned one is divided as LSQ has it."""
        if self.source == "learned" and torch.is_grad_enabled():
            scale = _scale_gradient(scale, (x.numel() / scale.numel() * high) ** -0.5)
        if self.axis is None:
            return scale
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return scale.view(shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(f"{prefix}scale")
        if self.axis is not None and isinstance(loaded, Tensor) and loaded.dim() == 1:
            self.scale.data = self.scale.new_empty(loaded.shape)  # the number of channels comes with the state
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._seen_ready = False

    def _apply(self, fn: Any, recurse: bool = True) -> TensorQuantizer:
        scale = self.scale.detach().clone()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scale.dtype != torch.float32:  # half precision would move the levels
            self.scale.data = scale.to(self.scale.device)
        return self


@contextmanager
def scales_kept(module: nn.Module) -> Iterator[None]:
    """Let the quantisers inside ``module`` forget what runs meanwhile: each goes on with the scale that it had.

    >>> quantizer = TensorQuantizer(4)
    >>> with scales_kept(quantizer):
    ...     _ = quantizer(torch.ones(2))
    >>> quantizer.initialised
    tensor(False)
    """
    quantizers = [child for child in module.modules() if isinstance(child, TensorQuantizer)]
    states = [copy.deepcopy(quantizer.state_dict()) for quantizer in quantizers]
    try:
        yield
    finally:
        for quantizer, state in zip(quantizers, states, strict=True):
            quantizer.load_state_dict(state)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        """Return ``x``."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        """Keep the factor."""
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient times the factor."""
        return gradients[0] * ctx.factor, None


_scale_gradient = quick_apply(_ScaledGradient)


def _least_error(rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    return mean_magnitude(rows) if grid.binary else least_error_scale(rows, grid.low, grid.high)


def _first_learned(rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Where LSQ starts: section 2.1 of the paper; the signs alone start at their mean magnitude."""
    means, found = mean_magnitude(rows)
    return (means if grid.binary else means * (2 / grid.high**0.5)), found


def _filled(scale: Tensor, found: Tensor) -> Tensor:
    """Channels without a value get the mean scale of the others, so that it is of the right size later."""
    mean = (scale * found).sum() / found.sum().clamp(min=1)
    return torch.where(found | ~found.any(), scale, mean)


def _one_number(scale: Tensor) -> float:
    return min(max(scale.detach().abs().mean().item(), MIN_SCALE), MAX_SCALE)
