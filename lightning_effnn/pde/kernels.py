"""The two steps that networks spend their time in, on all derivatives at once, with backward passes written out.

Autograd could derive both, at three times the cost: it would keep and add up a tensor for every product. Elementwise
work is done some rows at a time, so that it stays in the processor's cache. What is written here can itself be derived.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lightning_effnn.pde.activations import Series
from lightning_effnn.pde.indices import Indices


def _product(parts: Sequence[Tensor], inner: Sequence[int], factor: int) -> Tensor:
    out = functools.reduce(operator.mul, (parts[k] for k in inner))
    return out if factor == 1 else factor * out


def _products(parts: Sequence[Tensor], terms: Sequence[tuple[int, tuple[int, ...]]]) -> dict[int, Tensor]:
    """For each order of derivative of ``f`` from the second on, the sum of products that it is multiplied by."""
    sums: dict[int, Tensor] = {}
    for factor, inner in terms:
        order = len(inner)
        if order in sums and order == 2 and factor == 1:
            sums[order].addcmul_(parts[inner[0]], parts[inner[1]])
        elif order in sums:
            sums[order] += _product(parts, inner, factor)
        elif order > 1:
            sums[order] = _product(parts, inner, factor)
    return sums


CHUNK = 40_000
"""Numbers of one derivative that are worked on together: with their kin they fit into a cache of some megabytes."""


def _chunks(parts: Tensor) -> list[tuple[int, int]]:
    rows = parts.shape[1]
    size = max(CHUNK * rows // max(parts[0].numel(), 1), 1)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _compose(inner: Sequence[Tensor], outer: Sequence[Tensor], indices: Indices, out: Tensor) -> None:
    """Write the derivatives of a composition into ``out`` ``[K, ...]``."""
    out[0] = outer[0]
    for k, terms in enumerate(indices.compositions[1:], start=1):
        torch.mul(outer[1], inner[k], out=out[k])  # a derivative of g itself is always one of the terms
        for order, product in _products(inner, terms).items():
            out[k].addcmul_(outer[order], product)


def _compose_back(
    inner: Sequence[Tensor], outer: Sequence[Tensor], above: Sequence[Tensor], indices: Indices
) -> list[Tensor]:
    """Return gradients by the derivatives of ``g`` from those by the derivatives of ``f(g)``."""
    below = [g * outer[1] for g in above]
    for k, terms in enumerate(indices.compositions[1:], start=1):
        below[0].addcmul_(above[k] * inner[k], outer[2])
        products = _products(inner, terms)
        for order, product in products.items():
            below[0].addcmul_(above[k] * product, outer[order + 1])
        weights = {order: above[k] * outer[order] for order in products}
        for factor, chosen in terms:
            for position in set(chosen) if len(chosen) > 1 else ():
                rest = list(chosen)
                rest.remove(position)
                product = _product(inner, rest, 1)
                below[position].addcmul_(weights[len(chosen)], product, value=factor * chosen.count(position))
    return below


class _Compose(Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, indices: Indices, series: Series) -> Tensor:
        out = torch.empty_like(parts)
        ctx.outer = []
        for start, stop in _chunks(parts):
            inner = parts[:, start:stop].unbind(0)
            outer = series(inner[0], indices.order + 1)
            _compose(inner, outer, indices, out[:, start:stop])
            ctx.outer.append(outer)
        ctx.save_for_backward(parts)
        ctx.indices, ctx.series = indices, series
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (parts,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will derive this too: what was kept has forgotten where it came from
            inner = parts.unbind(0)
            outer = ctx.series(inner[0], ctx.indices.order + 1)
            return torch.stack(_compose_back(inner, outer, gradient.unbind(0), ctx.indices)), None, None
        below = torch.empty_like(parts)
        for (start, stop), outer in zip(_chunks(parts), ctx.outer, strict=True):
            inner, above = parts[:, start:stop].unbind(0), gradient[:, start:stop].unbind(0)
            torch.stack(_compose_back(inner, outer, above, ctx.indices), out=below[:, start:stop])
        return below, None, None


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(parts, weight)
        out = parts @ weight.T
        if bias is not None:
            out[0] += bias
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        parts, weight = ctx.saved_tensors
        needs: tuple[bool, bool, bool] = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            gradient @ weight if needs[0] else None,
            rows.T @ parts.flatten(0, -2) if needs[1] else None,
            gradient[0].flatten(0, -2).sum(0) if needs[2] else None,
        )


def compose(parts: Tensor, indices: Indices, series: Series) -> Tensor:
    """Return derivatives ``[K, ...]`` of ``f(g)``, elementwise, from those of ``g`` (Faà di Bruno).

    Args:
        parts: of ``g``, ``[K, ...]``.
        indices: which derivatives.
        series: derivatives of ``f``.
    """
    out: Tensor = _Compose.apply(parts, indices, series)  # type: ignore[no-untyped-call]
    return out


def linear(parts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return derivatives ``[K, ..., out]`` of a linear layer's result from those of its input ``[K, ..., in]``."""
    out: Tensor = _Linear.apply(parts, weight, bias)  # type: ignore[no-untyped-call]
    return out
