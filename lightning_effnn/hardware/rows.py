"""Layers written as table rows: what each column means, and why a row is refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lightning_effnn.formats import FixedPoint
from lightning_effnn.formats.fixed import MAX_BITS
from lightning_effnn.hardware._numbers import real, whole
from lightning_effnn.hardware.operation import DIMENSIONS, MAC_KINDS, Operation

_STORED = ("w_bits", "i_bits", "o_bits", "o_partial_bits", "w_density", "i_density", "o_density")
_EXTENTS = ("name", "kind", *DIMENSIONS, "stride", *_STORED)
_WINDOW = ("ifmap_h", "ifmap_w", "filter_h", "filter_w", "channels", "filters")
_SCALESIM = ("layer", "name", *_WINDOW, "stride", *_STORED)
_RESULTS = frozenset({
    "accelerator", "spatial", "energy_pJ", "mac_energy_pJ", "mem_energy_pJ", "latency_cycles", "breakdown_pJ",
    "seconds", "dataflow", "rows", "cols", "total_cycles", "total_cycles_with_prefetch",
})  # fmt: skip
"""Columns of the two simulators' tables that say where a layer ran and what was found: no part of the layer."""
_MOST_EXTENT = 10**12  # beyond it, factors take hours to find
_MOST_PARTIAL_BITS = 1024
_GEMM = "a product of [B, C] by [C, K] has B rows, K columns and sums over C"
_PADDED = "OY and OX are the sizes of the output, which holds the padding already"
_HINTS = dict.fromkeys(("m", "n"), _GEMM) | dict.fromkeys(("pad", "padding", "h", "w"), _PADDED)


def operation(row: Mapping[str, Any], index: int) -> Operation:
    """The layer that a row describes.

    Args:
        row: as :func:`lightning_effnn.hardware.estimate_layers` says.
        index: its place in the table, for messages and for a name if it has none.

    Raises:
        ValueError: a column that has no meaning here, a value out of range, or a row that gives no extent; the
            message gives the row, the column, the value and what would be accepted.

    >>> operation({"kind": "gemm", "B": "4", "K": 8, "C": 16}, 0).macs
    512
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"row {index} is {row!r}: a mapping of columns to values is needed")
    return _Row(row, index).operation()


class _Row:
    def __init__(self, row: Mapping[str, Any], index: int) -> None:
        self.index = index
        # a blank cell of a table is a column that this row does not have
        self.row = {key: value for key, value in row.items() if value is not None and value != ""}
        self.name = str(self.row.get("name", self.row.get("layer", "unnamed")))

    def operation(self) -> Operation:
        scalesim = any(key in self.row for key in _WINDOW)
        self._check_columns(_SCALESIM if scalesim else _EXTENTS)
        extents = self._from_scalesim() if scalesim else self._extents()
        stride = self.integer("stride")
        fields: dict[str, Any] = {**extents}
        for op in ("w", "i", "o"):
            fields[f"{op}_format"] = FixedPoint(self.integer(f"{op}_bits", 8, MAX_BITS))
            fields[f"{op}_density"] = self._share(f"{op}_density")
        if "o_partial_bits" in self.row:
            fields["accumulator_bits"] = self.integer("o_partial_bits", most=_MOST_PARTIAL_BITS)
        kind: Any = self.row.get("kind", "conv")
        name = self.name if {"name", "layer"} & self.row.keys() else f"layer{self.index}"
        return Operation(name=name, op=kind, kind=kind, stride_y=stride, stride_x=stride, **fields)

    def fail(self, what: str) -> NoReturn:
        raise ValueError(f"row {self.index} ({self.name}): {what}")

    def _check_columns(self, accepted: Sequence[str]) -> None:
        for key, value in self.row.items():
            if key in accepted or key in _RESULTS:
                continue
            text = str(key)
            folded = {name.casefold(): name for name in accepted}
            near = difflib.get_close_matches(text.casefold(), folded, n=1)
            hint = _HINTS.get(text.casefold()) or (f"did you mean {folded[near[0]]!r}?" if near else "")
            if self.row.get("kind") == "gemm" and hint != _GEMM:
                hint = "; ".join(filter(None, (hint, _GEMM)))
            self.fail(
                f"unknown column {key!r} with the value {value!r}; accepted: {', '.join(accepted)}"
                + (f"; {hint}" if hint else "")
            )

    def _extents(self) -> dict[str, int]:
        kind = self.row.get("kind", "conv")
        if kind not in MAC_KINDS:
            near = difflib.get_close_matches(str(kind), MAC_KINDS, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.fail(f"kind={kind!r}, one of {', '.join(MAC_KINDS)} is needed{hint}")
        if not any(dim in self.row for dim in DIMENSIONS):
            self.fail(f"no extent of a layer: {', '.join(DIMENSIONS)}, or SCALE-Sim's {', '.join(_WINDOW)}, are needed")
        extents = {dim: self.integer(dim) for dim in DIMENSIONS}
        if kind == "depthwise" and ("G" not in self.row or extents["C"] > 1):
            self.fail(f"kind='depthwise' with G={extents['G']} and C={extents['C']}: its channels are groups, so G is"
                      " their number and C is 1")  # fmt: skip
        return extents

    def _from_scalesim(self) -> dict[str, int]:
        """The simulator gives sizes of padded inputs, this package those of outputs; a last partial window counts."""
        for key in _WINDOW:
            if key not in self.row:
                self.fail(f"column {key!r} is missing")
        size, stride = {key: self.integer(key) for key in _WINDOW}, self.integer("stride")
        for axis in ("h", "w"):
            if size[f"filter_{axis}"] > size[f"ifmap_{axis}"]:
                self.fail(f"filter_{axis}={size[f'filter_{axis}']} exceeds ifmap_{axis}={size[f'ifmap_{axis}']}")
        return {
            "K": size["filters"],
            "C": size["channels"],
            "OY": -(-(size["ifmap_h"] - size["filter_h"]) // stride) + 1,
            "OX": -(-(size["ifmap_w"] - size["filter_w"]) // stride) + 1,
            "FY": size["filter_h"],
            "FX": size["filter_w"],
        }

    def integer(self, key: str, default: int = 1, most: int = _MOST_EXTENT) -> int:
        value = self.row.get(key, default)
        number = whole(value)
        if number is None or not 1 <= number <= most:
            self.fail(f"{key}={value!r}, a positive integer of at most {most:,} is needed")
        return number

    def _share(self, key: str) -> float:
        value = self.row.get(key, 1.0)
        number = real(value)
        if number is None or not 0 <= number <= 1:
            self.fail(f"{key}={value!r}, a number from 0 to 1 is needed")
        return number
