"""What one operation costs: energy by component, cycles, bits to and from DRAM.

The arithmetic is plain, so widths and densities may be numbers or tensors: a report and a differentiable
loss come from the same lines. Traffic is proportional to the bits an element takes, relative to the width the
layer was mapped with; at that width the figures are exactly those of the mapping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.latency import Timing
from lightning_effnn.hardware.mapping import Link, MappedLayer
from lightning_effnn.hardware.memory import Memory
from lightning_effnn.hardware.operation import Operation

_ROLE = {"W": "weights", "I": "activations", "O": "activations"}


def _number(value: Any) -> float:
    """A plain number, also of a tensor that requires gradients."""
    return float(value.detach() if hasattr(value, "detach") else value)


@dataclass(frozen=True, slots=True)
class Storage:
    """Widths and densities of an operation's operands, numbers or tensors."""

    w_bits: Any
    i_bits: Any
    o_bits: Any
    w_density: Any = 1.0
    i_density: Any = 1.0
    o_density: Any = 1.0

    @classmethod
    def of(cls, operation: Operation, dense: bool = False) -> Storage:
        """As traced, or with every element taken as non-zero."""
        bits = operation.w_format.bits, operation.i_format.bits, operation.o_format.bits
        if dense:
            return cls(*bits)
        return cls(*bits, operation.w_density, operation.i_density, operation.o_density)

    def detached(self) -> Storage:
        """As plain numbers."""
        return Storage(*(_number(getattr(self, field.name)) for field in fields(self)))

    def bits(self, operand: str) -> Any:
        """Width of an operand."""
        return {"W": self.w_bits, "I": self.i_bits, "O": self.o_bits}[operand]

    def density(self, operand: str) -> Any:
        """Density of an operand."""
        return {"W": self.w_density, "I": self.i_density, "O": self.o_density}[operand]


class Component(NamedTuple):
    """Where energy goes: what computes (:data:`MAC`, :data:`VECTOR`), or a memory with the operand it is spent on.

    Attributes:
        place: name of the memory, or of what computes.
        operand: ``"W"``, ``"I"``, ``"O"``; ``""`` where there is none.
    """

    place: str
    operand: str = ""


MAC = Component("MAC")
"""The multiply-accumulates themselves."""
VECTOR = Component("vector")
"""The simple operations of the unit beside the array."""
OPERATIONS = Component("operations")
"""Of the sponge paper's simulator, which knows no other difference."""
PLACES = tuple(component.place for component in (MAC, VECTOR, OPERATIONS))
"""Names that no memory can have."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one run of an operation.

    Attributes:
        components: pJ by :class:`Component`.
        cycles: from the first load to the last store.
        compute_cycles: those of the array (or the vector unit) alone.
        dram_bits: bits to and from the outermost memory.
    """

    components: Mapping[Component, Any] = field(default_factory=dict)
    cycles: float = 0.0
    compute_cycles: float = 0.0
    dram_bits: Any = 0.0

    @property
    def energy_pJ(self) -> Any:
        """All components."""
        return sum(self.components.values())


def price_mac(
    operation: Operation,
    mapped: MappedLayer,
    accelerator: Accelerator,
    storage: Storage,
    cycles: int | None = None,
) -> Cost:
    """Cost of a multiply-accumulate operation (one repeat) on its mapping.

    ``cycles`` replaces the mapping's time where another model counts it (a stall-free systolic array).
    """
    components, dram_bits, dense_bits = mac_components(operation, mapped, accelerator, storage)
    if cycles is not None:
        return Cost(components, cycles, cycles, dram_bits)
    saved = {role: accelerator.zeros[role].compute for role in ("weights", "activations")}
    storage = storage.detached()
    moved = _number(dram_bits)
    width = max(port.max_bits for port in accelerator.memories[-1].ports)
    total, computing = _time(mapped.timing, saved, storage, moved / max(dense_bits, 1.0), moved / width)
    return Cost(components, total, computing, dram_bits)


def mac_components(
    operation: Operation, mapped: MappedLayer, accelerator: Accelerator, storage: Storage
) -> tuple[dict[Component, Any], Any, float]:
    """Energy of a multiply-accumulate operation (one repeat) by component, without its time.

    Widths and densities may be tensors of any one shape: a batch is priced at once.

    Returns:
        pJ by component; bits to and from DRAM; these bits if nothing were compressed.
    """
    saved = {role: accelerator.zeros[role].compute for role in ("weights", "activations")}
    useful: dict[str, Any] = {
        "W": storage.w_density if saved["weights"] != "none" else 1.0,
        "I": storage.i_density if saved["activations"] != "none" else 1.0,
    }
    useful["O"] = useful["W"] * useful["I"]
    macs = math.prod(operation.extents)
    mac = accelerator.energies.mac_pJ(operation.w_format, operation.i_format, storage.w_bits, storage.i_bits)
    components: dict[Component, Any] = {MAC: macs * mac * useful["O"]}
    dram = accelerator.memories[-1]
    memories = {m.name: m for m in accelerator.memories}
    dram_bits: Any = 0.0
    dense_bits = 0.0
    for link in mapped.links:
        memory = memories[link.memory]
        width = _relative_width(link, memory, operation, accelerator, storage)
        reads, writes = _accesses(link, memory, useful)
        components[Component(link.memory, link.operand)] = (reads * link.read_pJ + writes * link.write_pJ) * width
        if memory is dram:
            bits = _bits(link, memory)
            dense_bits += bits
            dram_bits = dram_bits + bits * width
    return components, dram_bits, dense_bits


