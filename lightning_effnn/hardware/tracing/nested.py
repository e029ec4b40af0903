"""Strided nested tensors: sequences of unequal length in one piece of memory, which have no sizes to ask for.

A step that treats each row alike sees all rows of all sequences at once; a product of two nested tensors is a
product for each pair of sequences.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_effnn.hardware.tracing import tables
from lightning_effnn.hardware.tracing.pieces import Call, Handler, Piece

_PAIRWISE = tables.ATTENTIONS | {"bmm", "matmul"}


def has_nested(call: Call) -> bool:
    """Whether any tensor of the call is nested."""
    return any(t.is_nested for t in (*call.inputs, *call.outputs))


def unnested(handler: Handler, call: Call) -> list[Piece] | None:
    """The pieces of a call with nested tensors.

    Args:
        handler: of the operation, written for plain tensors.
        call: what ran.
    """
    if call.name in _PAIRWISE:
        parts = [list(t.unbind()) if t.is_nested else [t] for t in call.inputs]
        results = [list(t.unbind()) if t.is_nested else [t] for t in call.outputs]
        pieces: list[Piece] = []
        for n in range(max(map(len, parts))):
            one = _with(call, [p[min(n, len(p) - 1)] for p in parts], [r[min(n, len(r) - 1)] for r in results])
            made = handler(one)
            if made is None:
                return None
            pieces += made
        return pieces
    return handler(_with(call, [_rows(t) for t in call.inputs], [_rows(t) for t in call.outputs]))


def _with(call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Call:
    changed = {id(old): new for old, new in zip(call.inputs, inputs, strict=True)}
    arguments = {name: changed.get(id(value), value) for name, value in call.arguments.items()}
    return replace(call, inputs=inputs, outputs=outputs, arguments=arguments)


def _rows(tensor: Tensor) -> Tensor:
    """All rows of a nested tensor below each other, ``[rows, last]``; its elements where rows differ in length."""
    if not tensor.is_nested:
        return tensor
    parts = tensor.detach().unbind()
    if len({part.shape[-1] for part in parts}) > 1:
        return torch.cat([part.reshape(-1) for part in parts])
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
