"""Derivatives of smooth activations, to any order, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from numpy.polynomial import Polynomial
from torch import Tensor

Series = Callable[[Tensor, int], list[Tensor]]
"""From a value and an order to ``[f, f', ..., f^(order)]``."""


def _of_polynomials(value: Tensor, slope: Polynomial, order: int) -> list[Tensor]:
    """Derivatives of a function whose own value, put into ``slope``, gives its derivative."""
    out, current = [value], Polynomial([0.0, 1.0])
    for _ in range(order):
        current = current.deriv() * slope
        result = torch.full_like(value, current.coef[-1])
        for coefficient in current.coef[-2::-1]:  # Horner
            result = result * value + float(coefficient) if coefficient else result * value
        out.append(result)
    return out


def tanh(x: Tensor, order: int) -> list[Tensor]:
    """``tanh' = 1 - tanh^2``."""
    value = torch.tanh(x)
    if order > 3:
        return _of_polynomials(value, Polynomial([1.0, 0.0, -1.0]), order)
    first = 1 - value * value
    return _short(value, first, order, lambda: -2 * value * first, lambda: first * (4 - 6 * first))


def sigmoid(x: Tensor, order: int) -> list[Tensor]:
    """``s' = s - s^2``."""
    value = torch.sigmoid(x)
    if order > 3:
        return _of_polynomials(value, Polynomial([0.0, 1.0, -1.0]), order)
    first = value * (1 - value)
    return _short(value, first, order, lambda: first * (1 - 2 * value), lambda: first * (1 - 6 * first))


def _short(
    value: Tensor, first: Tensor, order: int, second: Callable[[], Tensor], third: Callable[[], Tensor]
) -> list[Tensor]:
    """The common orders, in as few operations as there can be."""
    out = [value, first][: order + 1]
    return out + [higher() for higher in (second, third)[: max(order - 1, 0)]]


def sin(x: Tensor, order: int) -> list[Tensor]:
    """Sine, cosine, and their negatives in turn."""
    s, c = torch.sin(x), torch.cos(x)
    return [(s, c, -s, -c)[k % 4] for k in range(order + 1)]


def cos(x: Tensor, order: int) -> list[Tensor]:
    """Cosine, sine, and their negatives in turn."""
    s, c = torch.sin(x), torch.cos(x)
    return [(c, -s, -c, s)[k % 4] for k in range(order + 1)]


def exp(x: Tensor, order: int) -> list[Tensor]:
    """Itself."""
    return [torch.exp(x)] * (order + 1)


def softplus(x: Tensor, order: int) -> list[Tensor]:
    """Derived once, a sigmoid."""
    return [F.softplus(x), *(sigmoid(x, order - 1) if order else [])]


def silu(x: Tensor, order: int) -> list[Tensor]:
    """``x`` times a sigmoid."""
    s = sigmoid(x, order)
    return [x * s[0], *(x * s[k] + k * s[k - 1] for k in range(1, order + 1))]


def gelu(x: Tensor, order: int) -> list[Tensor]:
    """``x`` times the normal distribution function, whose derivatives are Hermite polynomials times the density."""
    distribution = [torch.special.ndtr(x)]
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    hermite = [torch.ones_like(x), x]
    for k in range(order):
        distribution.append((-1) ** k * hermite[k] * density)
        hermite.append(x * hermite[k + 1] - (k + 1) * hermite[k])
    return [x * distribution[0], *(x * distribution[k] + k * distribution[k - 1] for k in range(1, order + 1))]


def power(exponent: float) -> Series:
    """Return the series of ``x ** exponent``."""

    def series(x: Tensor, order: int) -> list[Tensor]:
        out, factor, current = [], 1.0, exponent
        for _ in range(order + 1):
            out.append(torch.zeros_like(x) if factor == 0 else factor * x**current)
            factor, current = factor * current, current - 1
        return out

    return series


SERIES: dict[Any, Series] = {
    torch.tanh: tanh, torch.Tensor.tanh: tanh, F.tanh: tanh,
    torch.sigmoid: sigmoid, torch.Tensor.sigmoid: sigmoid, F.sigmoid: sigmoid,
    torch.sin: sin, torch.Tensor.sin: sin, torch.cos: cos, torch.Tensor.cos: cos,
    torch.exp: exp, torch.Tensor.exp: exp, F.softplus: softplus, F.silu: silu, F.gelu: gelu,
}  # fmt: skip
"""By the function a module calls."""

KINKED: frozenset[Any] = frozenset({
    torch.relu, torch.Tensor.relu, F.relu, F.leaky_relu, F.relu6, F.hardtanh, F.elu, F.selu, F.hardswish, F.prelu,
    torch.prelu, torch.abs, torch.Tensor.abs,
})  # fmt: skip
"""Without a second derivative everywhere."""
