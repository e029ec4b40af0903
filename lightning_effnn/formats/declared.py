"""Saying how the parameters of a module are stored, where their values alone do not tell.

A parameter whose values have been quantised in place is a float tensor like any other. The declaration is
a plain attribute of the module that owns the parameter: it goes with ``copy.deepcopy`` and ``pickle``,
never into a ``state_dict``, and changes nothing the module computes. A trace of the hardware reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lightning_effnn.formats.base import NumberFormat

_ATTRIBUTE = "_effnn_formats"


def declare_format(module: nn.Module, name: str, number_format: NumberFormat) -> None:
    """Declare that parameter ``name`` of ``module`` is stored in ``number_format``.

    The declaration is believed: nothing checks it against the values, neither now nor when they change.
    A second one replaces the first.

    Args:
        module: the module that owns the parameter, not a parent of it.
        name: the parameter's name in ``module``, without dots.
        number_format: how its values are stored.

    Raises:
        TypeError: if ``number_format`` is not a :class:`NumberFormat`.
        ValueError: if ``module`` has no such parameter.

    >>> import copy
    >>> from lightning_effnn.formats import FixedPoint
    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> declare_format(model[0], "weight", FixedPoint(8))
    >>> declared_formats(copy.deepcopy(model))
    {'0.weight': FixedPoint(bits=8, scale=1.0, signed=True)}
    """
    if not isinstance(number_format, NumberFormat):
        raise TypeError(f"number_format must be a NumberFormat, got {number_format!r}")
    if module._parameters.get(name) is None:
        known = ", ".join(n for n, p in module._parameters.items() if p is not None) or "none"
        raise ValueError(f"name must be a parameter of {type(module).__name__} ({known}), got {name!r}")
    formats = getattr(module, _ATTRIBUTE, {})
    setattr(module, _ATTRIBUTE, formats | {name: number_format})  # a shallow copy of the module keeps its own


def declared_formats(model: nn.Module) -> dict[str, NumberFormat]:
    """Return the declared format of each parameter that has one, by qualified name.

    A module that the model holds under several names is listed under the first.

    Args:
        model: any module.
    """
    return {name: number_format for name, _, number_format in _declared(model)}


def declared_parameters(model: nn.Module) -> Iterator[tuple[Tensor, NumberFormat]]:
    """Yield each parameter with a declared format, and the format.

    Args:
        model: any module.
    """
    for _, parameter, number_format in _declared(model):
        yield parameter, number_format


def forget_formats(model: nn.Module) -> None:
    """Take back every declaration in ``model``; none is no error.

    Args:
        model: any module.

    >>> from lightning_effnn.formats import FixedPoint
    >>> layer = nn.Linear(2, 2)
    >>> declare_format(layer, "weight", FixedPoint(8))
    >>> forget_formats(layer)
    >>> declared_formats(layer), hasattr(layer, "_effnn_formats")
    ({}, False)
    """
    for module in model.modules():
        if hasattr(module, _ATTRIBUTE):
            delattr(module, _ATTRIBUTE)


def _declared(model: nn.Module) -> Iterator[tuple[str, Tensor, NumberFormat]]:
    for prefix, module in model.named_modules():
        for name, number_format in getattr(module, _ATTRIBUTE, {}).items():
            parameter = module._parameters.get(name)
            if parameter is not None:  # removed or replaced since
                yield f"{prefix}.{name}".lstrip("."), parameter, number_format
