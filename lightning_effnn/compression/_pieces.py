"""Large tensors, a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_PIECE = 1 << 17
"""Elements worked on at a time on a processor: they and what is made of them stay in its cache."""


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same elements of tensors of one shape, few enough for a processor's cache.

    Where a tensor lies in memory otherwise than the first, or on another kind of device, it is all one piece.

    >>> [len(a) for a, b in pieces(torch.zeros(400, 400), torch.zeros(400, 400))]
    [131072, 28928]
    """
    first = tensors[0]
    if any(t.stride() != first.stride() for t in tensors) or not _dense(first):
        yield tensors
        return
    flat = [t.as_strided((t.numel(),), (1,)) for t in tensors]
    if first.numel() <= _PIECE or first.device.type != "cpu":
        yield tuple(flat)
        return
    yield from zip(*(torch.split(t, _PIECE) for t in flat), strict=True)


def _dense(tensor: Tensor) -> bool:
    """Whether its elements fill one stretch of memory, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def sample(tensor: Tensor, most: int) -> Tensor:
    """About so many elements, evenly spread, in whatever order; all of a tensor that has no more."""
    flat = tensor.as_strided((tensor.numel(),), (1,)) if _dense(tensor) else tensor.reshape(-1)
    step = max(1, flat.numel() // most)
    while step > 1 and any(math.gcd(step, size) > 1 for size in tensor.shape):
        step += 1  # a step that divides an axis would see a part of the channels only
    return flat[::step]
