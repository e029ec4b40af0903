"""Which parameters a tensor's values come from, unchanged or how changed, and along which of their axes.

A dispatch mode follows the parameters of a model through whatever is computed from them alone: views, copies, casts,
concatenations, products with scales and masks. What depends on anything else, the batch above all, is no constant,
and is not followed. Memory is known by its storage, which views share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_effnn._torch import StorageWeakRef, TorchDispatchMode, in_backward, is_composite, storage_key
from lightning_effnn.formats import NumberFormat
from lightning_effnn.quantization.products import RECURRENT, macs_of, tensors_in

_COPIES = (
    "clone", "_to_copy", "copy", "contiguous", "alias_copy", "detach_copy", "expand_copy", "lift_fresh_copy",
    "slice_copy", "_reshape_copy", "view_copy",
)  # fmt: skip
_ROWS = ("index_select", "index", "_unsafe_index", "flip", "roll", "repeat", "constant_pad_nd", "cat", "stack")
_SCALES = ("mul", "div", "neg", "where", "masked_fill", "native_dropout", "_weight_norm_interface")
"""What leaves zeros zero, and sizes but for a factor."""
_ONE_SCALED = ("div", "_weight_norm_interface", "masked_fill", "native_dropout")  # only what comes first is
_LOOKED_UP = ("index_select", "index", "_unsafe_index")


class Digit(NamedTuple):
    """A stride of memory, in bytes, along which an axis of a parameter runs, over so many places."""

    stride: int
    size: int
    axis: int


@dataclass(frozen=True, slots=True)
class Source:
    """One parameter that values come from.

    Attributes:
        parameter: its ``id``.
        digits: where its axes lie in the memory of the values; empty if that isn't known.
        scaled: whether it was multiplied, element by element.
        changed_by: the operation through which zeros and sizes are others now; ``""`` if there was none.
    """

    parameter: int
    digits: tuple[Digit, ...]
    scaled: bool = False
    changed_by: str = ""

    def axes_along(self, tensor: Tensor, dim: int) -> set[int]:
        """The parameter's axes that a dimension of a view of the values runs along."""
        size, stride = tensor.shape[dim], tensor.stride(dim) * tensor.element_size()
        return {d.axis for d in self.digits if max(d.stride, stride) < min(d.stride * d.size, stride * size)}


Sources = Mapping[int, Source]
"""By the parameter's ``id``; empty for a constant that comes from none."""
_DRAWN: Sources = MappingProxyType({})
"""Of what is drawn at random: to a product it is what a batch is, elsewhere it comes from no parameter."""


