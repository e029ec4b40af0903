"""Checks an accelerator's YAML: every key there, none misspelt, every value in range.

A message names the file, the key and the value, and says what would be accepted.
"""

from __future__ import annotations

import difflib
from typing import Any, NoReturn

from lightning_effnn.hardware.operation import DIMENSIONS

KINDS = ("conv", "depthwise", "gemm")
DIRECTIONS = ("from_high", "to_low", "from_low", "to_high")
_TOP = {
    "name", "source", "array", "spatial", "clock_MHz", "operations", "systolic_dims", "vector_lanes",
    "partial_sum_bits", "memories", "zeros", "model",
}  # fmt: skip
_DEFAULTS: dict[str, Any] = {"systolic_dims": [], "zeros": {}, "model": "mapped"}
_MEMORY = {"size_bits", "read_pJ", "write_pJ", "operands", "served_dims", "ports"}
_PORT = {"kind", "min_bits_per_cycle", "max_bits_per_cycle", "serves"}
_ZEROS = {"compute", "storage", "run_bits", "stored_in"}


class SchemaError(ValueError):
    """An accelerator file that can't be used."""


def validate(raw: Any, file: str) -> dict[str, Any]:
    """The file's contents with defaults filled in.

    Raises:
        SchemaError: names the file, the key, the value and what would be accepted.
    """
    check = _Checker(file)
    scalars = isinstance(raw, dict) and raw.get("model") == "shumailov2021"
    required = _TOP - _DEFAULTS.keys() - ({"array", "spatial", "memories"} if scalars else set())
    data = check.mapping(raw, "", required=required, optional=_TOP | ({"access_pJ"} if scalars else set()))
    data = {**_DEFAULTS, **data}
    check.one_of(data["model"], "model", ("mapped", "shumailov2021"))
    for key in ("name", "source"):
        if not isinstance(data[key], str) or not data[key].strip():
            check.fail(key, data[key], "text")
    data["clock_MHz"] = check.number(data["clock_MHz"], "clock_MHz", least=0)
    for key in ("vector_lanes", "partial_sum_bits"):
        check.integer(data[key], key)
    operations = check.mapping(data["operations"], "operations", required={"int8_mac_pJ"})
    operations["int8_mac_pJ"] = check.number(operations["int8_mac_pJ"], "operations.int8_mac_pJ", above=0)
    data["zeros"] = _zeros(check, data)
    if data["model"] == "shumailov2021":  # counts scalars: neither array nor memories
        data["access_pJ"] = check.number(data.get("access_pJ"), "access_pJ", above=0)
        return data | {"array": {}, "spatial": {}, "memories": {}}
    _array(check, data)
    _memories(check, data)
    return data


def _array(check: _Checker, data: dict[str, Any]) -> None:
    sizes = check.mapping(data["array"], "array")
    if not sizes:
        check.fail("array", sizes, "at least one dimension, such as {D1: 16}")
    for dim, size in sizes.items():
        check.integer(size, f"array.{dim}")
    spatial = check.mapping(data["spatial"], "spatial", required=set(KINDS))
    for kind in KINDS:
        along = check.mapping(spatial[kind], f"spatial.{kind}", required=set(sizes))
        for dim, loop in along.items():
            check.one_of(loop, f"spatial.{kind}.{dim}", DIMENSIONS)
    for dim in check.sequence(data["systolic_dims"], "systolic_dims"):
        check.one_of(dim, "systolic_dims", tuple(sizes))


def _memories(check: _Checker, data: dict[str, Any]) -> None:
    memories = check.mapping(data["memories"], "memories")
    for name, memory in memories.items():
        key = f"memories.{name}"
        check.mapping(memory, key, required=_MEMORY)
        check.integer(memory["size_bits"], f"{key}.size_bits")
        for cost in ("read_pJ", "write_pJ"):
            memory[cost] = check.number(memory[cost], f"{key}.{cost}", least=0)
        operands = check.sequence(memory["operands"], f"{key}.operands")
        if not operands:
            check.fail(f"{key}.operands", operands, "at least one of I, W, O: this level serves no operand")
        for operand in operands:
            check.one_of(operand, f"{key}.operands", ("I", "W", "O"))
        for dim in check.sequence(memory["served_dims"], f"{key}.served_dims"):
            check.one_of(dim, f"{key}.served_dims", tuple(data["array"]))
        _ports(check, memory, key)
    for operand in ("I", "W", "O"):
        if not any(operand in m["operands"] for m in memories.values()):
            check.fail("memories", ", ".join(memories), f"a level that holds operand {operand}")
    outermost = list(memories.values())[-1]
    if set(outermost["operands"]) != {"I", "W", "O"}:
        check.fail(f"memories.{list(memories)[-1]}.operands", outermost["operands"],
                   "[I, W, O]: the last level holds everything")  # fmt: skip


