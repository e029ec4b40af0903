"""Matrix products: every aten operation that is one product of two factors.

A bias is added into the accumulator and costs nothing. A sparse factor is no product but a gather of
rows with two operations for each of its non-zeros (a multiplication and an addition).
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import torch
from torch import Tensor

from lightning_effnn._torch import FakeTensor
from lightning_effnn.formats import FixedPoint, NumberFormat
from lightning_effnn.hardware.tracing import tables
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Product, Vector, handles

Axes = dict[str, list[tuple[Tensor, int]]]
_INT4 = FixedPoint(4)


def gemm(
    rows: int,
    inner: int,
    columns: int,
    *,
    groups: int = 1,
    weight: Tensor | None = None,
    input: Tensor | None = None,
    output: Tensor | None = None,
    axes: Axes | None = None,
    repeats: int = 1,
    w_format: NumberFormat | None = None,
) -> Product:
    """``[rows, inner] @ [inner, columns]``, ``groups`` times. A complex factor is two real columns and
    two real rows: four real multiplications."""
    if any(t is not None and t.is_complex() for t in (weight, input)):
        inner, columns = 2 * inner, 2 * columns
    extents = {"B": rows, "G": groups, "K": columns, "C": inner}
    return Product("gemm", extents, weight, input, output, axes or {}, repeats=repeats, w_format=w_format)


@handles("mm", "_int_mm", "_scaled_mm", "_scaled_mm_v2", "_weight_int8pack_mm", "_sparse_mm", "_sparse_mm_reduce_impl")
@handles("bmm", "mv", "dot", "vdot", "matmul")
def product(call: Call) -> list[Piece] | None:
    """``[M, C] @ [C, N]``, batched, by a vector, or with a sparse first factor."""
    return matrix_product(call, *call.inputs[:2])


@handles("addmm", "_addmm_activation", "_sparse_addmm", "addbmm", "baddbmm", "addmv")
def product_and_sum(call: Call) -> list[Piece] | None:
    """``bias + A @ B``, batched or not."""
    return matrix_product(call, *call.inputs[1:3])


@handles("linear", "mkldnn_linear")
def linear(call: Call) -> list[Piece] | None:
    """``x @ W.T``; backends that keep it whole."""
    source, weight = call.inputs[:2]
    rows = source.numel() // source.shape[-1]
    axes: Axes = {
        "B": [(source, dim) for dim in range(source.dim() - 1)],
        "C": [(source, -1), (weight, 1)],
        "K": [(weight, 0)],
    }
    columns, inner = weight.shape
    return [gemm(rows, inner, columns, weight=weight, input=source, output=call.outputs[0], axes=axes)]


@handles("_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu", "_weight_int4pack_mm_with_scales_and_zeros")
@handles("_dyn_quant_matmul_4bit")
def packed_int4(call: Call) -> list[Piece] | None:
    """``[M, C]`` by a weight of four bits, packed in the order of some kernel."""
    source, weight = call.inputs[:2]
    result = call.outputs[0]
    rows, columns = source.numel() // source.shape[-1], result.shape[-1]
    axes: Axes = {"B": [(source, dim) for dim in range(source.dim() - 1)]}
    return [
        gemm(rows, source.shape[-1], columns, weight=weight, input=source, output=result, axes=axes, w_format=_INT4)
    ]


@handles("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2")
def grouped(call: Call) -> list[Piece] | None:
    """Rows sorted by group, each group with a second factor of its own (the experts of a mixture)."""
    first, second = call.inputs[:2]
    result = call.outputs[0]
    if first.dim() == second.dim() == 3:
        return matrix_product(call, first, second)
    inner, columns = first.shape[-1], second.shape[-1]
    axes: Axes = {"B": [(first, first.dim() - 2)], "C": [(first, first.dim() - 1)], "K": [(second, second.dim() - 1)]}
    if first.dim() != 2 or second.dim() != 3:  # groups of columns, or along what is summed over
        return [gemm(first.shape[-2], inner, columns, weight=second, input=first, output=result, axes=axes)]
    pieces: list[Piece] = []
    for rows, times in _group_sizes(call, first, second):
        pieces.append(gemm(rows, inner, columns, weight=second, input=first, output=result, axes=axes, repeats=times))
    return pieces


@handles("_trilinear")
def trilinear(call: Call) -> list[Piece] | None:
    """``nn.Bilinear``: the outer product of both inputs (elementwise), then a product with the weight."""
    left, weight, right = call.inputs[:3]
    result = call.outputs[0]
    columns = result.shape[-1]
    rows = result.numel() // columns
    inner = weight.numel() // columns
    outer = Vector("elementwise", [left, right], [], rows * inner, elements_out=rows * inner)
    axes: Axes = {"B": [(result, dim) for dim in range(result.dim() - 1)]}
    return [outer, gemm(rows, inner, columns, weight=weight, input=left, output=result, axes=axes)]


def matrix_product(call: Call, first: Tensor, second: Tensor) -> list[Piece] | None:
    """``first @ second`` with the factor that does not depend on the batch as the weight."""
    result = call.outputs[0]
    if torch.strided not in (first.layout, second.layout):
        return None
    if first.layout is not torch.strided:
        return [_sparse_product(first, second, result)]
    if second.layout is not torch.strided:
        return [_sparse_product(second, first, result)]
    flipped = call.name in tables.TRANSPOSED
    vector = second.dim() == 1
    rows = first.shape[-2] if first.dim() > 1 else 1
    columns = 1 if vector else second.shape[-2 if flipped else -1]
    row_axes = [(first, first.dim() - 2)] if first.dim() > 1 else []
    column_axes = [] if vector else [(second, second.dim() - (2 if flipped else 1))]
    axes: Axes = {
        "C": [(first, first.dim() - 1), (second, 0 if vector else second.dim() - (1 if flipped else 2))],
        "G": [(t, 0) for t in (first, second) if t.dim() == 3],
    }
    groups, inner = first.shape[0] if first.dim() == 3 else 1, first.shape[-1]
    if call.varies(second) and not call.varies(first):  # W @ x: the same product, transposed
        axes |= {"B": column_axes, "K": row_axes}
        return [gemm(columns, inner, rows, groups=groups, weight=first, input=second, output=result, axes=axes)]
    axes |= {"B": row_axes, "K": column_axes}
    return [gemm(rows, inner, columns, groups=groups, weight=second, input=first, output=result, axes=axes)]


def _group_sizes(call: Call, first: Tensor, second: Tensor) -> list[tuple[int, int]]:
    """Rows of each group, and how many groups have as many; without values all alike."""
    ends, rows, groups = call.get("offs"), first.shape[0], second.shape[0]
    if ends is None or ends.is_meta or isinstance(ends, FakeTensor):
        whole, rest = divmod(rows, groups)
        sizes = [whole + (n < rest) for n in range(groups)]
    else:
        at = [0, *ends.tolist()]
        sizes = [end - start for start, end in pairwise(at)]
    return [(size, number) for size, number in sorted(Counter(sizes).items()) if size > 0]


def _sparse_product(sparse: Tensor, dense: Tensor, result: Tensor) -> Vector:
    stored = sparse._values() if sparse.layout is torch.sparse_coo else sparse.values()
    width = math.prod(dense.shape[1:]) if dense.dim() > 1 else 1
    nonzeros = stored.numel()
    return Vector(
        "gather",
        [dense, sparse],
        [result],
        2 * nonzeros * width,
        elements_in=nonzeros * width,  # the rows taken
        also=[sparse],  # the values and where they are
    )
