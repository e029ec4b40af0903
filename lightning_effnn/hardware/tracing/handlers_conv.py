"""Convolutions, transposed convolutions and their backward passes.

A three-dimensional convolution is folded into the eight loops of
:class:`~lightning_effnn.hardware.operation.Operation`: the output's depth into ``B``, the filter's depth
into ``C``; a one-dimensional one has ``OY = FY = 1``. A transposed convolution is the product it is
computed by, one row for each input position, followed by the addition of overlapping patches
(``col2im``) as a scatter. A bias is added into the accumulator and costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_effnn.hardware.operation import MacKind
from lightning_effnn.hardware.tracing import tables
from lightning_effnn.hardware.tracing.handlers_mac import Axes, gemm
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Product, Vector, handles


@dataclass(slots=True)
class _Shape:
    """A convolution's extents, whichever its number of axes."""

    batch: int
    groups: int
    out_per_group: int
    in_per_group: int
    out_size: tuple[int, int, int]
    in_size: tuple[int, int, int]
    filter_size: tuple[int, int, int]
    stride: tuple[int, int, int]
    dilation: tuple[int, int, int]

    @property
    def kind(self) -> MacKind:
        return "depthwise" if self.groups > 1 and self.in_per_group == 1 else "conv"

    @property
    def windows(self) -> dict[str, int]:
        return {
            "stride_y": self.stride[1],
            "stride_x": self.stride[2],
            "dilation_y": self.dilation[1],
            "dilation_x": self.dilation[2],
        }


@handles(*tables.CONVOLUTIONS)
def convolution(call: Call) -> list[Piece] | None:
    """``[N, C, (D, H,) W]`` with ``[K, C / groups, (FZ, FY,) FX]``."""
    source, weight, result = call.get("input", "self"), call.get("weight"), call.outputs[0]
    transposed = _transposed(call)
    shape = _shape(call, source, weight, result, transposed)
    axes = _axes(shape, source, weight)
    if transposed:
        return [_transposed_product(shape, source, weight, axes), _col2im(shape, source, result)]
    return [_product(shape, weight, source, result, axes)]


@handles("convolution_backward", "convolution_backward_overrideable")
def convolution_backward(call: Call) -> list[Piece] | None:
    """Gradients of input and weight: each as many multiply-accumulates as the forward pass."""
    grad, source, weight = call.get("grad_output"), call.get("input"), call.get("weight")
    transposed = _transposed(call)
    shape = _shape(call, source, weight, grad, transposed)
    wants_input, wants_weight, wants_bias = call.get("output_mask")
    # Gradients come in the order of the mask; those not wanted are None and not among the outputs.
    given = iter(call.outputs)
    of_input = next(given, None) if wants_input else None
    of_weight = next(given, None) if wants_weight else None
    of_bias = next(given, None) if wants_bias else None
    axes = _axes(shape, grad, weight)
    pieces: list[Piece] = []
    if wants_input:
        pieces.append(_input_gradient(shape, weight, grad, of_input, axes, transposed))
    if wants_weight:
        pieces.append(_weight_gradient(shape, source, grad, of_weight, axes, transposed))
    if of_bias is not None:
        pieces.append(Vector("reduce", [grad], [of_bias], grad.numel()))
    return pieces


def _product(shape: _Shape, weight: Tensor | None, source: Tensor | None, result: Tensor | None, axes: Axes) -> Product:
    extents = {
        "B": shape.batch * shape.out_size[0],
        "G": shape.groups,
        "K": shape.out_per_group,
        "C": shape.in_per_group * shape.filter_size[0],
        "OY": shape.out_size[1],
        "OX": shape.out_size[2],
        "FY": shape.filter_size[1],
        "FX": shape.filter_size[2],
    }
    return Product(shape.kind, extents, weight, source, result, axes, shape.windows)


