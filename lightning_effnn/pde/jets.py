"""Values that carry their derivatives: forward Taylor mode through the modules people write.

A :class:`Jet` goes through a network's own ``forward`` in place of a tensor, whatever that does, as long as it is made
of the functions listed here: linear layers, smooth activations, sums, products, concatenations, slices. Each is one
operation on all derivatives together, where nested reverse mode would build graphs of graphs. Anything else raises
:class:`NoRule`, upon which the caller falls back to automatic differentiation.

Source: Griewank and Walther (2008), "Evaluating Derivatives", chapter 13; for networks, Li et al. (2024), "Forward
Laplacian", arXiv 2307.08214, is the case of one sum of second derivatives.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_effnn.pde import kernels
from lightning_effnn.pde.activations import KINKED, SERIES, Series, power
from lightning_effnn.pde.indices import Indices


class NoRule(TypeError):
    """A function that has no rule for derivatives here."""


class NotSmooth(ValueError):
    """A function that lacks a derivative which was asked for."""


@dataclass
class Entry:
    """One use of parameters: by how its result changes with them.

    Attributes:
        kind: ``"linear"`` (weight ``[out, in]``, and bias), ``"lookup"`` (a table ``[rows, features]``), or ``"own"``
            (a parameter, copied for each row of the batch).
        parameters: their tensors, of ``"linear"`` the weight and the bias or None.
        inputs: jets that the parameters are multiplied by: ``[K, N, in]``, or weights ``[K, N, neighbours]``.
        rows: of a lookup, the table's rows ``[N, neighbours]``.
        output: where gradients are taken: ``[K, N, out]``, or ``[N, ...]`` for ``"own"``.
    """

    kind: str
    parameters: tuple[Tensor | None, ...]
    output: Tensor
    inputs: Tensor | None = None
    rows: Tensor | None = None


@dataclass
class Tape:
    """Every use of parameters on the way, for :mod:`~lightning_effnn.pde.jacobian`."""

    entries: list[Entry] = field(default_factory=list)


class Jet:
    """A batch with some of its partial derivatives.

    Args:
        parts: ``[K, N, ...]``: the derivative of each of the ``N`` rows for each of the ``K`` indices, values first.
        indices: which derivatives.
        tape: where uses of parameters are noted, or None.

    >>> points = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    >>> x = Jet.of_points(points, Indices.closure(1, [(2,)]))
    >>> (torch.sin(3 * x)).parts[2] + 9 * torch.sin(3 * points)  # the second derivative
    tensor([[0.],
            [0.]], dtype=torch.float64)
    """

    def __init__(self, parts: Tensor, indices: Indices, tape: Tape | None = None) -> None:
        self.parts, self.indices, self.tape = parts, indices, tape

    @classmethod
    def of_points(cls, points: Tensor, indices: Indices, tape: Tape | None = None) -> Jet:
        """Return coordinates ``[N, d]`` with their own derivatives: ones and zeros."""
        parts = points.new_zeros(len(indices), *points.shape)
        parts[0] = points
        for axis in range(indices.dim):
            unit = tuple(int(k == axis) for k in range(indices.dim))
            if unit in indices.position:
                parts[indices.position[unit], :, axis] = 1
        return cls(parts, indices, tape)

    def new(self, parts: Tensor) -> Jet:
        """Return another batch with the same derivatives."""
        return Jet(parts, self.indices, self.tape)

    @property
    def value(self) -> Tensor:
        """``[N, ...]``."""
        return self.parts[0]

    @property
    def shape(self) -> torch.Size:
        """Of the values."""
        return self.parts.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.parts.dtype

    @property
    def device(self) -> torch.device:
        """Of the values."""
        return self.parts.device

    @property
    def ndim(self) -> int:
        """Of the values."""
        return self.parts.ndim - 1

    def dim(self) -> int:
        """Of the values."""
        return self.parts.ndim - 1

    def size(self, dim: int | None = None) -> Any:
        """Of the values."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Tensor's methods, where there is a rule for them."""
        function = getattr(Tensor, name, None)
        if name.startswith("_") or not callable(function):
            raise AttributeError(name)
        return functools.partial(_apply, function, self)

    def __getitem__(self, index: Any) -> Jet:
        return _getitem(self, index)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(func, *args, **(kwargs or {}))


def compose(jet: Jet, series: Series) -> Jet:
    """Return ``f`` of a jet, elementwise, given the derivatives of ``f`` (Faà di Bruno)."""
    return jet.new(kernels.compose(jet.parts, jet.indices, series))


def multiply(a: Any, b: Any) -> Jet:
    """Return a product of jets, or of a jet and a tensor or number that does not depend on the coordinates."""
    if not isinstance(a, Jet):
        a, b = b, a
    assert isinstance(a, Jet)
    if not isinstance(b, Jet):
        return a.new(a.parts * _own(b, a))
    first, second = a.parts.unbind(0), b.parts.unbind(0)
    out = []
    for terms in a.indices.products:
        products = (first[i] * second[j] if factor == 1 else factor * first[i] * second[j] for factor, i, j in terms)
        out.append(functools.reduce(operator.add, products))
    return a.new(torch.stack(out))


def lookup(table: Tensor, rows: Tensor, weights: Jet) -> Jet:
    """Return weighted sums of a table's rows.

    Args:
        table: ``[T, F]``.
        rows: ``[N, J]``, of integers.
        weights: of those rows, a jet ``[N, J]``.

    Returns:
        A jet ``[N, F]``.
    """
    out = torch.einsum("knj,njf->knf", weights.parts, table[rows])
    if weights.tape is not None and table.requires_grad:
        weights.tape.entries.append(Entry("lookup", (table,), out, weights.parts.detach(), rows))
    return weights.new(out)


