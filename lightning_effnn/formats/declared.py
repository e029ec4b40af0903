"""Saying how the parameters of a module are stored, where their values alone do not tell.

A parameter whose values have been quantised in place is a float tensor like any other. The declaration is
a plain attribute of the module that owns the parameter: it goes with ``copy.deepcopy`` and ``pickle``,
never into a ``state_dict``, and changes nothing the module computes. A trace of the hardware reads it, and so does a
compressed file.

It holds while every value is one of the format's levels, and each reading looks: a network that is trained on is
float32 again, whoever wrote the weights. (A tensor's version says less: what writes through ``.data`` leaves it.) The
look ends at the first block of values that are none; where all are, it takes as long as rounding them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_effnn._torch import FakeTensor
from lightning_effnn.formats.base import NumberFormat

_ATTRIBUTE = "_effnn_formats"
_BLOCK = 1 << 18  # values looked at together: what is computed of them stays in the cache


@dataclass(frozen=True, eq=False)
class _Declaration:
    """A format, and the scale of its levels where that is a tensor: for all of them, or one a channel."""

    declared: NumberFormat
    scales: Tensor | None

    @property
    def format(self) -> NumberFormat:
        """The format with its scale."""
        if self.scales is None or self.scales.dim():
            return self.declared
        return replace(self.declared, scale=float(self.scales))  # type: ignore[call-arg]

    def holds(self, values: Tensor) -> bool:
        """Whether all values are levels; so they are where there is nothing to look at (meta tensors)."""
        if isinstance(values, FakeTensor) or values.is_meta:
            return True
        if not values.is_floating_point():
            return False
        if self.scales is not None and self.scales.dim():
            return self._holds_scaled(values)
        number_format, flat = self.format, values.reshape(-1)
        return all(
            torch.equal(number_format.quantize(block), block)
            for block in (flat[start : start + _BLOCK] for start in range(0, flat.numel(), _BLOCK))
        )

    def _holds_scaled(self, values: Tensor) -> bool:
        assert self.scales is not None
        if values.dim() != self.scales.dim():
            return False
        scales = self.scales.to(values.device, torch.float32)
        unit = replace(self.declared, scale=1.0)  # type: ignore[call-arg]
        levels = unit.quantize(values.float() / scales) * scales
        # Dividing by a scale and multiplying again rounds twice, and the parameter may have been cast since.
        return bool(torch.allclose(levels, values.float(), rtol=4 * torch.finfo(values.dtype).eps, atol=0.0))


def declare_format(module: nn.Module, name: str, number_format: NumberFormat, scales: Tensor | None = None) -> None:
    """Declare that parameter ``name`` of ``module`` is stored in ``number_format``.

    It counts as long as the values are levels of the format, see the head of this module. A second declaration
    replaces the first.

    Args:
        module: the module that owns the parameter, not a parent of it.
        name: the parameter's name in ``module``, without dots.
        number_format: how its values are stored.
        scales: in place of the format's scale: a tensor of no axes, which is only read when somebody asks; or, where
            each channel has a scale of its own, of as many axes as the parameter, of extent 1 along the others. It is
            kept, not copied.

    Raises:
        TypeError: if ``number_format`` is not a :class:`NumberFormat`.
        ValueError: if ``module`` has no such parameter.

    >>> import copy
    >>> from lightning_effnn.formats import FixedPoint
    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> _ = nn.init.constant_(model[0].weight, 3.0)
    >>> declare_format(model[0], "weight", FixedPoint(8))
    >>> declared_formats(copy.deepcopy(model))
    {'0.weight': FixedPoint(bits=8, scale=1.0, signed=True)}
    >>> _ = nn.init.constant_(model[0].weight, 3.1)
    >>> declared_formats(model)
    {}
    """
    if not isinstance(number_format, NumberFormat):
        raise TypeError(f"number_format must be a NumberFormat, got {number_format!r}")
    if module._parameters.get(name) is None:
        known = ", ".join(n for n, p in module._parameters.items() if p is not None) or "none"
        raise ValueError(f"name must be a parameter of {type(module).__name__} ({known}), got {name!r}")
    formats = getattr(module, _ATTRIBUTE, {})
    declaration = _Declaration(number_format, None if scales is None else scales.detach())
    setattr(module, _ATTRIBUTE, formats | {name: declaration})  # a shallow copy of the module keeps its own


def declared_formats(model: nn.Module) -> dict[str, NumberFormat]:
    """Return the declared format of each parameter whose values are on its levels, by qualified name.

    A module that the model holds under several names is listed under the first.

    Args:
        model: any module.
    """
    return {name: number_format for name, _, number_format in _declared(model)}


def declared_parameters(model: nn.Module) -> Iterator[tuple[Tensor, NumberFormat]]:
    """Yield each parameter whose values are on the levels of its declared format, and the format.

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
    >>> _ = nn.init.zeros_(layer.weight)
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
        for name, declaration in getattr(module, _ATTRIBUTE, {}).items():
            parameter = module._parameters.get(name)
            if parameter is not None and declaration.holds(parameter.detach()):  # it may be removed or trained since
                yield f"{prefix}.{name}".lstrip("."), parameter, declaration.format
