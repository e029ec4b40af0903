"""Layers quantised by ``torch.ao``: integer kernels whose weights are packed in an object, not in a tensor."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.formats import FixedPoint, NumberFormat
from lightning_effnn.hardware.tracing.handlers_mac import gemm
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Product, Vector, handles

_LINEAR = ("linear", "linear_relu", "linear_dynamic", "linear_relu_dynamic", "linear_leaky_relu", "linear_tanh")
_CONVOLUTIONS = tuple(
    f"conv{axes}d{suffix}" for axes in (1, 2, 3) for suffix in ("", "_relu", "_dynamic", "_add", "_add_relu")
)
_ADDITIONS = ("add", "add_relu", "add_out", "mul", "mul_relu", "add_scalar", "mul_scalar", "cat", "cat_relu")


@handles(*(f"quantized::{name}" for name in _LINEAR))
def linear(call: Call) -> list[Piece] | None:
    """``x @ W.T`` with an int8 weight."""
    source, weight = call.inputs[0], _weight(call)
    if weight is None:
        return None
    rows = source.numel() // source.shape[-1]
    axes = {"B": [(source, dim) for dim in range(source.dim() - 1)]}
    columns, inner = weight.shape
    return [gemm(rows, inner, columns, input=source, output=call.outputs[0], axes=axes, w_format=_format(weight))]


@handles(*(f"quantized::{name}" for name in _CONVOLUTIONS))
def convolution(call: Call) -> list[Piece] | None:
    """A convolution with an int8 weight."""
    source, weight, result = call.inputs[0], _weight(call), call.outputs[0]
    if weight is None:
        return None
    groups = source.shape[1] // weight.shape[1]
    taps, size = weight.shape[2:], result.shape[2:]
    extents = {
        "B": source.shape[0] * (size[0] if len(size) == 3 else 1),
        "G": groups,
        "K": weight.shape[0] // groups,
        "C": weight.shape[1] * (taps[0] if len(taps) == 3 else 1),
        "OY": size[-2] if len(size) > 1 else 1,
        "OX": size[-1],
        "FY": taps[-2] if len(taps) > 1 else 1,
        "FX": taps[-1],
    }
    kind: Any = "depthwise" if groups > 1 and weight.shape[1] == 1 else "conv"
    return [Product(kind, extents, None, source, result, {"B": [(source, 0)]}, w_format=_format(weight))]


@handles(*(f"quantized::{name}" for name in _ADDITIONS))
def elementwise(call: Call) -> list[Piece] | None:
    """Sums and products of activations that are integers."""
    return [Vector("elementwise", call.inputs, call.outputs, math.prod(call.outputs[0].shape), fusable=True)]


@handles("quantize_per_tensor", "quantize_per_tensor_dynamic", "quantize_per_channel", "dequantize", "int_repr")
def convert(call: Call) -> list[Piece] | None:
    """To integers and back: a multiplication and a rounding, or a multiplication, an element."""
    return [Vector("elementwise", call.inputs[:1], call.outputs, 2 * call.outputs[0].numel(), fusable=True)]


def _weight(call: Call) -> Tensor | None:
    packed = next((value for value in call.arguments.values() if hasattr(value, "unpack")), None)
    if packed is None:
        return None
    weight = packed.unpack()[0]
    return weight if isinstance(weight, torch.Tensor) else None


def _format(weight: Tensor) -> NumberFormat | None:
    return FixedPoint(8) if weight.is_quantized else None
