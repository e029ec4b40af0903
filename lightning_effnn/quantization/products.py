"""What one aten operation multiplies: its factors, and how many multiply-accumulates it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

_SECOND = ("addmm", "baddbmm", "addmv", "addbmm")  # their factors come behind what is added
_BY_ELEMENTS = ("mv", "dot", "vdot", "addmv")  # a product for each element of the first factor
_GROUPED = ("_grouped_mm", "_scaled_grouped_mm")
_CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable")
_TRANSPOSED = ("cudnn_convolution_transpose", "mkldnn_convolution_transpose")
_ROWS_FIRST = ("linear", "mkldnn_linear")  # whose second factor is [out, in]
RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")


class Factor(NamedTuple):
    """One factor of a product.

    Attributes:
        tensor: the factor.
        channel: its dimension that the result has along; ``None`` if there is none.
    """

    tensor: Tensor
    channel: int | None


def factors(name: str, args: tuple[Any, ...]) -> tuple[Factor, Factor]:
    """The two factors of a product; the weight, if an operation names one, is the second.

    Args:
        name: of the operation, without namespace and overload.
        args: what it was called with.
    """
    first, second = args[1:3] if name in _SECOND else args[:2]
    if name in _CONVOLUTIONS or name in _TRANSPOSED:
        transposed = name in _TRANSPOSED or (name != "mkldnn_convolution" and len(args) > 6 and args[6] is True)
        return Factor(first, None), Factor(second, 1 if transposed else 0)
    if name == "_trilinear":
        return Factor(first, None), Factor(second, 0)
    if name in _ROWS_FIRST:
        return Factor(first, None), Factor(second, 0)
    rows = first.dim() - 2 if first.dim() > 1 else None
    return Factor(first, rows), Factor(second, second.dim() - 1 if second.dim() > 1 else None)


def macs_of(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Multiply-accumulates of one call; 0 if it multiplies nothing, or with a sparse matrix, which gathers and adds."""
    if name in _BY_ELEMENTS:
        return int(args[name in _SECOND].numel())
    if name == "_trilinear":  # Bilinear: the outer product of its inputs by the weight
        return int(result.numel() // result.shape[-1] * args[1].numel())
    if name in _GROUPED:  # rows sorted by group, each group with a factor of its own
        groups = args[0].shape[0] if args[0].dim() == args[1].dim() == 3 else 1
        return int(groups * args[0].shape[-2] * args[0].shape[-1] * args[1].shape[-1])
    if name in _ROWS_FIRST:
        return int(math.prod(args[0].shape[:-1]) * args[1].numel())
    formula = flop_registry.get(getattr(func, "_overloadpacket", None))
    if formula is None or any(factor.layout is not torch.strided for factor in tensors_in(args)):
        return 0
    return int(formula(*args, **kwargs, out_val=result)) // 2


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in arguments or results, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
