"""What moves between memory levels, as tables over sets of loops.

Across each boundary of an operand's hierarchy the elements held below are renewed once a period, the trips
of the loops inside. A transfer takes whole steps of the port's least width. Finished sums only travel
outwards; incomplete ones come back to be added to, at the width of a partial sum (ZigZag, IEEE TC 2021,
section IV).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_effnn.hardware.memory import Memory
from lightning_effnn.hardware.nest import OPERANDS, Floats, NestBatch


@dataclass(frozen=True, slots=True)
class Transfers:
    """Port accesses across one boundary of one operand, ``[L, 2**n]`` each, for the whole layer.

    ``to_low`` and ``from_low`` are accesses of the level above the boundary, ``to_high`` and ``from_high`` of the
    level below it (zero below the innermost level, where the array lies).
    """

    above: Memory
    below: Memory | None
    to_low: Floats
    from_low: Floats
    to_high: Floats
    from_high: Floats

    @property
    def energy(self) -> Floats:
        """``[L, 2**n]`` pJ."""
        energy = self.to_low * self.above.read_pJ + self.from_low * self.above.write_pJ
        if self.below:
            energy = energy + self.to_high * self.below.read_pJ + self.from_high * self.below.write_pJ
        return energy


def link_transfers(nest: NestBatch) -> dict[str, list[Transfers]]:
    """Per operand, transfers across each boundary; boundary 0 lies between the array and the innermost level."""
    periods = np.floor(nest.cycles[:, None] / nest.trips)
    partial = nest.partial_sums(whole=False)
    nothing = np.zeros_like(periods)
    table: dict[str, list[Transfers]] = {}
    for op in OPERANDS:
        levels = nest.accelerator.levels(op)
        width = nest.operand_bits(whole=False)[op]
        spread = nest.broadcast(op, whole=False)
        table[op] = []
        for boundary, above in enumerate(levels):
            below = levels[boundary - 1] if boundary else None
            held = np.round(nest.elements[op][:, boundary])
            bits = width[:, boundary] if op == "O" else width[:, 0]
            units = nest.unit_counts[op][:, boundary : boundary + 2, None]

            def words(
                memory: Memory | None,
                direction: str,
                op: str = op,
                boundary: int = boundary,
                held: Floats = held,
                bits: Floats = bits,
                units: Floats = units,
                spread: Floats = spread,
            ) -> Floats:
                if memory is None or (port := memory.port(op, direction)) is None:
                    return nothing
                upper = direction.endswith("low")
                elements = held * spread[:, boundary, None] if upper else held
                steps = np.ceil(elements * bits / port.min_bits) * (port.min_bits / port.max_bits)
                result: Floats = np.floor(steps * periods * units[:, int(upper)])
                return result

            back = partial[:, boundary] if op == "O" else np.ones_like(periods, dtype=bool)
            table[op].append(
                Transfers(
                    above,
                    below,
                    to_low=np.where(back, words(above, "to_low"), 0.0),
                    from_low=words(above, "from_low") if op == "O" else nothing,
                    to_high=words(below, "to_high") if op == "O" else nothing,
                    from_high=np.where(back, words(below, "from_high"), 0.0),
                )
            )
    return table
