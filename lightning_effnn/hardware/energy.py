"""Energy of one operation by the formats of its operands.

A multiply-accumulate is a multiplication of two formats and an addition into a wide accumulator. The 45 nm
table in ``operations.yaml`` prices both; a chip of another technology scales the whole table so that its
8-bit multiply-accumulate costs what its preset says. What multiplies by a power of two shifts, what
multiplies by a recentralised power of two shifts twice (by the mean, by the level) and adds the two, what
multiplies by +-1 does nothing but the accumulation. A scale that belongs to a whole layer or channel is
applied once a result and folds into the next layer's: it is not charged.

All widths may be tensors: the same number serves as a differentiable loss.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.schema import Price

ACCUMULATOR_BITS = 32
_SIGNIFICAND = {"fp16": 11, "fp32": 24}  # hidden bit included (IEEE 754)


@lru_cache(maxsize=1)
def _laws() -> dict[tuple[str, str], tuple[float, float]]:
    """``(factor, exponent)`` of the power law through the two published widths, by kind and operation."""
    table = yaml.safe_load((Path(__file__).parent / "operations.yaml").read_text())
    laws = {}
    for kind, operations in table.items():
        for name, published in operations.items():
            (w0, e0), (w1, e1) = (
                (_SIGNIFICAND[key] if kind == "float" else int(key.removeprefix("int")), energy)
                for key, energy in published.items()
            )
            exponent = math.log(e1 / e0) / math.log(w1 / w0)
            laws[kind, name] = (e0 / w0**exponent, exponent)
    return laws


def _price(kind: str, operation: str, width: Any) -> Any:
    factor, exponent = _laws()[kind, operation]
    return factor * width**exponent


def significand_bits(number: NumberFormat) -> int:
    """Width of the significand a multiplier sees: mantissa and hidden bit, or all bits of an integer."""
    return int(getattr(number, "mantissa_bits", number.bits - 1)) + 1


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class OperationEnergies:
    """Prices on one chip: the 45 nm table times one factor.

    Attributes:
        int8_mac_pJ: price of an 8-bit multiply-accumulate, which sets the factor.

    >>> chip = OperationEnergies.of({"int8_mac_pJ": 0.3})
    >>> from lightning_effnn.formats import FixedPoint, PowerOfTwo
    >>> int8 = FixedPoint(8)
    >>> round(chip.mac_pJ(int8, int8), 3), round(chip.mac_pJ(PowerOfTwo(4), int8), 3)
    (0.3, 0.124)
    """

    int8_mac_pJ: Price

    @classmethod
    def of(cls, operations: dict[str, float]) -> OperationEnergies:
        """From the ``operations`` block of an accelerator's YAML."""
        return cls(**operations)

    @property
    def scale(self) -> float:
        """The factor."""
        reference = _price("integer", "multiply", 8) + _price("integer", "add", ACCUMULATOR_BITS)
        return float(self.int8_mac_pJ / reference)

    def mac_pJ(self, weights: NumberFormat, inputs: NumberFormat, w_bits: Any = None, i_bits: Any = None) -> Any:
        """One multiply-accumulate in pJ; ``w_bits`` and ``i_bits`` (tensors) replace the formats' widths."""
        return self.scale * (self._multiply(weights, inputs, w_bits, i_bits) + self._accumulate(weights, inputs))

    def vector_pJ(self, number: NumberFormat) -> float:
        """One simple operation (addition, comparison) on a number in pJ."""
        kind = "float" if number.kind == "float" else "integer"
        width = significand_bits(number) if kind == "float" else number.bits
        return float(self.scale * _price(kind, "add", width))

    def _multiply(self, weights: NumberFormat, inputs: NumberFormat, w_bits: Any, i_bits: Any) -> Any:
        w = weights.bits if w_bits is None else w_bits
        i = inputs.bits if i_bits is None else i_bits
        if {"binary", "ternary"} & {weights.kind, inputs.kind}:
            return 0.0
        for kind, shifts in (("power_of_two", 1), ("recentralized", 2)):
            for factor, other, width in ((weights, inputs, i), (inputs, weights, w)):
                if factor.kind == kind:  # a float's shift is an addition to its exponent
                    floating = other.kind == "float"
                    shift = _price("integer", "add", 8) if floating else _price("integer", "shift", width)
                    return shifts * shift + (shifts - 1) * self._accumulate(weights, inputs)
        if "float" in (weights.kind, inputs.kind):
            significands = significand_bits(weights) * significand_bits(inputs)
            # a bit width given from outside narrows the significand in proportion
            return _price("float", "multiply", (significands * (w / weights.bits) * (i / inputs.bits)) ** 0.5)
        return _price("integer", "multiply", (w * i) ** 0.5)

    def _accumulate(self, weights: NumberFormat, inputs: NumberFormat) -> Any:
        if "float" in (weights.kind, inputs.kind):
            return _price("float", "add", _SIGNIFICAND["fp32"])
        return _price("integer", "add", ACCUMULATOR_BITS)
