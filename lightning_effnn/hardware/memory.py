"""A memory of a chip, its ports, and what it saves on zeros."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lightning_effnn.hardware.schema import (
    CONFIG,
    READS,
    WRITES,
    Amount,
    Label,
    Operand,
    Positive,
    RunBits,
    Text,
    Transfer,
    Unfit,
    once,
)


@dataclass(frozen=True, slots=True, config=CONFIG)
class Port:
    """A physical port: up to ``max_bits`` move a cycle, in steps of ``min_bits``, for the listed transfers.

    ``serves`` holds ``(operand, direction)``; directions are seen from the memory: ``from_high`` is filled
    from the level above, ``to_low`` feeds the level below, ``from_low`` takes results from below,
    ``to_high`` hands them up. Only results move outwards.
    """

    kind: Literal["read", "write", "read_write"]
    min_bits: Annotated[Positive, Field(alias="min_bits_per_cycle")]
    max_bits: Annotated[Positive, Field(alias="max_bits_per_cycle")]
    serves: tuple[Transfer, ...]

    @model_validator(mode="after")
    def _fits(self) -> Port:
        if self.min_bits > self.max_bits:
            accepted = f"at most max_bits_per_cycle, {self.max_bits}"
            raise Unfit("min_bits_per_cycle", self.min_bits, accepted)
        ways = {"read": READS, "write": WRITES, "read_write": READS + WRITES}[self.kind]
        for operand, way in self.serves:
            if way not in ways:
                raise Unfit("serves", f"{operand} {way}", f"{' or '.join(ways)} at a port of the kind {self.kind!r}")
            if operand != "O" and way not in ("from_high", "to_low"):
                raise Unfit("serves", f"{operand} {way}", "from_high or to_low: only results (O) move outwards")
        return self


@dataclass(frozen=True, slots=True, config=CONFIG)
class Memory:
    """A memory level: one unit serves the processing elements along ``served_dims``, copies the rest."""

    name: Label
    size_bits: Positive
    read_pJ: Amount
    write_pJ: Amount
    operands: tuple[Operand, ...]
    served_dims: tuple[Text, ...]
    ports: tuple[Port, ...]

    @model_validator(mode="after")
    def _fits(self) -> Memory:
        if not self.operands:
            raise Unfit("operands", self.operands, "at least one of I, W, O: this level serves no operand")
        once(self.operands, "operands")
        once(self.served_dims, "served_dims")
        served = [transfer for port in self.ports for transfer in port.serves]
        once([" ".join(transfer) for transfer in served], "ports")
        for operand, way in served:
            if operand not in self.operands:
                accepted = f"transfers of the operands that it holds, {', '.join(self.operands)}"
                raise Unfit("ports", f"{operand} {way}", accepted)
        for operand in self.operands:
            ways = WRITES + READS if operand == "O" else ("from_high", "to_low")
            missing = [f"{operand} {way}" for way in ways if (operand, way) not in served]
            if missing:
                found = ", ".join(sorted(" ".join(transfer) for transfer in served)) or "none"
                raise Unfit("ports", found, f"a port for {', '.join(missing)}")
        return self

    def port(self, operand: str, direction: str) -> Port | None:
        """The port of a transfer, None where the level has none."""
        return next((p for p in self.ports if (operand, direction) in p.serves), None)


@dataclass(frozen=True, slots=True, config=CONFIG)
class Zeros:
    """What the chip saves on zeros of one operand.

    ``compute``: ``none``, ``gating`` (the operation and its register accesses cost no energy) or ``skipping``
    (they cost no time either). ``storage``: ``dense``, ``bitmap`` (one bit an element and the non-zeros) or
    ``run_length`` (each non-zero with the length of the run of zeros before it, ``run_bits`` wide), used in
    the memories named in ``stored_in``, and only where it is smaller than dense.
    """

    compute: Literal["none", "gating", "skipping"] = "none"
    storage: Literal["dense", "bitmap", "run_length"] = "dense"
    run_bits: RunBits = 0
    stored_in: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Zeros:
        if self.storage == "run_length" and not self.run_bits:
            raise Unfit("run_bits", self.run_bits, "a positive integer: the bits that hold the length of a run")
        return self

    def stored_bits(self, bits: float, density: Any) -> Any:
        """Bits an element takes on average, ``density`` a number or a tensor; linear in it where compressed.

        >>> Zeros(storage="bitmap").stored_bits(8, 0.25)
        3.0
        >>> Zeros(storage="bitmap").stored_bits(8, 1.0)
        8.0
        """
        if self.storage == "dense":
            return bits * (density * 0 + 1)
        if self.storage == "bitmap":
            packed = density * bits + 1
        else:
            # a run longer than the counter holds needs a placeholder every 2**run_bits zeros
            packed = (density + (1 - density) / 2.0**self.run_bits) * (bits + self.run_bits)
        smaller = packed < bits
        return packed * smaller + bits * (1 - smaller * 1)
