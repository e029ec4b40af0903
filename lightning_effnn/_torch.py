"""Torch's private names, all in one place: what a new version of torch may move is mended here.

Everything else in this package that needs one of them imports it from here.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, _dispatch_has_kernel, _dispatch_has_kernel_for_dispatch_key
from torch._C._autograd import _get_sequence_nr, _top_saved_tensors_default_hooks
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import CheckpointFunction

__all__ = [
    "DispatchMode",
    "FakeTensor",
    "StorageWeakRef",
    "TorchDispatchMode",
    "in_backward",
    "in_checkpoint",
    "in_reentrant_checkpoint",
    "is_composite",
    "modes",
    "next_sequence_number",
    "node_of_backward",
    "owners",
    "storage_key",
]


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that torch does not wrap for its compiler.

    The wrapper costs as much as an operation on a small tensor, and the first time it imports the compiler, which
    takes a second. A model that is compiled runs eagerly while a mode is open, so there is nothing to keep out.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def modes() -> list[Any]:
    """The dispatch modes that are open in this thread, or in the thread whose backward pass this one runs."""
    return list(_get_current_dispatch_mode_stack())


def in_backward() -> bool:
    """Whether autograd's backward pass is running in this thread."""
    # torch.compile follows the forward pass alone, and could not follow the question.
    return not torch.compiler.is_compiling() and bool(torch._C._current_graph_task_id() != -1)


def in_checkpoint() -> bool:
    """Whether this is the first run of what a checkpoint that is not reentrant runs again in the backward pass."""
    hooks = _top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__module__ == CheckpointFunction.__module__


def in_reentrant_checkpoint() -> bool:
    """Whether this is the first run of what :func:`torch.utils.checkpoint.checkpoint` runs again, without gradients."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None


def node_of_backward() -> int | None:
    """The sequence number of the autograd node whose backward is running; ``None`` outside of one."""
    node = torch._C._current_autograd_node()
    return None if node is None else int(node._sequence_nr())


def next_sequence_number() -> int:
    """The sequence number that the next autograd node of this thread gets."""
    return int(_get_sequence_nr())


def is_composite(func: Any) -> bool:
    """Whether an operation is made of others whatever its device, so that looking at those is enough."""
    name = func.name()
    if not _dispatch_has_kernel(name):
        return False  # a question about a tensor that torch answers itself, such as prim::device of a fake one
    return bool(_dispatch_has_kernel_for_dispatch_key(name, DispatchKey.CompositeImplicitAutograd))


def strided(tensor: Tensor) -> Tensor:
    """``tensor`` itself, or the values of a sparse one."""
    if tensor.layout is torch.strided:
        return tensor
    return tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()


def owners(tensor: Tensor) -> int:
    """How many tensors, and arrays of others, this process has in the memory of ``tensor``, itself included.

    >>> x = torch.zeros(2)
    >>> y = x.view(1, 2)
    >>> owners(x), owners(torch.zeros(2))
    (2, 1)
    """
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1  # the one asked is another


def storage_key(tensor: Tensor) -> tuple[int, Any]:
    """The address of the storage object of a tensor, or of a sparse one's values, and the storage.

    Raises:
        NotImplementedError, RuntimeError, AttributeError: the tensor has no storage of its own (functorch's wrappers,
            packed layouts).
    """
    storage = strided(tensor).untyped_storage()
    return storage._cdata, storage
