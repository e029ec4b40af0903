"""Quantise a model by a plan, write its levels into its weights, take everything off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_effnn.formats import FP32, NumberFormat, declare_format
from lightning_effnn.quantization.attach import Attachment, attach_, strip_
from lightning_effnn.quantization.hooks import hosts_of
from lightning_effnn.quantization.plan import QuantizationPlan
from lightning_effnn.quantization.quantizer import ScaleSource, TensorQuantizer
from lightning_effnn.quantization.selection import Selection
from lightning_effnn.quantization.sites import activation_sites, weight_sites
from lightning_effnn.quantization.swap import WeightSwap


def quantize_(
    model: nn.Module,
    plan: QuantizationPlan | str,
    scale: ScaleSource = "observed",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    per_channel: bool = False,
) -> Attachment:
    """Attach quantisers to ``model`` as ``plan`` says, in place.

    Args:
        model: any module, initialised.
        plan: a plan, or the name of a preset, one of :data:`~lightning_effnn.quantization.plan.PRESETS`.
        scale: where scales come from: ``"observed"`` for a running estimate of each activation's range, and weights
            whose scale follows them at each call; ``"dynamic"`` for that with activations too; ``"learned"`` for
            scales that are parameters of the attachment (put ``attachment.quantizers.parameters()`` into the
            optimiser).
        include, exclude: patterns, see :func:`~lightning_effnn.quantization.sites.weight_sites`; of what the plan
            has, take what one of the first matches and none of the second.
        per_channel: a scale for each output channel of a weight. The error is smaller; a number format with one scale
            describes the result no more, so a compressed file stores it as a palette.

    Raises:
        ValueError: if the plan does not fit the model or nothing is left of it, something is attached already,
            or ``scale`` is none of these.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> attachment = quantize_(model, "W4A8", scale="learned")
    >>> attachment.weights["0.weight"], len(list(attachment.quantizers.parameters()))
    (TensorQuantizer(bits=8, scale='learned'), 4)
    """
    if isinstance(plan, str):
        plan = QuantizationPlan.preset(plan, model)
        Selection(model, include, exclude).warn("quantize_")
    plan.check(model)
    # A plan names what it is for: frozen weights too.
    chosen = {name: site.axis for site in weight_sites(model, include, exclude, frozen=True) for name in site.names}
    inputs = {site.name for site in activation_sites(model, include, exclude, frozen=True)}
    attachment = attach_(
        model,
        {
            name: TensorQuantizer(
                bits,
                scale="learned" if scale == "learned" else "dynamic",
                axis=chosen[name] if per_channel else None,
                signed=True,
            )
            for name, bits in plan.weights.items()
            if bits != 32 and name in chosen
        },
        {
            name: TensorQuantizer(bits, scale=scale)
            for name, bits in plan.activations.items()
            if bits != 32 and name in inputs
        },
    )
    return attachment


@torch.no_grad()
def bake_(model: nn.Module) -> nn.Module:
    """Write the levels of quantised weights into the parameters and take all quantisers off, in place.

    The weights are plain numbers then, of a declared format (:func:`~lightning_effnn.formats.declare_format`): a
    trace, a compressed file and an export see them as they are. Activations are no longer quantised; what runs the
    exported model does that by itself. The weights in full precision are gone.

    Args:
        model: a module with attached quantisers, all of whose weights' quantisers tell their ``number_format``.

    Raises:
        ValueError: if nothing is attached.
        TypeError: if a weight's quantiser tells no format.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 0.7)
    >>> _ = attach_(layer, weights={"weight": TensorQuantizer(4, signed=True)})
    >>> bake_(layer).weight
    Parameter containing:
    tensor([[0.7000, 0.7000]], requires_grad=True)
    >>> from lightning_effnn.formats import declared_formats
    >>> declared_formats(layer)
    {'weight': FixedPoint(bits=4, scale=0.1, signed=True)}
    """
    Attachment(model)  # refuses a model without one
    swaps = {id(swap): swap for _, host in hosts_of(model) for swap in host.swaps}.values()
    for swap in swaps:
        _format_of(swap)
    baked: dict[int, NumberFormat] = {}
    for swap in swaps:
        swap.remove()
        parameter = swap.parameter
        if id(parameter) not in baked:  # tied weights are written once
            parameter.copy_(swap.quantizer.eval()(parameter))
            baked[id(parameter)] = _format_of(swap)
        if baked[id(parameter)] != FP32:
            declare_format(swap.owner, swap.parameter_name, baked[id(parameter)], _scales_of(swap))
    return strip_(model)


def _format_of(swap: WeightSwap) -> NumberFormat:
    number_format = getattr(swap.quantizer, "number_format", None)
    if not isinstance(number_format, NumberFormat):
        raise TypeError(f"the quantiser of {swap.site} must have a number_format, got {swap.quantizer!r}")
    return number_format


def _scales_of(swap: WeightSwap) -> Tensor | None:
    """The scale of each channel, where there are several."""
    quantizer = swap.quantizer
    if not isinstance(quantizer, TensorQuantizer) or quantizer.axis is None or quantizer.scale.numel() == 1:
        return None
    shape = [1] * swap.parameter.dim()
    shape[quantizer.axis] = -1
    return quantizer.scale.detach().abs().view(shape)
