"""What the state of a search must be like: looked at before any of it is taken."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_AVERAGES = ("step", "exp_avg", "exp_avg_sq")
"""Of Adam, for each vector of logits."""


def check_state(state: object, own: Mapping[str, Any], options: Mapping[str, Sequence[int]]) -> None:
    """Refuse a state that is of another search, or has been changed.

    Args:
        state: as it was loaded.
        own: that of the search which is to take it, with the same parts.
        options: the bits of each choice of that search.

    Raises:
        ValueError: names the part of the state, what it is and what is needed.

    >>> from lightning_effnn.search.bits import BitSearch
    >>> search = BitSearch(torch.nn.Linear(2, 2), weights=(2, 8), activations=())
    >>> state = search.state_dict()
    >>> search.load_state_dict(state | {"errors": {"weights/weight": [0.1, 0.0]}})
    Traceback (most recent call last):
    ...
    ValueError: errors.weights/weight is the list [0.1, 0.0]: a tensor of the shape (2,) is needed
    """
    found = _mapping("the state", state)
    _check_keys("the state", found, own)
    for part in ("controller", "sensitivity", "errors", "elements"):
        _check_like(part, found[part], own[part])
    _check_optimizer(found["optimizer"], own)
    if found["cost"] is not None:
        _check_cost(found["cost"], options)
    if found["chosen"] is not None:
        _check_keys("chosen", _mapping("chosen", found["chosen"]), options)
    for name, value in _mapping("quantizers", found["quantizers"]).items():
        _check(isinstance(value, Tensor), f"quantizers.{name}", value, "a tensor")


def _check_like(where: str, value: object, own: object) -> None:
    """Refuse what is of another type, shape or length than ``own``, or has other keys."""
    if isinstance(own, Tensor):
        same = isinstance(value, Tensor) and value.shape == own.shape and _is_real(value) == _is_real(own)
        _check(same, where, value, f"a tensor of the shape {tuple(own.shape)}")
    elif isinstance(own, Mapping):
        found = _mapping(where, value)
        _check_keys(where, found, own)
        for name, inner in own.items():
            _check_like(f"{where}.{name}", found[name], inner)
    elif isinstance(own, tuple):
        for number, (item, inner) in enumerate(zip(_items(where, value, len(own)), own, strict=True)):
            _check_like(f"{where}.{number}", item, inner)
    else:
        _check(isinstance(value, int | float) and not isinstance(value, bool), where, value, "a number")


def _check_optimizer(state: object, own: Mapping[str, Any]) -> None:
    """Adam's averages and its learning rate; the other settings are the search's own."""
    found = _mapping("optimizer", state)
    _check_keys("optimizer", found, own["optimizer"])
    for group in _items("optimizer.param_groups", found["param_groups"], 1):
        _check_like("optimizer.lr", _mapping("optimizer.param_groups.0", group).get("lr"), 1.0)
    logits = [value for name, value in own["controller"].items() if name.startswith("logits.")]
    for number, averages in _mapping("optimizer.state", found["state"]).items():
        known = isinstance(number, int) and number in range(len(logits))
        _check(known, "a key of optimizer.state", number, f"a number below {len(logits)}")
        like = dict(zip(_AVERAGES, (torch.zeros((), device="cpu"), logits[number], logits[number]), strict=True))
        _check_like(f"optimizer.state.{number}", averages, like)


def _check_cost(cost: object, options: Mapping[str, Sequence[int]]) -> None:
    found = _mapping("cost", cost)
    _check_keys("cost", found, ("terms", "unit", "references"))
    references = _mapping("cost.references", found["references"])
    for name, value in references.items():
        _check_like(f"cost.references.{name}", value, 1.0)
    terms = _items("cost.terms", found["terms"])
    _check(len(terms) > 0, "cost.terms", terms, "at least one")
    for number, term in enumerate(terms):
        where = f"cost.terms.{number}"
        name, choices, table, group = _items(where, term, 4)
        read = _items(f"{where}.choices", choices)
        for choice in read:
            _check(
                isinstance(choice, str) and choice in options,
                f"{where}.choices",
                choice,
                "the name of a choice of this search",
            )
        _check_like(f"{where}.table", table, torch.empty([len(options[choice]) for choice in read], device="meta"))
        _check(
            isinstance(group, str) and group in references,
            f"{where}.group",
            group,
            "the name of a group that has a reference",
        )
        _check(isinstance(name, str), f"{where}.name", name, "a text")


def _check_keys(where: str, found: Mapping[Any, object], needed: Collection[str]) -> None:
    missing = [f"no {name!r}" for name in needed if name not in found]
    beyond = [f"{name!r}, which this search has not" for name in found if name not in needed]
    if missing or beyond:
        raise ValueError(f"{where} has {', '.join(missing + beyond)}")


def _mapping(where: str, value: object) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    raise _wrong(where, value, "a mapping")


def _items(where: str, value: object, length: int | None = None) -> Sequence[Any]:
    if isinstance(value, list | tuple) and length in (None, len(value)):
        return value
    raise _wrong(where, value, "a list" if length is None else f"a list of {length}")


def _is_real(value: Tensor) -> bool:
    return value.is_floating_point()


def _check(fits: bool, where: str, value: object, needed: str) -> None:
    if not fits:
        raise _wrong(where, value, needed)


def _wrong(where: str, value: object, needed: str) -> ValueError:
    if isinstance(value, Tensor):
        what = f"a {str(value.dtype).removeprefix('torch.')} tensor of the shape {tuple(value.shape)}"
    else:
        what = f"the {type(value).__name__} {repr(value)[:40]}"
    return ValueError(f"{where} is {what}: {needed} is needed")