def _transposed_product(shape: _Shape, source: Tensor, weight: Tensor, axes: Axes) -> Product:
    positions = shape.batch * math.prod(shape.in_size)
    patch = shape.out_per_group * math.prod(shape.filter_size)
    return gemm(positions, shape.in_per_group, patch, groups=shape.groups, weight=weight, input=source, axes=axes)


def _col2im(shape: _Shape, source: Tensor, result: Tensor) -> Vector:
    patches = shape.batch * math.prod(shape.in_size) * shape.groups * shape.out_per_group
    patches *= math.prod(shape.filter_size)
    return Vector("scatter", [source], [result], patches, elements_in=patches)


def _input_gradient(
    shape: _Shape, weight: Tensor, grad: Tensor, result: Tensor | None, axes: Axes, transposed: bool
) -> Product:
    if transposed:  # an ordinary product of patches of the gradient
        return gemm(
            shape.batch * math.prod(shape.in_size),
            shape.out_per_group * math.prod(shape.filter_size),
            shape.in_per_group,
            groups=shape.groups,
            weight=weight,
            input=grad,
            output=result,
            axes=axes,
        )
    product = _product(shape, weight, grad, result, axes)
    # The same loops with input and output channels exchanged.
    product.extents["K"] = shape.in_per_group
    product.extents["C"] = shape.out_per_group * shape.filter_size[0]
    product.kind = "depthwise" if shape.groups > 1 and shape.out_per_group == 1 else "conv"
    return product


def _weight_gradient(
    shape: _Shape, source: Tensor, grad: Tensor, result: Tensor | None, axes: Axes, transposed: bool
) -> Product:
    inner = {"C": [(source, 0), (grad, 0)], "G": axes["G"]}
    if transposed or shape.filter_size[0] > 1 or shape.out_size[0] > 1:
        positions = math.prod(shape.in_size if transposed else shape.out_size)
        return gemm(
            shape.in_per_group,
            shape.batch * positions,
            shape.out_per_group * math.prod(shape.filter_size),
            groups=shape.groups,
            weight=grad,
            input=source,
            output=result,
            axes=inner,
        )
    # A convolution of the input with the gradient as its filter: samples are the channels summed over,
    # stride and dilation change places.
    extents = {
        "B": shape.in_per_group,
        "G": shape.groups,
        "K": shape.out_per_group,
        "C": shape.batch,
        "OY": shape.filter_size[1],
        "OX": shape.filter_size[2],
        "FY": shape.out_size[1],
        "FX": shape.out_size[2],
    }
    windows = {
        "stride_y": shape.dilation[1],
        "stride_x": shape.dilation[2],
        "dilation_y": shape.stride[1],
        "dilation_x": shape.stride[2],
    }
    return Product("conv", extents, grad, source, result, inner, windows)


def _shape(call: Call, source: Tensor, weight: Tensor, result: Tensor, transposed: bool) -> _Shape:
    groups = int(call.get("groups") or 1)
    if call.name in ("_conv_depthwise2d", "conv_depthwise3d"):
        groups = source.shape[1]
    channels_out = result.shape[1]
    return _Shape(
        batch=source.shape[0],
        groups=groups,
        out_per_group=channels_out // groups,
        in_per_group=source.shape[1] // groups,
        out_size=_three(result.shape[2:]),
        in_size=_three(source.shape[2:]),
        filter_size=_three(weight.shape[2:]),
        stride=_three(call.get("stride") or ()),
        dilation=_three(call.get("dilation") or ()),
    )


def _transposed(call: Call) -> bool:
    return bool(call.get("transposed")) or "transpose" in call.name


def _axes(shape: _Shape, source: Tensor, weight: Tensor) -> Axes:
    if shape.groups > 1:  # filters of each sample's own have the samples among the groups
        return {"B": [(source, 0)], "G": [(source, 1), (weight, 0)]}
    return {"B": [(source, 0)], "G": [], "K": [(weight, 0)]}


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    padded = (*[1] * (3 - len(sizes)), *(int(s) for s in sizes))
    return (padded[0], padded[1], padded[2])