def _relative_width(
    link: Link, memory: Memory, operation: Operation, accelerator: Accelerator, storage: Storage
) -> Any:
    """Bits an element takes in a memory, relative to the width it was mapped with."""
    bits, mapped = storage.bits(link.operand), Storage.of(operation).bits(link.operand)
    zeros = accelerator.zeros[_ROLE[link.operand]]
    if memory.name in zeros.stored_in:
        bits = zeros.stored_bits(bits, storage.density(link.operand))
    return bits / mapped


def _accesses(link: Link, memory: Memory, useful: Mapping[str, Any]) -> tuple[Any, Any]:
    """Reads and writes; gated where the memory belongs to one processing element.

    An operation that a zero factor makes useless reads neither the other factor nor the sum; the zero itself
    is read to be seen.
    """
    gate: Any = 1.0
    if link.level == 0 and not memory.served_dims:
        gate = {"W": useful["I"], "I": useful["W"], "O": useful["O"]}[link.operand]
    return link.to_low * gate + link.to_high, link.from_low * gate + link.from_high


def _bits(link: Link, memory: Memory) -> float:
    flows = {way: getattr(link, way) for way in ("to_low", "from_low", "to_high", "from_high")}
    bits = 0.0
    for way, words in flows.items():
        port = memory.port(link.operand, way)
        if words and port is not None:
            bits += words * port.max_bits
    return bits


def _time(
    timing: Timing, saved: Mapping[str, str], storage: Storage, packed: float, dram_cycles: float
) -> tuple[float, float]:
    """Total and computing cycles.

    Skipped zeros shorten what the processing elements and their registers do, compressed data shortens what
    DRAM does (``packed``, its share of the dense traffic); whichever is slowest counts.
    """
    useful = 1.0
    for role, density in (("weights", storage.w_density), ("activations", storage.i_density)):
        if saved[role] == "skipping":
            useful *= float(density)
    compute = float(timing.compute)
    inside = (compute + float(timing.register_stall)) * useful
    buffers = compute + float(timing.buffer_stall) if timing.buffer_stall else 0.0
    edges = float(timing.load + timing.unload) * packed  # moved before and after computing
    outside = (compute + float(timing.dram_stall)) * packed if timing.dram_stall else dram_cycles - edges
    busy = max(inside, buffers, min(outside, compute + float(timing.stall)))
    return busy + edges + float(timing.drain), compute * useful


def price_vector(operation: Operation, accelerator: Accelerator, storage: Storage) -> Cost:
    """Cost of any other operation (one repeat): DRAM to buffer to vector unit and back.

    What is applied on the way out of the operation before it (``fused``) moves only its other inputs.
    """
    work = operation.operations * accelerator.energies.vector_pJ(operation.i_format)
    components: dict[Component, Any] = {VECTOR: work}
    dram_bits: Any = 0.0
    written = 0 if operation.fused else operation.elements_out
    for operand, elements in (("I", operation.elements_in), ("O", written)):
        levels = accelerator.levels(operand)
        for memory in levels[-2:]:
            bits = storage.bits(operand)
            zeros = accelerator.zeros["activations"]
            if memory.name in zeros.stored_in:
                bits = zeros.stored_bits(bits, storage.density(operand))
            outermost = memory is levels[-1]
            if outermost:
                dram_bits = dram_bits + elements * bits
            components[Component(memory.name, operand)] = _pass(memory, operand, elements * bits, outermost)
    lanes = accelerator.vector_lanes
    computing = -(-operation.operations // lanes)
    moving = float(dram_bits) / max(p.max_bits for p in accelerator.memories[-1].ports)
    return Cost(components, max(float(computing), moving), float(computing), dram_bits)


def _pass(memory: Memory, operand: str, bits: Any, outermost: bool) -> Any:
    """Energy of streaming bits through a memory; the outermost is only read (inputs) or written (outputs)."""
    ways = ("to_low", "from_high") if operand == "I" else ("from_low", "to_high")
    energy: Any = 0.0
    for way in ways[:1] if outermost else ways:
        port = memory.port(operand, way)
        if port is not None:
            cost = memory.read_pJ if way.startswith("to") else memory.write_pJ
            energy = energy + bits / port.max_bits * cost
    return energy
