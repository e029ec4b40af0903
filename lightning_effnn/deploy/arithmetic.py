"""A prepared model computed with integers, in the order and precision of a runtime's kernels.

Sums of products of levels are integers, exact in whatever order they are added. What is left to chance in floating
point, to which of two levels a value halfway goes, is decided by the last bit of one multiplication a number: it is
the kernels' own here. A network of fifty layers differs from itself by percents otherwise, batch of one or of many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from lightning_effnn.deploy.layers import LayerQuantizer
from lightning_effnn.deploy.levels import bytes_of, is_cut_by_rounding, quantizer_at
from lightning_effnn.deploy.operations import is_global, kind

_EXACT = 2**24
"""Up to here float32 holds every integer."""


@dataclass(frozen=True)
class Levels:
    """Values that are integers times a scale.

    Attributes:
        integers: float32, of any shape, whole numbers.
        scale: float32 without axes.
        zero: the byte that stands for zero.
    """

    integers: Tensor
    scale: Tensor
    zero: int

    @property
    def floats(self) -> Tensor:
        """The values."""
        return self.integers * self.scale


@dataclass(frozen=True)
class Pending:
    """What a kernel has summed, and hasn't rounded yet.

    Attributes:
        by: gives the values divided by a scale.
        floats: gives the values.
    """

    by: Callable[[Tensor], Tensor]
    floats_of: Callable[[], Tensor]

    @property
    def floats(self) -> Tensor:
        """The values."""
        return self.floats_of()


class IntegerArithmetic(fx.Interpreter):
    """Runs the graph of a prepared model as onnxruntime does on a CPU with fused multiplication and addition."""

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node: a tensor, :class:`Levels` or :class:`Pending`."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, LayerQuantizer):
            return module.integers(*args), args[1]
        quantizer = quantizer_at(n, self.module)
        if quantizer is not None:
            zero, low, high = bytes_of(quantizer, n)
            scale = quantizer.step().detach()
            value = args[0].by(scale) if isinstance(args[0], Pending) else _floats(args[0]) / scale
            return Levels(value.round().clamp(low - zero, high - zero), scale, zero)
        if kind(n) == "move" and isinstance(args[0], Levels):
            moved = n.target(args[0].integers, *args[1:], **kwargs)  # type: ignore[operator]
            return replace(args[0], integers=moved)
        if kind(n) == "limit" and is_cut_by_rounding(n, self.module):
            return args[0]
        if n.op == "call_function":
            return self._operation(n, args, kwargs)
        return map_aggregate(args[0], _floats) if n.op == "output" else super().run_node(n)

    def _operation(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sort = kind(node)
        if sort in ("convolution", "linear") and isinstance(args[0], Levels) and isinstance(args[1], tuple):
            return _layer(node, *args, **kwargs)
        joined = args[:2] if sort in ("add", "mul", "matmul") else args[:1]
        summed = sort in _JOINS and (sort != "average" or is_global(node))
        if summed and all(isinstance(value, Levels) for value in joined):
            return _JOINS[sort](*joined)
        return node.target(*map_aggregate(args, _floats), **map_aggregate(kwargs, _floats))  # type: ignore[operator]


def _floats(value: Any) -> Any:
    return value.floats if isinstance(value, Levels | Pending) else value


def _layer(
    node: fx.Node, x: Levels, weights: tuple[Any, ...], bias: Tensor | None = None, *settings: Any, **kwargs: Any
) -> Pending:
    """Sums of a convolution or a linear layer, the bias among them where it is an integer."""
    codes, step, counts, _ = weights
    wide = codes.flatten(1).abs().sum(1, dtype=torch.int64).max() * 255
    most = int(wide) + (0 if counts is None else int(counts.abs().max()))
    dtype = torch.float32 if most < _EXACT else torch.float64
    channels = [-1, *[1] * (codes.dim() - 2)]
    sums = node.target(x.integers.to(dtype), codes.to(dtype), None, *settings, **kwargs)  # type: ignore[operator]
    if counts is not None:
        sums = sums + counts.to(dtype).view(channels)
    sums, unit = sums.float(), x.scale * step
    unit = unit.view(channels) if unit.dim() else unit
    rest = bias.view(channels) if bias is not None and counts is None else None

    def floats() -> Tensor:
        products: Tensor = sums * unit
        return products if rest is None else products + rest

    return Pending(lambda scale: sums * (unit / scale) if rest is None else floats() / scale, floats)


def _add(one: Levels, other: Levels) -> Pending:
    """A sum, with the zero points moved to the end, and each product added to what is there in one rounding."""

    def by(scale: Tensor) -> Tensor:
        mine, theirs = one.scale / scale, other.scale / scale
        start = -(mine * one.zero + theirs * other.zero)
        first = _fused(one.integers + one.zero, mine, start)
        return _fused(other.integers + other.zero, theirs, first)

    return Pending(by, lambda: one.floats + other.floats)


def _fused(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """``x * factor + addend``, rounded once."""
    found: Tensor = (x.double() * factor.double() + addend.double()).float()
    return found


def _multiply(one: Levels, other: Levels) -> Pending:
    product = one.integers * other.integers
    return Pending(lambda scale: product * (one.scale * other.scale / scale), lambda: one.floats * other.floats)


def _matmul(one: Levels, other: Levels) -> Pending:
    sums = (one.integers.double() @ other.integers.double()).float()
    unit = one.scale * other.scale
    return Pending(lambda scale: sums * (unit / scale), lambda: sums * unit)


def _average(x: Levels) -> Pending:
    sums, count = x.integers.sum((2, 3), keepdim=True), x.integers.shape[2] * x.integers.shape[3]
    return Pending(lambda scale: sums * (x.scale / (scale * count)), lambda: x.floats.mean((2, 3), keepdim=True))


_JOINS: dict[str, Callable[..., Pending]] = {
    "add": _add,
    "mul": _multiply,
    "matmul": _matmul,
    "average": _average,
}


def compute(network: fx.GraphModule, inputs: tuple[Any, ...]) -> Any:
    """Return what the graph of a prepared model returns for ``inputs``, computed with integers, without gradients."""
    with torch.no_grad():
        return IntegerArithmetic(network).run(*inputs, enable_io_processing=True)
