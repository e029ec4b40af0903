"""What a report can't say in figures, as sentences for the console."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_effnn.hardware.operation import UnknownOperation

_MODULES = 3
"""How many modules are named before the rest are counted."""


def unknown_remark(unknown: Mapping[str, UnknownOperation]) -> str:
    """Say which operations have no known cost, where they ran, why, and how to state the cost.

    Args:
        unknown: the operations by name, as in ``CostReport.unknown``; at least one.

    Example:
        >>> unknown_remark({"mylib.twist.default": UnknownOperation(8, {"net.head"}, "no rule says what it costs")})
        "counted by elements moved only: mylib.twist.default in net.head (no rule says what it costs); state its cost
        with hardware.register_cost('mylib::twist', rule)"
    """
    operations = "; ".join(f"{op} in {_places(entry)} ({entry.reason})" for op, entry in sorted(unknown.items()))
    names = sorted({"::".join(op.split(".")[:2]) for op in unknown})
    what = "its cost" if len(names) == 1 else "their costs"
    calls = ", ".join(f"hardware.register_cost({name!r}, rule)" for name in names)
    return f"counted by elements moved only: {operations}; state {what} with {calls}"


def _places(entry: UnknownOperation) -> str:
    names = sorted(name or "(root)" for name in entry.modules)
    more = len(names) - _MODULES
    return ", ".join(names[:_MODULES]) + (f" and {more} more" if more > 0 else "")
