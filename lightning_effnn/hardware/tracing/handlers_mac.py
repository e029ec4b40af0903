"""Matrix products: every aten operation that is one product of two factors.

A bias is added into the accumulator and costs nothing. A sparse factor is no product but a gather of
rows with two operations for each of its non-zeros (a multiplication and an addition).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_effnn.hardware.tracing.pieces import Call, Piece, Product, Vector, handles


def gemm(
    rows: int,
    inner: int,
    columns: int,
    *,
    groups: int = 1,
    weight: Tensor | None = None,
    input: Tensor | None = None,
    output: Tensor | None = None,
    batch: str = "",
    repeats: int = 1,
) -> Product:
    """``[rows, inner] @ [inner, columns]``, ``groups`` times. A complex factor is two real columns and
    two real rows: four real multiplications."""
    if any(t is not None and t.is_complex() for t in (weight, input)):
        inner, columns = 2 * inner, 2 * columns
    extents = {"B": rows, "G": groups, "K": columns, "C": inner}
    return Product("gemm", extents, weight, input, output, batch, repeats=repeats)


@handles("mm", "_int_mm", "_scaled_mm", "_weight_int8pack_mm", "mkldnn_linear")
def mm(call: Call) -> list[Piece] | None:
    """``[M, C] @ [C, N]``."""
    first, second = call.inputs[:2]
    if call.name in ("_weight_int8pack_mm", "mkldnn_linear"):
        second = second.t()
    return matrix_product(call, first, second)


@handles("addmm", "_addmm_activation", "_sparse_addmm", "addbmm", "baddbmm")
def addmm(call: Call) -> list[Piece] | None:
    """``bias + A @ B``, batched or not."""
    first, second = call.inputs[1:3]
    return matrix_product(call, first, second)


@handles("bmm", "_sparse_mm", "_sparse_mm_reduce_impl")
def bmm(call: Call) -> list[Piece] | None:
    """Batched, or with a sparse first factor."""
    return matrix_product(call, call.inputs[0], call.inputs[1])


@handles("linear")
def linear(call: Call) -> list[Piece] | None:
    """``x @ W.T``; backends that keep it whole."""
    return matrix_product(call, call.inputs[0].flatten(0, -2), call.inputs[1].t())


@handles("mv", "addmv", "dot", "vdot")
def mv(call: Call) -> list[Piece] | None:
    """Matrix by vector and vector by vector."""
    first, second = call.inputs[1:3] if call.name == "addmv" else call.inputs[:2]
    return matrix_product(call, first if first.dim() == 2 else first.unsqueeze(0), second.unsqueeze(1))


@handles("_trilinear")
def trilinear(call: Call) -> list[Piece] | None:
    """``nn.Bilinear``: the outer product of both inputs (elementwise), then a product with the weight."""
    left, weight, right = call.inputs[:3]
    result = call.outputs[0]
    columns = result.shape[-1]
    rows = result.numel() // columns
    inner = weight.numel() // columns
    outer = Vector("elementwise", [left, right], [], rows * inner, elements_out=rows * inner)
    batch = "B" if call.tainted(left) or call.tainted(right) else ""
    return [outer, gemm(rows, inner, columns, weight=weight, input=left, output=result, batch=batch)]


def matrix_product(call: Call, first: Tensor, second: Tensor) -> list[Piece] | None:
    """``first @ second`` with the factor that does not depend on the batch as the weight."""
    result = call.outputs[0]
    if torch.strided not in (first.layout, second.layout):
        return None
    if first.layout is not torch.strided:
        return [_sparse_product(first, second, result)]
    if second.layout is not torch.strided:
        return [_sparse_product(second, first, result)]
    groups = first.shape[0] if first.dim() == 3 else 1
    rows, inner, columns = first.shape[-2], first.shape[-1], second.shape[-1]
    from_first, from_second = call.tainted(first), call.tainted(second)
    if from_second and not from_first:  # W @ x: the same product, transposed
        product = gemm(columns, inner, rows, groups=groups, weight=first, input=second, output=result)
    else:
        product = gemm(rows, inner, columns, groups=groups, weight=second, input=first, output=result)
    if from_first or from_second:
        product.batch = _batch_extent(call, product, first.dim() == 3, from_first and from_second)
    return [product]


def _batch_extent(call: Call, product: Product, batched: bool, both: bool) -> str:
    if not batched:
        # Two factors of the batch: dY.T @ X in the backward pass, which sums over it; in the forward
        # pass each row is a sample.
        return "C" if both and call.backward else "B"
    # Groups are samples, or heads of samples; or they are time steps, or groups of features with a
    # constant for each, and the rows are the samples. Whichever the batch's size divides.
    size = call.batch_size or 1
    return next((axis for axis in ("G", "B") if product.extents[axis] % size == 0), "G")


def _sparse_product(sparse: Tensor, dense: Tensor, result: Tensor) -> Vector:
    stored = sparse._values() if sparse.layout is torch.sparse_coo else sparse.values()
    width = math.prod(dense.shape[1:]) if dense.dim() > 1 else 1
    nonzeros = stored.numel()
    return Vector(
        "gather",
        [dense, sparse],
        [result],
        2 * nonzeros * width,
        elements_in=nonzeros * width + 2 * nonzeros,  # the rows taken, the values, their columns
    )
