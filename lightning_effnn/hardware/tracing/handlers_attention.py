"""Fused attention kernels, counted by formula.

Forward: ``Q @ K.T``, a softmax, ``A @ V``. Backward: five products (the scores once more, and the
gradients of values, probabilities, queries and keys). A causal mask, other masks and dropout change
nothing: the full matrix is counted, as an array without skipping would compute it.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_effnn.hardware.tracing import tables
from lightning_effnn.hardware.tracing.handlers_mac import gemm
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Vector, handles

SOFTMAX_OPERATIONS = 5  # maximum, subtraction, exponential, sum, division
SOFTMAX_BACKWARD_OPERATIONS = 4  # product, sum, subtraction, product


@handles(*tables.ATTENTIONS)
def attention(call: Call) -> list[Piece] | None:
    """``query [N, H, L, E]``, ``key [N, H, S, E]``, ``value [N, H, S, V]``.

    Where keys and values have fewer heads than queries, each is read once for all queries that share it.
    """
    query, key, value = call.inputs[:3]
    heads, length, source, width, value_width = _extents(query, key, value)
    scores = heads * length * source
    result = call.outputs[0]
    shared = math.prod(key.shape[:-2])
    rows = heads // shared * length
    first = _axes(query, key, B=[(query, -2)], C=[(query, -1), (key, -1)], K=[(key, -2)])
    second = _axes(query, value, B=[(query, -2)], C=[(value, -2)], K=[(value, -1)])
    return [
        gemm(rows, width, source, groups=shared, weight=key, input=query, axes=first),
        Vector("softmax", [query], [], SOFTMAX_OPERATIONS * scores, scores, scores),
        gemm(rows, source, value_width, groups=shared, weight=value, output=result, axes=second),
    ]


@handles(*(f"{kernel}_backward" for kernel in tables.ATTENTIONS))
def attention_backward(call: Call) -> list[Piece] | None:
    """The same shapes; ``grad_out [N, H, L, V]``."""
    query, key, value = call.get("query"), call.get("key"), call.get("value")
    grad = call.get("grad_out", "grad_out_", "grad_output")
    heads, length, source, width, value_width = _extents(query, key, value)
    scores = heads * length * source
    axes = _axes(query, key)
    of_query, of_key, of_value = call.outputs[:3]
    return [
        gemm(length, width, source, groups=heads, weight=key, input=query, axes=axes),
        gemm(source, length, value_width, groups=heads, weight=grad, output=of_value, axes=axes),
        gemm(length, value_width, source, groups=heads, weight=value, input=grad, axes=axes),
        Vector("softmax", [query], [], SOFTMAX_BACKWARD_OPERATIONS * scores, 2 * scores, scores),
        gemm(length, source, width, groups=heads, weight=key, output=of_query, axes=axes),
        gemm(source, length, width, groups=heads, weight=query, output=of_key, axes=axes),
    ]


def _extents(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int, int, int, int]:
    return math.prod(query.shape[:-2]), query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1]


def _axes(first: Tensor, second: Tensor, **others: list[tuple[Tensor, int]]) -> dict[str, list[tuple[Tensor, int]]]:
    groups = [(t, dim) for t in (first, second) for dim in range(t.dim() - 2)]
    return {"G": groups, **others}
