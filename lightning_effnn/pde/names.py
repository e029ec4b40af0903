"""What an equation may write: ``u.xx`` for a derivative, ``c.x`` for a coordinate, ``u`` itself for the value."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.pde.indices import Derivative, Index, Laplacian


def parse(name: str, coordinates: Sequence[str], field: str) -> Index:
    """Return the multi-index that a run of coordinates' names means.

    Raises:
        AttributeError: it is no such run; the message lists the coordinates.

    >>> parse("xxt", ("x", "t"), "u")
    (2, 1)
    """
    found = _split(name, tuple(coordinates))
    if found is None:
        raise AttributeError(
            f"{field}.{name}: derivatives are named by the coordinates {', '.join(coordinates)}, "
            f"for example {field}.{coordinates[0]}{coordinates[0]}"
        )
    return tuple(found.count(c) for c in coordinates)


def _split(name: str, coordinates: tuple[str, ...]) -> list[str] | None:
    if not name:
        return []
    for c in sorted(coordinates, key=len, reverse=True):
        if name.startswith(c):
            rest = _split(name[len(c) :], coordinates)
            if rest is not None:
                return [c, *rest]
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, Values):
        return value.value
    return type(value)(_plain(v) for v in value) if isinstance(value, list | tuple) else value


def _binary(name: str) -> Callable[[Any, Any], Tensor]:
    function = getattr(operator, name)
    return lambda self, other: function(self.value, _plain(other))


def _reflected(name: str) -> Callable[[Any, Any], Tensor]:
    function = getattr(operator, name)
    return lambda self, other: function(_plain(other), self.value)


class Values:
    """Something that reckons like the tensor ``value`` that it holds."""

    value: Tensor

    __add__, __radd__ = _binary("add"), _reflected("add")
    __sub__, __rsub__ = _binary("sub"), _reflected("sub")
    __mul__, __rmul__ = _binary("mul"), _reflected("mul")
    __truediv__, __rtruediv__ = _binary("truediv"), _reflected("truediv")
    __pow__, __rpow__ = _binary("pow"), _reflected("pow")
    __lt__, __le__, __gt__, __ge__ = _binary("lt"), _binary("le"), _binary("gt"), _binary("ge")

    def __neg__(self) -> Tensor:
        return -self.value

    def __abs__(self) -> Tensor:
        return self.value.abs()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [_plain(a) for a in args]
        return func(*plain, **{k: _plain(v) for k, v in (kwargs or {}).items()})


class FieldView(Values):
    """One field at a batch of points: its value, and by name its derivatives, each ``[N]``.

    Args:
        name: of the field.
        coordinates: names of the coordinates.
        get: from a multi-index or a Laplacian to that derivative ``[N]``.
    """

    def __init__(self, name: str, coordinates: Sequence[str], get: Callable[[Derivative], Tensor]) -> None:
        self._name, self._coordinates, self._get = name, tuple(coordinates), get

    @property
    def value(self) -> Tensor:  # type: ignore[override]
        """``[N]``."""
        return self._get((0,) * len(self._coordinates))

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._get(parse(name, self._coordinates, self._name))


class Coordinates:
    """Coordinates and unknown coefficients by name, each ``[N]``."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self._columns = dict(columns)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._columns:
            raise AttributeError(f"c.{name}: there is {', '.join(f'c.{n}' for n in self._columns)}")
        return self._columns[name]


def grad(u: FieldView) -> tuple[Tensor, ...]:
    """Return the derivatives of a field along each space coordinate (all but ``t``)."""
    return tuple(getattr(u, c) for c in _space(u))


def laplacian(u: FieldView) -> Tensor:
    """Return the sum of second derivatives along the space coordinates (all but ``t``).

    It is worked out as one derivative: quicker than to add up ``u.xx``, ``u.yy`` and so on.

    Raises:
        ValueError: there is no space coordinate.
    """
    space = _space(u)
    if not space:
        raise ValueError(f"laplacian of a field of {', '.join(u._coordinates)}: a space coordinate is needed")
    return u._get(Laplacian(tuple(u._coordinates.index(c) for c in space)))


def div(*fields: FieldView) -> Tensor:
    """Return the divergence of a vector of fields, one for each space coordinate (all but ``t``)."""
    space = _space(fields[0])
    if len(space) != len(fields):
        raise ValueError(f"div of {len(fields)} fields: one for each of {', '.join(space)} is needed")
    return torch.stack([getattr(u, c) for u, c in zip(fields, space, strict=True)]).sum(0)


def _space(u: FieldView) -> list[str]:
    return [c for c in u._coordinates if c != "t"]
