"""Fused attention kernels, counted by formula.

Forward: ``Q @ K.T``, a softmax, ``A @ V``. Backward: five products (the scores once more, and the
gradients of values, probabilities, queries and keys). A causal mask, other masks and dropout change
nothing: the full matrix is counted, as an array without skipping would compute it.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_effnn.hardware.tracing.handlers_mac import gemm
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Vector, handles

SOFTMAX_OPERATIONS = 5  # maximum, subtraction, exponential, sum, division
SOFTMAX_BACKWARD_OPERATIONS = 4  # product, sum, subtraction, product

_KERNELS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


@handles(*_KERNELS, "flex_attention")
def attention(call: Call) -> list[Piece] | None:
    """``query [N, H, L, E]``, ``key [N, H, S, E]``, ``value [N, H, S, V]``."""
    query, key, value = call.inputs[:3]
    heads, length, source, width, value_width, batch = _extents(call, query, key, value)
    scores = heads * length * source
    result = call.outputs[0]
    return [
        gemm(length, width, source, groups=heads, weight=key, input=query, batch=batch),
        Vector("softmax", [query], [], SOFTMAX_OPERATIONS * scores, scores, scores),
        gemm(length, source, value_width, groups=heads, weight=value, output=result, batch=batch),
    ]


@handles(*(f"{kernel}_backward" for kernel in _KERNELS))
def attention_backward(call: Call) -> list[Piece] | None:
    """The same shapes; ``grad_out [N, H, L, V]``."""
    query, key, value = call.get("query"), call.get("key"), call.get("value")
    grad = call.get("grad_out", "grad_out_", "grad_output")
    heads, length, source, width, value_width, batch = _extents(call, query, key, value)
    scores = heads * length * source
    of_query, of_key, of_value = call.outputs[:3]
    return [
        gemm(length, width, source, groups=heads, weight=key, input=query, batch=batch),
        gemm(source, length, value_width, groups=heads, weight=grad, output=of_value, batch=batch),
        gemm(length, value_width, source, groups=heads, weight=value, input=grad, batch=batch),
        Vector("softmax", [query], [], SOFTMAX_BACKWARD_OPERATIONS * scores, 2 * scores, scores),
        gemm(length, source, width, groups=heads, weight=key, output=of_query, batch=batch),
        gemm(source, length, width, groups=heads, weight=query, output=of_key, batch=batch),
    ]


def _extents(call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int, int, int, int, str]:
    batch = "G" if any(call.tainted(t) for t in (query, key, value)) else ""
    heads = math.prod(query.shape[:-2])
    return heads, query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1], batch
