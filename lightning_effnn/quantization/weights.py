"""Which parameters are weights, beyond what their classes tell: said by the user, or seen in a run.

What is known of a parameter is a plain attribute of the module that owns it: it goes with ``copy.deepcopy`` and
``pickle``, never into a ``state_dict``, and changes nothing the module computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_ATTRIBUTE = "_effnn_weights"
_OF_CLASSES: WeakKeyDictionary[type[nn.Module], dict[str, WeightUse]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class WeightUse:
    """What a parameter is to the products that read it.

    Attributes:
        channel: which of its axes are the output channels; ``None`` if it has none, or it could not be told.
        macs: multiply-accumulates with it in the run in which it was seen; 0 if it was not, or is only looked up.
        reason: why it is left alone; ``""`` if it is not.
        takes_input: whether it is multiplied with what goes into the module that owns it.
        declared: whether the user said so.
    """

    channel: int | None
    macs: int = 0
    reason: str = ""
    takes_input: bool = True
    declared: bool = False


def declare_weight(owner: nn.Module | type[nn.Module], name: str = "weight", *, channel: int | None) -> None:
    """Say that a parameter is a weight, to be pruned and quantised like those of known classes.

    For what no class tells and no example batch shows, and where the reading of a run is to be overruled.

    Args:
        owner: the module that owns the parameter; or a class: then it holds for all of its modules, and for those of
            its subclasses.
        name: the parameter's name in the module, without dots.
        channel: which of its axes are the output channels; all others are summed over. ``None`` if it has none: it
            then gets one scale where others have one a channel.

    Raises:
        TypeError: if ``owner`` is neither a module nor a class of modules.
        ValueError: if a module has no such floating-point parameter, or that has no such axis.

    >>> import torch
    >>> from lightning_effnn.quantization import weight_sites
    >>> class Mix(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.matrix = nn.Parameter(torch.randn(4, 8))  # y = x @ matrix
    >>> declare_weight(Mix, "matrix", channel=1)
    >>> [(site.name, site.axis) for site in weight_sites(nn.Sequential(Mix()))]
    [('0.matrix', 1)]
    """
    use = WeightUse(channel, declared=True)
    if isinstance(owner, type) and issubclass(owner, nn.Module):
        _OF_CLASSES[owner] = _OF_CLASSES.get(owner, {}) | {name: use}
        return
    if not isinstance(owner, nn.Module):
        raise TypeError(f"owner must be a module or a class of modules, got {owner!r}")
    parameter = owner._parameters.get(name)
    if parameter is None or not parameter.is_floating_point():
        known = ", ".join(n for n, p in owner._parameters.items() if p is not None and p.is_floating_point()) or "none"
        raise ValueError(f"name must be a floating-point parameter of {type(owner).__name__} ({known}), got {name!r}")
    if channel is not None and not -parameter.dim() <= channel < parameter.dim():
        raise ValueError(
            f"channel must be an axis of {name}, of shape {tuple(parameter.shape)}, or None, got {channel}"
        )
    note_use(owner, name, use)


def uses_of(module: nn.Module) -> dict[str, WeightUse]:
    """What is known of the parameters that ``module`` itself owns, by name."""
    found: dict[str, WeightUse] = {}
    for kind in reversed(type(module).__mro__):
        found |= _OF_CLASSES.get(kind, {})
    found |= module.__dict__.get(_ATTRIBUTE, {})
    return {name: use for name, use in found.items() if module._parameters.get(name) is not None}


def note_use(module: nn.Module, name: str, use: WeightUse) -> None:
    """Keep what is known of a parameter; a shallow copy of the module keeps its own."""
    module.__dict__[_ATTRIBUTE] = module.__dict__.get(_ATTRIBUTE, {}) | {name: use}


def noted_uses(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What :func:`note_use` has kept in ``model``, as plain values by qualified name: for a checkpoint."""
    return {
        f"{prefix}.{name}".lstrip("."): asdict(use)
        for prefix, module in model.named_modules()
        for name, use in module.__dict__.get(_ATTRIBUTE, {}).items()
    }


def restore_uses_(model: nn.Module, noted: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep again what :func:`noted_uses` returned; what the model has no parameter for is passed over."""
    modules = dict(model.named_modules())
    for qualified, values in noted.items():
        owner, _, name = qualified.rpartition(".")
        if owner in modules:
            note_use(modules[owner], name, WeightUse(**values))


def forget_weights(model: nn.Module) -> None:
    """Take back what was declared for modules of ``model``, or seen in them; what was said of classes stays."""
    for module in model.modules():
        module.__dict__.pop(_ATTRIBUTE, None)