class Lineage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the parameters of a model while it is entered; what runs is not changed.

    An exception in looking at an operation is kept in :attr:`error`, and nothing is looked at any more: it must not
    reach who runs the model.

    Args:
        model: its parameters are followed; buffers and plain tensors of its modules are constants.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.error: Exception | None = None
        self.simulated = self.aside = 0  # see formats.tagging: quantisers of ours leave a weight what it is
        self._kept: dict[int, StorageWeakRef] = {}  # an address is not given out again while there is one
        self._known: dict[int, Sources] = {}
        for module in model.modules():
            for tensor in (*module._buffers.values(), *vars(module).values()):
                if isinstance(tensor, Tensor):
                    self._learn(tensor, {})
        self._own: set[int] = set()  # storages of parameters: who writes into one trains it
        held = Counter(self._key(parameter) for parameter in model.parameters())
        for parameter in model.parameters():
            key = self._key(parameter)
            if key is not None:
                self._own.add(key)
            if held[key] > 1:  # several in one piece of memory: their modules' classes tell what they are
                continue
            places = enumerate(zip(parameter.stride(), parameter.shape, strict=True))
            width = parameter.element_size()
            digits = tuple(Digit(stride * width, size, axis) for axis, (stride, size) in places if size > 1)
            self._learn(parameter, {id(parameter): Source(id(parameter), digits)})

    def sources(self, tensor: Tensor) -> Sources | None:
        """The parameters that ``tensor`` comes from; ``None`` if it is no constant."""
        state = self._state(tensor)
        return None if state is _DRAWN else state

    def _state(self, tensor: Tensor) -> Sources | None:
        key = self._key(tensor)
        return None if key is None else self._known.get(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` unchanged and follow what it does."""
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None and is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if schema is None or self.error is not None:
            return result
        try:
            with torch.no_grad():
                self.look(func, schema.name.partition("::")[2].rstrip("_"), args, kwargs, result)
        except Exception as error:
            self.error = error
        return result

    def tag(self, tensor: Tensor, number_format: NumberFormat) -> None:
        """Told how a tensor is stored, which changes nothing here."""

    def multiplied(self, name: str, macs: int, args: tuple[Any, ...]) -> None:
        """Told of every product."""

    def copied(self, source: Tensor, result: Tensor) -> None:
        """Told of every copy."""

    def looked_up(self, table: Tensor) -> None:
        """Told of every table of rows that are looked up."""

    def look(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow what one operation did.

        Args:
            func, args, kwargs, result: of its call.
            name: without namespace, overload and the underscore of what works in place.
        """
        if func.is_view or self.aside or in_backward():
            return
        macs = 0 if self.simulated else macs_of(func, name, args, kwargs, result)
        if macs or name in RECURRENT:
            self.multiplied(name, macs, args)
        if name in ("embedding", "_embedding_bag", "_embedding_bag_forward_only"):
            self.looked_up(args[0])
        inputs = list(tensors_in((args, kwargs)))
        if inputs and (name in _COPIES + _ROWS or self.simulated):
            source = inputs[1] if name == "copy" else inputs[0]
            for tensor in tensors_in(result):
                self.copied(source, tensor)
        made = self._made(func, name, bool(macs), args, inputs)
        seen = {self._key(tensor) for tensor in inputs}
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        written = {
            self._key(value)
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for value in [named.get(argument.name)]
            if isinstance(value, Tensor)
        }
        for tensor in tensors_in(result):
            key = self._key(tensor)
            if key is None or key in self._own or (key in seen and key not in written):
                continue  # a parameter stays itself; what shares memory is a view
            sources = made(tensor)
            if sources is None:
                self._known.pop(key, None)
            else:
                self._known[key] = sources

    def _made(
        self, func: Any, name: str, multiplies: bool, args: tuple[Any, ...], inputs: list[Tensor]
    ) -> Callable[[Tensor], Sources | None]:
        """What each result comes from."""
        drawn = torch.Tag.nondeterministic_seeded in func.tags and name != "native_dropout"
        if not inputs or name.endswith("_like") or name.startswith("new_"):
            return lambda result: _DRAWN if drawn else {}
        states = [self._state(tensor) for tensor in inputs]
        if name in _LOOKED_UP and states[0] is not None and inputs[0].dim() > 2:
            # Matrices taken from a stack of them are weights, by whatever index; rows of a table are activations.
            return lambda result: self._carried(name, args, inputs[:1], states[:1], result)
        if self.simulated:
            return lambda result: self._rounded(inputs, states, result)
        if any(state is None for state in states) or name == "embedding":
            return lambda result: None
        random = any(state is _DRAWN for state in states)
        if multiplies and random:
            return lambda result: None
        if drawn or (random and not any(states)):
            return lambda result: _DRAWN
        if name in _COPIES:
            return lambda result: self._carried(name, args, inputs[-1:], states[-1:], result)
        if name in _ROWS:
            return lambda result: self._carried(name, args, inputs, states, result)
        if name in _SCALES:
            return lambda result: self._scaled(name, inputs, states, result)
        if multiplies:
            return lambda result: {}  # another matrix than its factors
        changed = _merged(_changed(state, name) for state in states)
        return lambda result: changed

    def _carried(
        self, name: str, args: tuple[Any, ...], inputs: list[Tensor], states: list[Sources | None], result: Tensor
    ) -> Sources:
        along = int(args[1]) if name == "stack" and len(args) > 1 else 0

        def place(tensor: Tensor) -> Callable[[int], int]:
            if name == "stack":
                return lambda dim: dim + (dim >= along % result.dim())
            return lambda dim: dim + result.dim() - tensor.dim()

        return _merged(
            {key: _moved(source, tensor, result, place(tensor)) for key, source in (state or {}).items()}
            for tensor, state in zip(inputs, states, strict=True)
        )

    def _rounded(self, inputs: list[Tensor], states: list[Sources | None], result: Tensor) -> Sources | None:
        """What is rounded is what it was, whatever its scale comes from."""
        pairs = zip(inputs, states, strict=True)
        whole = [(tensor, state) for tensor, state in pairs if state and tensor.shape == result.shape]
        return (
            _merged(
                {key: _moved(source, tensor, result, lambda dim: dim) for key, source in state.items()}
                for tensor, state in whole
            )
            or None
        )

    def _scaled(self, name: str, inputs: list[Tensor], states: list[Sources | None], result: Tensor) -> Sources:
        parts: list[Sources] = []
        for number, (tensor, state) in enumerate(zip(inputs, states, strict=True)):
            whole = tensor.numel() == result.numel() and 0 not in tensor.stride() and tensor.dtype != torch.bool
            if whole and not (number and name in _ONE_SCALED):
                moved = {
                    key: _moved(source, tensor, result, lambda dim, t=tensor: dim + result.dim() - t.dim())  # type: ignore[misc]
                    for key, source in (state or {}).items()
                }
                parts.append({key: replace(source, scaled=True) for key, source in moved.items()})
            else:
                parts.append(_changed(state, name))
        return _merged(parts)

    def _learn(self, tensor: Tensor, sources: Sources) -> None:
        key = self._key(tensor)
        if key is not None:
            self._known[key] = sources

    def _key(self, tensor: Tensor) -> int | None:
        """What is the same for tensors in the same memory; ``None`` for those that have none of their own."""
        try:
            key, storage = storage_key(tensor)
        except (NotImplementedError, RuntimeError, AttributeError):  # functorch's wrappers, packed layouts
            return None
        self._kept.setdefault(key, StorageWeakRef(storage))  # type: ignore[no-untyped-call]
        return key


def followed(module: nn.Module, name: str) -> tuple[Tensor, Sources]:
    """The tensor that a parametrization computes as ``module.name``, and the parameters that it comes from.

    Args:
        module: owns the parametrization; it is left as it was.
        name: of the parametrized attribute.
    """
    modes = [(m, m.training) for m in module.modules()]
    lineage = Lineage(module)
    try:
        module.eval()  # spectral norm estimates its scale anew in train mode
        with torch.no_grad(), lineage:
            tensor = getattr(module, name)
    finally:
        for part, mode in modes:
            part.training = mode
    return tensor, lineage.sources(tensor) or {}


def _moved(source: Source, tensor: Tensor, result: Tensor, place: Callable[[int], int]) -> Source:
    """A source of a view, where its dimensions are those of ``result`` that ``place`` says."""
    digits = []
    for dim, size in enumerate(tensor.shape):
        at, stride = place(dim), tensor.stride(dim) * tensor.element_size()
        if size < 2 or not stride or not 0 <= at < result.dim():
            continue
        width = result.stride(at) * result.element_size()
        for digit in source.digits:
            low, high = max(digit.stride, stride), min(digit.stride * digit.size, stride * size)
            if low < high:
                digits.append(Digit(width * low // stride, -(-high // low), digit.axis))
    return replace(source, digits=tuple(digits))


def _changed(state: Sources | None, name: str) -> Sources:
    return {key: replace(s, digits=(), changed_by=s.changed_by or name) for key, s in (state or {}).items()}


def _merged(parts: Iterable[Sources]) -> Sources:
    """All sources; of one that comes in several ways, the least changed, or the first."""
    merged: dict[int, Source] = {}
    for part in parts:
        for key, source in part.items():
            if key not in merged or _rank(source) < _rank(merged[key]):
                merged[key] = source
    return merged


def _rank(source: Source) -> int:
    return 2 if source.changed_by else int(source.scaled)
