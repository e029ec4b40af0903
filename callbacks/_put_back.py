"""What a module holds, put back as it was after somebody else has run the module."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Container, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_effnn.formats.tagging import aside

PutBack = Callable[[], None]

_OF_TORCH = set(vars(nn.Module())) - {"training"}
"""Where a module keeps parameters, buffers, submodules and hooks."""
_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
_NOT_THE_USERS = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "threading", "logging", "builtins")
"""Packages whose objects are no state of a module: trainers, loggers, locks."""


@contextmanager
def put_back(model: nn.Module, trained: Container[int]) -> Iterator[None]:
    """Put back whatever is written into ``model`` meanwhile, and take away what is made there.

    That is: modes, buffers and parameters, whether they are written to or replaced; attributes, and what lists,
    mappings, sets, arrays, generators of random numbers, modules and objects of the user's own classes in them hold.
    Not put back are values written into parameters that train, whose copies would double the largest part; iterators;
    datasets and loaders; files.

    Args:
        model: the module.
        trained: identities of the parameters whose values are left to an optimiser.
    """
    with aside():  # a trace is of what runs inside
        restore = _Memory(trained).of(model)
    try:
        yield
    finally:
        with aside():
            restore()


class _Memory:
    """How to put values back, each object once, whoever refers to it."""

    def __init__(self, trained: Container[int]) -> None:
        self.trained = trained
        self.seen: dict[int, Any] = {}  # the objects, so that no identity is given out again

    def of(self, value: Any) -> PutBack:
        if id(value) in self.seen:
            return _nothing
        self.seen[id(value)] = value
        if isinstance(value, Tensor):
            return _tensor(value, copied=id(value) not in self.trained)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, np.ndarray) and value.flags.writeable:
            return _array(value)
        if isinstance(value, torch.Generator):
            return _generator(value)
        if type(value) in _MAPPINGS:
            return self._mapping(value)
        if type(value) in (list, deque, set, tuple):
            return self._items(value)
        if _is_an_object_of_the_user(value):
            return self._mapping(vars(value))
        return _nothing

    def _module(self, module: nn.Module) -> PutBack:
        entries = [self._mapping(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")]
        own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
        inside = [self.of(value) for value in own.values()]

        def restore() -> None:
            for name in set(vars(module)) - set(own) - _OF_TORCH:
                del vars(module)[name]
            vars(module).update(own)
            for each in (*entries, *inside):
                each()

        return restore

    def _mapping(self, mapping: MutableMapping[Any, Any]) -> PutBack:
        before = dict(mapping)
        inside = [self.of(value) for value in before.values()]

        def restore() -> None:
            mapping.clear()
            mapping.update(before)
            for each in inside:
                each()

        return restore

    def _items(self, items: Any) -> PutBack:
        before = list(items)
        inside = [self.of(value) for value in before]

        def restore() -> None:
            if not isinstance(items, tuple):
                items.clear()
                (items.update if isinstance(items, set) else items.extend)(before)
            for each in inside:
                each()

        return restore


def _tensor(tensor: Tensor, copied: bool) -> PutBack:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_nested
    place = tensor.data
    copy = tensor.detach().clone() if copied and _can_be_written(tensor, plain) else None

    def restore() -> None:
        if plain and not tensor.is_inference() and tensor.data_ptr() != place.data_ptr():
            tensor.data = place  # some write by putting another tensor there
        if copy is not None:
            place.copy_(copy)

    return restore


def _can_be_written(tensor: Tensor, plain: bool) -> bool:
    """Whether torch lets anybody write there: not into what was made in inference mode, nor into expanded memory."""
    if tensor.is_inference():
        return False
    return not plain or all(stride or size < 2 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _array(array: np.ndarray[Any, Any]) -> PutBack:
    copy = array.copy()
    return lambda: np.copyto(array, copy)


def _generator(generator: torch.Generator) -> PutBack:
    state = generator.get_state()

    def restore() -> None:
        generator.set_state(state)

    return restore


def _is_an_object_of_the_user(value: Any) -> bool:
    package = type(value).__module__.partition(".")[0]
    return hasattr(value, "__dict__") and not (
        package in _NOT_THE_USERS or callable(value) or isinstance(value, type | Dataset | DataLoader)
    )


def _nothing() -> None:
    """There is nothing to put back."""
