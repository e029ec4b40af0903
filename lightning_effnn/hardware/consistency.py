"""Whether the parts of a chip fit together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_effnn.hardware.memory import Memory
from lightning_effnn.hardware.schema import KINDS, OPERANDS, Unfit, once

if TYPE_CHECKING:
    from lightning_effnn.hardware.accelerator import Accelerator

_PLACES = ("MAC", "vector", "operations")  # where energy goes besides the memories
_ORDER = "memories stand from the innermost to the outermost"


def check(chip: Accelerator) -> None:
    """Refuse a chip whose parts contradict each other, or that says what has no effect.

    Raises:
        Unfit: the key, its value and what would be accepted.
    """
    if chip.model == "shumailov2021":
        _check_scalars(chip)
        return
    if chip.access_pJ:
        raise Unfit("access_pJ", chip.access_pJ, "no such key: only the model 'shumailov2021' has it")
    _check_array(chip)
    _check_dataflow(chip)
    _check_memories(chip.memories, chip.array)
    _check_zeros(chip)


def _check_scalars(chip: Accelerator) -> None:
    """The sponge paper's simulator counts scalars; whatever else a file says would have no effect."""
    if not chip.access_pJ:
        raise Unfit("access_pJ", chip.access_pJ, "a number of more than 0: the energy of a scalar")
    for key in ("array", "spatial", "memories", "systolic_dims", "dataflow", "clock_MHz"):
        if getattr(chip, key):
            raise Unfit(key, getattr(chip, key), f"none: {chip.model!r} has neither array, memories nor time")


def _check_array(chip: Accelerator) -> None:
    if not chip.array:
        raise Unfit("array", chip.array, "at least one dimension, such as {D1: 16}")
    dims = ", ".join(chip.array)
    for kind in KINDS:
        if kind not in chip.spatial:
            raise Unfit("spatial", ", ".join(chip.spatial), f"an entry for {kind!r} too")
        if set(chip.spatial[kind]) != set(chip.array):
            raise Unfit(f"spatial.{kind}", chip.spatial[kind], f"a loop for each dimension of the array: {dims}")
    once(chip.systolic_dims, "systolic_dims")
    named = {f"memories.{memory.name}.served_dims": memory.served_dims for memory in chip.memories}
    for key, found in {"systolic_dims": chip.systolic_dims, **named}.items():
        for dim in found:
            if dim not in chip.array:
                raise Unfit(key, dim, f"dimensions of the array: {dims}")


def _check_dataflow(chip: Accelerator) -> None:
    if chip.model != "systolic" and chip.dataflow:
        raise Unfit("dataflow", chip.dataflow, "no such key: only the model 'systolic' has it")
    if chip.model == "systolic" and not chip.dataflow:
        raise Unfit("dataflow", chip.dataflow, "ws, os or is: what stays in the array")
    if chip.model == "systolic" and len(chip.array) != 2:
        raise Unfit("array", chip.array, "two dimensions, rows and columns, for the model 'systolic'")


def _check_memories(memories: tuple[Memory, ...], array: Mapping[str, int]) -> None:
    names = [memory.name for memory in memories]
    once(names, "memories")
    for name in names:
        if name in _PLACES:
            raise Unfit("memories", name, f"other names than {', '.join(_PLACES)}, which stand for what computes")
    if not memories:
        raise Unfit("memories", memories, "at least one memory")
    last = memories[-1]
    for key, found, wanted in (("operands", last.operands, OPERANDS), ("served_dims", last.served_dims, tuple(array))):
        if set(found) != set(wanted):
            raise Unfit(f"memories.{last.name}.{key}", found, f"all of {', '.join(wanted)}: {_ORDER}, which serves all")
    for operand in OPERANDS:
        levels = [memory for memory in memories if operand in memory.operands]
        for inner, outer in itertools.pairwise(levels):
            _check_order(inner, outer, operand)


def _check_order(inner: Memory, outer: Memory, operand: str) -> None:
    further_in = (
        f"{inner.name!r}, which lies further in for {operand}: memories stand from the innermost to the outermost"
    )
    if outer.size_bits < inner.size_bits:
        key = f"memories.{outer.name}.size_bits"
        raise Unfit(key, outer.size_bits, f"at least {inner.size_bits}, the size of {further_in}")
    if not set(inner.served_dims) <= set(outer.served_dims):
        key = f"memories.{outer.name}.served_dims"
        raise Unfit(key, outer.served_dims, f"at least {inner.served_dims}, what is served by {further_in}")


def _check_zeros(chip: Accelerator) -> None:
    names = [memory.name for memory in chip.memories]
    for what, zeros in chip.zeros.items():
        for name in zeros.stored_in:
            if name not in names:
                raise Unfit(f"zeros.{what}.stored_in", name, f"names of memories: {', '.join(names)}")
        if bool(zeros.stored_in) != (zeros.storage != "dense"):
            raise Unfit(
                f"zeros.{what}.stored_in", zeros.stored_in,
                f"the memories whose storage is {zeros.storage!r}" if zeros.storage != "dense" else "none for 'dense'",
            )  # fmt: skip