def _own(value: Any, jet: Jet) -> Any:
    """Return a tensor that a jet meets; a parameter is copied for each row, so that each has a gradient of its own."""
    if not isinstance(value, Tensor):
        return value
    if jet.tape is None or not value.requires_grad:
        return value
    if not value.is_leaf or value.ndim > jet.ndim - 1:
        raise NoRule("arithmetic of a jet with a tensor that was computed from parameters")
    copies = value.expand(jet.shape[0], *[1] * (jet.ndim - 1 - value.ndim), *value.shape)
    copies = copies.clone()
    jet.tape.entries.append(Entry("own", (value,), copies))
    return copies


def _linear(x: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    if not isinstance(x, Jet):
        raise NoRule("a linear layer whose weight depends on the coordinates")
    batch = x.shape[:-1]
    out = kernels.linear(x.parts, weight, bias)
    tape = x.tape
    if tape is not None and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        if len(batch) != 1 or not weight.is_leaf:
            raise NoRule("a linear layer on more than two axes, or with a computed weight")
        tape.entries.append(Entry("linear", (weight, bias), out, x.parts.detach()))
    return x.new(out)


def _add(a: Any, b: Any, *, alpha: float = 1) -> Jet:
    if alpha != 1:
        b = b * alpha
    if isinstance(a, Jet) and isinstance(b, Jet):
        return a.new(a.parts + b.parts)
    if not isinstance(a, Jet):
        a, b = b, a
    value = a.parts[0] + _own(b, a)
    assert isinstance(a, Jet)
    return a.new(torch.cat([value[None], a.parts[1:].expand(-1, *value.shape)]))


def _negative(a: Jet) -> Jet:
    return a.new(-a.parts)


def _subtract(a: Any, b: Any, *, alpha: float = 1) -> Jet:
    if alpha != 1:
        b = b * alpha
    if isinstance(a, Jet) and isinstance(b, Jet):
        return a.new(a.parts - b.parts)
    return _add(_negative(a), b).__neg__() if isinstance(a, Jet) else _add(_negative(b), a)


def _divide(a: Any, b: Any) -> Jet:
    if not isinstance(b, Jet):
        out: Jet = a.new(a.parts / _own(b, a))
        return out
    return multiply(a, compose(b, power(-1.0)))


def _power(a: Any, exponent: Any) -> Jet:
    if not isinstance(a, Jet) or isinstance(exponent, Tensor | Jet):
        raise NoRule("an exponent that is a tensor")
    return compose(a, power(float(exponent)))


def _getitem(x: Jet, index: Any) -> Jet:
    index = index if isinstance(index, tuple) else (index,)
    first = index[0]
    if not (first is Ellipsis or first == slice(None)):
        raise NoRule("indexing along the batch")
    return x.new(x.parts[(slice(None), *index)] if first is not Ellipsis else x.parts[index])


def _cat(tensors: Any, dim: int = 0) -> Jet:
    jet = next(t for t in tensors if isinstance(t, Jet))
    if dim % jet.ndim == 0:
        raise NoRule("concatenation along the batch")
    constants = (t.parts if isinstance(t, Jet) else _constant(t, jet).parts for t in tensors)
    return jet.new(torch.cat(list(constants), dim=dim % jet.ndim + 1))


def _constant(value: Tensor, like: Jet) -> Jet:
    parts = value.new_zeros(len(like.indices), *value.shape)
    parts[0] = value
    return like.new(parts)


def _same(x: Jet, *args: Any, **kwargs: Any) -> Jet:
    return x


def _dropout(x: Jet, p: float = 0.5, training: bool = True, inplace: bool = False) -> Jet:
    if training and p:
        raise NoRule("dropout in training")
    return x


RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear, F.dropout: _dropout, torch.cat: _cat, torch.concat: _cat, Tensor.__getitem__: _getitem,
    Tensor.contiguous: _same, Tensor.clone: _same, Tensor.to: _same, Tensor.float: _same, Tensor.double: _same,
}  # fmt: skip
for _names, _rule in (
    (("add", "__add__", "__radd__"), _add), (("sub", "subtract", "__sub__"), _subtract),
    (("mul", "multiply", "__mul__", "__rmul__"), multiply),
    (("div", "divide", "true_divide", "__truediv__"), _divide), (("neg", "negative", "__neg__"), _negative),
    (("pow", "__pow__"), _power), (("square",), lambda x: multiply(x, x)),
):  # fmt: skip
    for _name in _names:
        for _owner in (torch, Tensor):
            if hasattr(_owner, _name):
                RULES[getattr(_owner, _name)] = _rule
RULES[Tensor.__rsub__] = lambda a, b: _subtract(b, a)
RULES[Tensor.__rtruediv__] = RULES[Tensor.__rdiv__] = lambda a, b: _divide(b, a)


def _apply(function: Any, *args: Any, **kwargs: Any) -> Any:
    if function in RULES:
        return RULES[function](*args, **kwargs)
    name = getattr(function, "__name__", str(function))
    if function in SERIES:
        options = [*args[1:], *(value for key, value in kwargs.items() if key != "inplace")]
        if options not in ([], ["none"], [1.0, 20.0]):  # of gelu and softplus, as they are by default
            raise NoRule(f"{name} with options {options}")
        return compose(args[0], SERIES[function])
    if function in KINKED:
        jet = next(a for a in args if isinstance(a, Jet))
        if jet.indices.order > 1:
            raise NotSmooth(
                f"the field has {name}, which has no second derivative: use tanh, sin, silu, gelu or softplus"
            )
    raise NoRule(f"no rule for {name}")


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)
    return lambda self, *args: _apply(function, self, *args)


for _name in ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__",
              "__neg__", "__pow__"):  # fmt: skip
    setattr(Jet, _name, _operator(_name))
