"""Costs of operations that this package doesn't know, as their authors state them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from lightning_effnn.hardware.operation import DIMENSIONS
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Product, Vector

CostRule = Callable[..., "Mapping[str, int]"]
_RULES: dict[str, CostRule] = {}


def register_cost(op: Any, rule: CostRule) -> None:
    """Say what an operation costs that a trace doesn't know: a custom kernel, an operation of another library.

    The rule is called with the operation's own arguments and with ``out``, its result, and returns a mapping: loop
    extents of a product (``B`` rows, ``C`` summed over, ``K`` columns, ``G`` groups, or the eight of a
    convolution; those not given are 1), or ``{"operations": n}``, simple operations on elements. A later rule for
    the same operation replaces the earlier one.

    Args:
        op: the operation, ``torch.ops.mylib.product``, or its name, ``"mylib::product"``.
        rule: ``rule(*args, out, **kwargs)``.

    Raises:
        TypeError: if ``op`` names no operation or ``rule`` can't be called.

    Example:
        >>> import torch
        >>> from lightning_effnn import hardware
        >>> @torch.library.custom_op("effnn_doc::product", mutates_args=())
        ... def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ...     return a @ b
        >>> hardware.register_cost(
        ...     "effnn_doc::product", lambda a, b, out: {"B": a.shape[0], "C": a.shape[1], "K": b.shape[1]}
        ... )
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = torch.nn.Parameter(torch.ones(8, 4))
        ...     def forward(self, x):
        ...         return product(x, self.weight)
        >>> hardware.trace(Net(), torch.ones(2, 8)).macs
        32
    """
    if not callable(rule):
        raise TypeError(f"rule={rule!r}: a function of the operation's arguments and out is needed")
    _RULES[_name(op)] = rule


def rule_for(func: Any, known: str) -> Callable[[Call, tuple[Any, ...], dict[str, Any], Any], list[Piece]] | None:
    """The pieces of an operation by a rule that was registered, else by torch's registry of operation counts.

    Args:
        func: the overload that ran.
        known: its name, with its namespace unless that is aten.
    """
    name = known if "::" in known else f"aten::{known}"
    rule = _RULES.get(name)
    if rule is not None:
        return lambda call, args, kwargs, out: [_piece(call, rule(*args, out=out, **kwargs), name)]
    formula = flop_registry.get(getattr(func, "_overloadpacket", func))
    if formula is None:
        return None
    return lambda call, args, kwargs, out: [_flops(call, int(formula(*args, **kwargs, out_val=out)) // 2)]


def has_rule(known: str) -> bool:
    """Whether a user said what an operation costs."""
    return (known if "::" in known else f"aten::{known}") in _RULES


def possible_macs(call: Call) -> int:
    """Multiply-accumulates that an operation could be, if it multiplied the two largest of its operands.

    A product of [M, C] by [C, K] has as many as the root of the elements of both factors and of the result,
    multiplied: M C K. What has one operand with two axes or more is taken for a step on elements.
    """
    sizes = sorted(
        (t.numel() for t in call.inputs if t.dim() > 1 and t.element_size() > 0 and _multiplies(t)), reverse=True
    )
    results = max((t.numel() for t in call.outputs if t.dim() > 1), default=0)
    return math.isqrt(sizes[0] * sizes[1] * results) if len(sizes) > 1 else 0


def _piece(call: Call, cost: Mapping[str, int], name: str) -> Piece:
    accepted = (*DIMENSIONS, "operations")
    wrong = [key for key in cost if key not in accepted] if isinstance(cost, Mapping) else [cost]
    if wrong or not all(isinstance(v, int) and v >= 0 for v in cost.values()):
        raise ValueError(
            f"the cost registered for {name} returned {cost!r}: a mapping of {', '.join(accepted)} to integers is"
            " needed"
        )
    if "operations" in cost or not cost:
        return Vector("elementwise", call.inputs, call.outputs, int(cost.get("operations", 0)))
    return _product(call, dict(cost))


def _flops(call: Call, macs: int) -> Piece:
    result = call.outputs[0]
    if not macs:
        return Vector("elementwise", call.inputs, call.outputs, result.numel())
    columns = result.shape[-1] if result.dim() else 1
    if macs % max(1, result.numel()):
        return _product(call, {"B": macs})
    return _product(call, {"B": result.numel() // columns, "K": columns, "C": macs // result.numel()})


def _product(call: Call, extents: dict[str, int]) -> Product:
    result = call.outputs[0]
    factors = [t for t in call.inputs if _multiplies(t)]
    constants = [t for t in factors if not call.varies(t)]
    weight = next(iter(constants), factors[1] if len(factors) > 1 else None)
    source = next((t for t in factors if t is not weight), None)
    axes = {"B": [(result, dim) for dim in range(max(1, result.dim() - 1))]} if result.dim() else {}
    spatial = any(extents.get(name, 1) > 1 for name in ("OY", "OX", "FY", "FX"))
    full = {name: int(extents.get(name, 1)) for name in DIMENSIONS}
    return Product("conv" if spatial else "gemm", full, weight, source, result, axes)


def _multiplies(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex() or tensor.dtype in _INTEGER_FACTORS


_INTEGER_FACTORS = (torch.int8, torch.uint8, torch.qint8, torch.quint8)


def _name(op: Any) -> str:
    name = op if isinstance(op, str) else getattr(op, "_qualified_op_name", None) or getattr(op, "_qualname", None)
    if name is None and hasattr(op, "_schema"):
        name = op._schema.name
    if not isinstance(name, str) or "::" not in name:
        raise TypeError(
            f"op={op!r}: an operation such as torch.ops.mylib.product, or its name 'mylib::product', is needed"
        )
    namespace, _, rest = name.partition("::")
    return f"{namespace}::{rest.partition('.')[0]}"