def _ports(check: _Checker, memory: dict[str, Any], key: str) -> None:
    served: set[str] = set()
    for i, port in enumerate(check.sequence(memory["ports"], f"{key}.ports")):
        where = f"{key}.ports[{i}]"
        check.mapping(port, where, required=_PORT)
        check.one_of(port["kind"], f"{where}.kind", ("read", "write", "read_write"))
        for bits in ("min_bits_per_cycle", "max_bits_per_cycle"):
            check.integer(port[bits], f"{where}.{bits}")
        if port["min_bits_per_cycle"] > port["max_bits_per_cycle"]:
            check.fail(f"{where}.min_bits_per_cycle", port["min_bits_per_cycle"],
                       f"at most max_bits_per_cycle, {port['max_bits_per_cycle']}")  # fmt: skip
        allowed = [f"{op} {way}" for op in memory["operands"] for way in DIRECTIONS]
        for transfer in check.sequence(port["serves"], f"{where}.serves"):
            check.one_of(transfer, f"{where}.serves", allowed)
            served.add(transfer)
    for operand in memory["operands"]:
        ways = DIRECTIONS if operand == "O" else DIRECTIONS[:2]
        missing = [f"{operand} {way}" for way in ways if f"{operand} {way}" not in served]
        if missing:
            check.fail(f"{key}.ports", ", ".join(sorted(served)) or "none", f"a port for {', '.join(missing)}")


def _zeros(check: _Checker, data: dict[str, Any]) -> dict[str, Any]:
    zeros = check.mapping(data["zeros"], "zeros", optional={"weights", "activations"})
    filled = {}
    for what in ("weights", "activations"):
        key = f"zeros.{what}"
        entry = check.mapping(zeros.get(what, {}), key, optional=_ZEROS)
        entry = {"compute": "none", "storage": "dense", **entry}
        check.one_of(entry["compute"], f"{key}.compute", ("none", "gating", "skipping"))
        check.one_of(entry["storage"], f"{key}.storage", ("dense", "bitmap", "run_length"))
        if entry["storage"] == "run_length":
            check.integer(entry.get("run_bits"), f"{key}.run_bits")
        known = tuple(data["memories"]) if isinstance(data.get("memories"), dict) else ()
        for name in check.sequence(entry.get("stored_in", []), f"{key}.stored_in"):
            check.one_of(name, f"{key}.stored_in", known)
        filled[what] = entry
    return filled


class _Checker:
    def __init__(self, file: str) -> None:
        self.file = file

    def fail(self, key: str, value: Any, accepted: str) -> NoReturn:
        where = f"key {key!r}" if key else "the file"
        raise SchemaError(f"{self.file}: {where} has the value {value!r}; accepted: {accepted}")

    def mapping(
        self, value: Any, key: str, required: set[str] | None = None, optional: set[str] | None = None
    ) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(key, value, "a mapping of keys to values")
        known = (required or set()) | (optional or set())
        prefix = f"{key}." if key else ""
        for name in value if known else ():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise SchemaError(
                    f"{self.file}: unknown key {prefix + str(name)!r} with the value {value[name]!r};"
                    f" accepted: {', '.join(sorted(known))}.{hint}"
                )
        for name in sorted(required or ()):
            if name not in value:
                raise SchemaError(f"{self.file}: key {prefix + name!r} is missing")
        return dict(value) if not key else value

    def sequence(self, value: Any, key: str) -> list[Any]:
        if not isinstance(value, list):
            self.fail(key, value, "a list")
        return value

    def one_of(self, value: Any, key: str, accepted: Any) -> None:
        if value not in accepted:
            self.fail(key, value, "one of " + (", ".join(accepted) or "none"))

    def integer(self, value: Any, key: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(key, value, "a positive integer")

    def number(self, value: Any, key: str, least: float | None = None, above: float | None = None) -> float:
        """YAML reads 1e10 as text; what float() takes is a number."""
        try:
            result = float(value)
        except (TypeError, ValueError):
            self.fail(key, value, "a number")
        if (least is not None and not result >= least) or (above is not None and not result > above):
            self.fail(key, value, f"a number of {least} or more" if least is not None else f"more than {above}")
        return result
