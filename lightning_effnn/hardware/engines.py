"""What prices a run on a chip. Which engine it is follows from the chip's model and from the name that was asked for;
nobody else looks at the model: what an engine can do is among its attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.mapping import MappedLayer, map_layers
from lightning_effnn.hardware.nest import Problem
from lightning_effnn.hardware.operation import Operation
from lightning_effnn.hardware.pricing import Storage, price_mac, price_vector
from lightning_effnn.hardware.report import CostReport, LayerCost
from lightning_effnn.hardware.sponge_paper import SpongePaper
from lightning_effnn.hardware.systolic import compute_cycles

if TYPE_CHECKING:
    from lightning_effnn.hardware.trace import Trace

EngineName = Literal["closed_form", "zigzag"]
Mapper = Callable[[Sequence[Problem], Accelerator], list[MappedLayer]]


class Engine(Protocol):
    """Prices what ran on a chip.

    Attributes:
        prices_operations: whether an operation has a price of its own. Then operations can be priced without a
            network, in tables for a search, and the energy can be differentiated (``EnergyModel``). If not,
            only a traced network has one, of its modules as a whole.
    """

    @property
    def prices_operations(self) -> bool:
        """See the class."""

    def estimate(self, trace: Trace, chip: Accelerator) -> CostReport:
        """What a traced run costs."""

    def estimate_operations(self, operations: Sequence[Operation], chip: Accelerator) -> CostReport:
        """What operations cost of which no run is known.

        Raises:
            ValueError: the engine does not price operations.
        """


def engine_for(chip: Accelerator, name: str = "closed_form") -> Engine:
    """The engine that prices runs on ``chip``.

    Args:
        chip: its model decides what is priced.
        name: what maps its layers, ``"closed_form"`` or ``"zigzag"``.

    Raises:
        ValueError: an unknown name, or one that the chip has no use for.

    >>> engine_for(Accelerator.load("tpu_like")).prices_operations
    True
    >>> engine_for(Accelerator.load("shumailov2021")).prices_operations
    False
    """
    mappers: dict[str, Mapper] = {"closed_form": map_layers, "zigzag": _zigzag}
    if name not in mappers:
        raise ValueError(f"engine={name!r}: one of {', '.join(map(repr, mappers))} is needed")
    if chip.model == "shumailov2021":
        if name != "closed_form":
            raise ValueError(f"engine={name!r} maps layers onto memories, and {chip.name!r} has none: leave engine out")
        return SpongePaper()
    return PerOperation(mappers[name], compute_cycles if chip.model == "systolic" else None)


def check_prices_operations(chip: Accelerator, instead: str = "use one of the other presets") -> None:
    """Refuse a chip on which single operations have no price.

    Args:
        chip: what a user asked for.
        instead: what they could do.

    Raises:
        ValueError: names the chip and says ``instead``.
    """
    if not engine_for(chip).prices_operations:
        raise ValueError(f"accelerator is {chip.name!r}, which prices whole modules: {instead}")


@dataclass(frozen=True)
class PerOperation:
    """Prices one operation after another, multiply-accumulates on the mapping that is found for them.

    Attributes:
        mapper: finds the mappings.
        cycles: replaces a mapping's time.
    """

    prices_operations: ClassVar[bool] = True
    mapper: Mapper
    cycles: Callable[[Operation, Accelerator], int] | None = None

    def estimate(self, trace: Trace, chip: Accelerator) -> CostReport:
        """What a traced run costs, the loss left out."""
        costed = [op for op in trace.operations if op.phase != "loss"]
        return CostReport(
            accelerator=chip,
            layers=self._price(_with_stored_outputs(costed), chip),
            coverage=trace.coverage,
            unknown=dict(trace.unknown),
            notes=trace.notes,
            has_values=trace.has_values,
            weights_bits=sum(
                _stored_bits(p.elements, p.format.bits, p.nonzero / max(p.elements, 1), chip) for p in trace.parameters
            ),
        )

    def estimate_operations(self, operations: Sequence[Operation], chip: Accelerator) -> CostReport:
        """What operations cost, each by itself; second factors count as weights."""
        bits = sum(_stored_bits(op.weights, op.w_format.bits, op.w_density, chip) for op in operations)
        return CostReport(chip, self._price(operations, chip), coverage=1.0, unknown={}, weights_bits=bits)

    def _price(self, operations: Sequence[Operation], chip: Accelerator) -> tuple[LayerCost, ...]:
        mapped = iter(self.mapper([Problem.of(op, chip) for op in operations if op.is_mac], chip))
        layers = []
        for op in operations:
            if op.is_mac:
                mapping = next(mapped)
                cycles = self.cycles(op, chip) if self.cycles else None
                cost, dense = (price_mac(op, mapping, chip, Storage.of(op, dense), cycles) for dense in (False, True))
                layers.append(LayerCost(op, mapping, cost, dense))
            else:
                cost, dense = (price_vector(op, chip, Storage.of(op, dense)) for dense in (False, True))
                layers.append(LayerCost(op, None, cost, dense))
        return tuple(layers)


def _zigzag(problems: Sequence[Problem], chip: Accelerator) -> list[MappedLayer]:
    from lightning_effnn.hardware import zigzag

    return zigzag.map_layers(problems, chip)


def _with_stored_outputs(operations: Sequence[Operation]) -> list[Operation]:
    """What a fused operation makes of a result is what the operation before it stores."""
    result: list[Operation] = []
    host = -1
    for op in operations:
        if op.fused and host >= 0:
            result[host] = replace(result[host], o_format=op.o_format, o_density=op.o_density)
        else:
            host = len(result)
        result.append(op)
    return result


def _stored_bits(elements: int, bits: int, density: float, chip: Accelerator) -> float:
    return float(elements * chip.zeros["weights"].stored_bits(bits, density))
