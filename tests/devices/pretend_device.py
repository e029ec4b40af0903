"""A device that computes on the CPU and is as strict as an accelerator about where tensors lie.

``torch.device("pretend")`` is a device of its own to torch: tensors say that they lie there, what meets a tensor of
the CPU is refused, generators have to be there too, ``numpy()`` is refused, and the backward pass runs in a thread of
its own. Values are right. As on an accelerator, a CPU tensor of no axes goes along with operations by element, and
CPU tensors may be indices.

Torch learns of the device when this is imported, which has to be before the first backward pass of the process.
"""

from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
_MOVES = {"copy_", "_to_copy", "_copy_from"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_SCALARS = {"masked_fill", "masked_fill_", "fill", "fill_"}


class PretendTensor(Tensor):
    """A tensor that lies on the pretended device; ``inner`` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendTensor":
        wrapper = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=torch.device(NAME, 0)
        )
        wrapper.inner = inner
        return wrapper

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner!r} on {NAME}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)  # files are read onto the CPU

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__set__:
            return _set_data(*args)
        if func in (Tensor.__getitem__, Tensor.__setitem__):  # torch would ask nobody to make indices of a list
            args = (args[0], _with_tensors(args[1]), *args[2:])
        if func in (Tensor.tolist, Tensor.new_tensor):
            return _moved(func(args[0].inner, *args[1:], **(kwargs or {})), args[0].device)
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _refuse_mixed(func, args, kwargs or {})
        return _run(func, args, kwargs or {}, pretended=True)


class PretendGenerator(torch.Generator):
    """A generator that lies where it was asked for; torch itself takes it for one of the CPU."""

    known: ClassVar[WeakValueDictionary[int, "PretendGenerator"]] = WeakValueDictionary()

    def __new__(cls, device: Any = "cpu") -> "PretendGenerator":
        generator = super().__new__(cls)
        generator.place = torch.device(device)
        cls.known[generator._cdata] = generator
        return generator

    @property
    def device(self) -> torch.device:
        return self.place


class _Module:
    """What torch asks a device's module for."""

    generator: ClassVar[torch.Generator] = torch.Generator()

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        self.generator.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _refuse_mixed(func: Any, args: Any, kwargs: Any) -> None:
    name = func._schema.name.partition("::")[2]
    if name in _MOVES:
        return
    looked_at = (args[0], args[2:], kwargs) if name in _INDEXED else (args, kwargs)
    tensors = [t for t in tree_leaves(looked_at) if isinstance(t, Tensor)]
    along = torch.Tag.pointwise in func.tags or name in _INDEXED | _SCALARS
    written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    for tensor in tensors:
        if not isinstance(tensor, PretendTensor) and (tensor.dim() or not along or (written and tensor is args[0])):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and "
                f"{tensor.device}! (when calling {func})"
            )


def _run(func: Any, args: Any, kwargs: Any, pretended: bool) -> Any:
    """The operation on the values; what comes out lies where it was asked for, by default where its input does."""
    kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        pretended = torch.device(kwargs["device"]).type == NAME
        kwargs["device"] = torch.device("cpu") if pretended else kwargs["device"]
    given = dict(kwargs)
    if any(a.name == "generator" for a in func._schema.arguments):
        given["generator"] = _generator(kwargs.get("generator"))
    run = _FUSED.get(func._schema.name.partition("::")[2], func)
    values = run(*tree_map(_inner, args), **tree_map(_inner, given))
    for out in tree_leaves(kwargs.get("out")):
        # made empty, and given its size by what writes it
        if isinstance(out, PretendTensor) and out.shape != out.inner.shape:
            Tensor.data.__set__(out, PretendTensor(out.inner))
    if not pretended:
        return values
    result = tree_map(lambda t: PretendTensor(t) if isinstance(t, Tensor) else t, values)
    _share_storages([t for t in tree_leaves((args, kwargs)) if isinstance(t, PretendTensor)], result)
    return return_and_correct_aliasing(func, args, kwargs, result)


def _share_storages(given: list[Any], result: Any) -> None:
    """Have results lie in the storage of what they are views of, also where an operation doesn't say so."""
    storages = {t.inner.untyped_storage()._cdata: t for t in given if t.layout is torch.strided}
    for tensor in tree_leaves(result):
        if isinstance(tensor, PretendTensor) and tensor.layout is torch.strided:
            source = storages.get(tensor.inner.untyped_storage()._cdata)
            if source is not None:
                torch._functionalize_unsafe_set(tensor, source)


def _gru(x: Tensor, h: Tensor, state: Tensor, x_bias: Any = None, h_bias: Any = None) -> tuple[Tensor, Tensor]:
    x, h = (gates if bias is None else gates + bias for gates, bias in ((x, x_bias), (h, h_bias)))
    (x_reset, x_update, x_new), (h_reset, h_update, h_new) = x.chunk(3, 1), h.chunk(3, 1)
    new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
    return new + torch.sigmoid(x_update + h_update) * (state - new), torch.cat([x, h[:, : 2 * state.shape[1]]], 1)


def _lstm(x: Tensor, h: Tensor, state: Tensor, x_bias: Any = None, h_bias: Any = None) -> tuple[Tensor, ...]:
    gates = x + h + (0 if x_bias is None else x_bias + h_bias)
    into, forget, new, out = gates.chunk(4, 1)
    state = torch.sigmoid(forget) * state + torch.sigmoid(into) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(state), state, gates


_FUSED = {"_thnn_fused_gru_cell": _gru, "_thnn_fused_lstm_cell": _lstm}
"""Recurrent cells that only accelerators have, without their gradients."""


def _generator(given: Any) -> torch.Generator:
    if given is None:
        return _Module.generator
    place = PretendGenerator.known[given._cdata].place.type if given._cdata in PretendGenerator.known else "cpu"
    if place != NAME:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{place}'")
    return given


def _set_data(tensor: Tensor, data: Tensor) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        tensor.data = data
    tensor.inner = data.inner  # torch knows nothing of it


def _with_tensors(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_with_tensors, index))
    return torch.tensor(index, dtype=None if index else torch.long) if isinstance(index, list) else index


def _moved(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _made(make: Any) -> Any:
    """``torch.tensor`` and the like, which don't ask the device to make anything."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None and not isinstance(args[0], Tensor):
            device = torch.empty(0).device  # of torch.set_default_device, which doesn't know this function
        pretended = device is not None and torch.device(device).type == NAME
        return make(*args, **kwargs).to(device) if pretended else make(*args, device=device, **kwargs)

    return made


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs, pretended=True), "PrivateUse1")
_setup_privateuseone_for_python_backend(NAME, _Module())
# Else modules that move get other parameters, which on an accelerator they don't.
torch.__future__.set_swap_module_params_on_conversion(True)
# What torch has no way to leave to a device that is written in Python.
torch.Generator = PretendGenerator  # type: ignore[misc]
torch.tensor, torch.as_tensor = _made(torch.tensor), _made(torch.as_tensor)
torch.accelerator.synchronize = lambda *_: None  # type: ignore[assignment]
