"""Cycles of mapped layers: compute, stalls of shared ports, first loads, last stores, drain of the array.

ZigZag's latency model (Mei et al., IEEE TC 2021, section V; Symons et al., DATE 2022), vectorised over ``T``
candidate mappings: every memory port has, per operand and direction, a period in which it must move an amount
of data and a window in which it may. A level that can hold two tiles may use the whole period, another only
the part after its last reuse. What doesn't fit in the window stalls the array; transfers that share a port
share the union of their windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_effnn.hardware.accelerator import Memory, Port
from lightning_effnn.hardware.nest import IRRELEVANT, OPERANDS, RELEVANT, Floats, Ints, NestBatch

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Timing:
    """Cycles, scalars or ``[T]``.

    Ports stall the array side by side: the slowest of the registers', the buffers' and DRAM's counts.
    """

    compute: Any
    register_stall: Any
    buffer_stall: Any
    dram_stall: Any
    load: Any
    unload: Any
    drain: Any

    @property
    def stall(self) -> Any:
        """The slowest port's."""
        return np.maximum(np.maximum(self.register_stall, self.buffer_stall), self.dram_stall)

    @property
    def total(self) -> Any:
        """All of them."""
        return self.compute + self.stall + self.load + self.unload + self.drain

    def at(self, t: int) -> Timing:
        """Candidate ``t`` alone."""
        return Timing(*(float(getattr(self, f)[t]) for f in self.__slots__))


@dataclass(frozen=True, slots=True)
class Flow:
    """One transfer of one port, ``[T]`` each: cycles needed and allowed in a period, the period, its count."""

    needed: Floats
    allowed: Floats
    period: Floats
    count: Floats

    @property
    def active(self) -> Bools:
        """Whether anything moves."""
        result: Bools = self.count > 0
        return result


@dataclass
class LatencyInputs:
    """``T`` candidates: their layer, loop order, and per operand the boundaries ``[levels + 1, T]``."""

    nest: NestBatch
    layer: Ints
    loops: Ints
    prefixes: Ints
    bounds: dict[str, Ints]

    def masks(self, op: str, boundary: int) -> Ints:
        """``[T]`` loops inside a boundary."""
        result: Ints = self.prefixes[np.arange(len(self.layer)), self.bounds[op][boundary]]
        return result

    def trips(self, op: str, boundary: int) -> Floats:
        """``[T]`` iterations of the loops inside a boundary."""
        trips: Floats = self.nest.trips[self.layer, self.masks(op, boundary)]
        return trips

    def held(self, op: str, boundary: int, whole: bool = True) -> Floats:
        """``[T]`` elements one unit holds below a boundary."""
        table = (self.nest.elements_whole if whole else self.nest.elements)[op]
        elements: Floats = np.round(table[self.layer, boundary, self.masks(op, boundary)])
        return elements

    def partial(self, boundary: int, whole: bool = True) -> Bools:
        """``[T]`` whether sums are incomplete there."""
        incomplete: Bools = self.nest.partial_sums(whole)[self.layer, boundary, self.masks("O", boundary)]
        return incomplete

    def bits(self, op: str, boundary: int, whole: bool = True) -> Floats:
        """``[T]`` width of an element there."""
        if op != "O":
            width: Floats = self.nest.bits[op][self.layer]
            return width
        wide, final = self.nest.bits["P"][self.layer], self.nest.bits["O"][self.layer]
        return np.where(self.partial(boundary, whole), wide, final)

    def run(self, op: str, boundary: int, relevant: bool) -> Floats:
        """``[T]`` iterations of the unbroken run of (ir)relevant loops at the top of a level."""
        if boundary == 0:
            return np.ones(len(self.layer))
        kinds = (RELEVANT if relevant else IRRELEVANT)[op]
        inside = kinds[self.nest.dims[self.layer[:, None], self.loops]]
        rows = np.arange(len(self.layer))
        top, bottom = self.bounds[op][boundary], self.bounds[op][boundary - 1]
        if boundary == 1:
            bottom = np.zeros_like(top)  # the innermost level begins with what stays at the array's ports
        start = top.copy()
        for _ in range(self.loops.shape[1]):
            last = np.maximum(start - 1, 0)
            start = np.where((start > bottom) & inside[rows, last], start - 1, start)
        trips: Floats = self.nest.trips[self.layer, self.prefixes[rows, top]]
        below: Floats = self.nest.trips[self.layer, self.prefixes[rows, start]]
        return trips / below


def latency(candidates: LatencyInputs) -> Timing:
    """Cycles of each candidate."""
    return _Latency(candidates).timing()


class _Latency:
    def __init__(self, candidates: LatencyInputs) -> None:
        self.c = candidates
        self.chip = candidates.nest.accelerator
        self.levels = {op: self.chip.levels(op) for op in OPERANDS}
        self.cycles = candidates.nest.cycles[candidates.layer]
        links = [(op, boundary) for op in OPERANDS for boundary in range(len(self.levels[op]) + 1)]
        self.runs = {link: candidates.run(*link, relevant=False) for link in links}
        self.held = {link: candidates.held(*link) for link in links}
        self.bits = {link: candidates.bits(*link) for link in links}
        self.period = {link: candidates.trips(*link) for link in links}
        self.spread = {op: candidates.nest.broadcast(op, whole=True)[candidates.layer] for op in OPERANDS}
        self.double = self._double_buffered()
        self.flows = {
            (op, level, way): self._flow(op, level, way)
            for op in OPERANDS
            for level in range(len(self.levels[op]))
            for way in ("from_high", "to_low", "from_low", "to_high")
        }

    def timing(self) -> Timing:
        registers, buffers, dram = (np.zeros(len(self.cycles)) for _ in range(3))
        for memory in self.chip.memories:
            where = dram if memory is self.chip.memories[-1] else buffers if memory.served_dims else registers
            for port in memory.ports:
                np.maximum(where, self._stall(memory, port), out=where)
        load, unload = self._edges(np.maximum(np.maximum(registers, buffers), dram))
        drain = np.zeros(len(self.cycles))
        axes = {name: i for i, name in enumerate(self.chip.array)}
        for dim in self.chip.systolic_dims:
            used = np.array([p.spatial[axes[dim]][1] for p in self.c.nest.problems])
            drain += np.maximum(used[self.c.layer] - 1, 0)
        return Timing(self.cycles, registers, buffers, dram, load, unload, drain)

    def _double_buffered(self) -> dict[tuple[str, int], Bools]:
        """Whether a level has room for a second tile of an operand; index 0 is the array, which hasn't."""
        share: dict[tuple[str, int], Floats] = {}
        for op in OPERANDS:
            for level, memory in enumerate(self.levels[op]):
                tile = self.c.held(op, level + 1, whole=False) * self.c.bits(op, level + 1, whole=False)
                live = np.floor(tile / self.c.run(op, level + 1, relevant=True))
                share[op, level] = live / memory.size_bits
        together = {
            (op, level): sum(share[o, self._level(o, m)] for o in m.operands)
            for op in OPERANDS
            for level, m in enumerate(self.levels[op])
        }
        double = {(op, 0): np.zeros(len(self.cycles), bool) for op in OPERANDS}
        for op in OPERANDS:
            for level, memory in enumerate(self.levels[op]):
                roomy = together[op, level] <= 0.5
                fits = share[op, level] <= 1 - together[op, level]
                double[op, level + 1] = roomy | fits
                # a second tile of this operand leaves less room for those that share the memory
                taken = np.where(fits & ~roomy, share[op, level], 0.0)
                for other in memory.operands:
                    key = other, self._level(other, memory)
                    together[key] = together[key] + taken
        return double

    def _level(self, op: str, memory: Memory) -> int:
        return self.levels[op].index(memory)

    def _flow(self, op: str, level: int, way: str) -> Flow:
        upper = way.endswith("low")
        boundary = level if upper else level + 1
        port = self.levels[op][level].port(op, way)
        nothing = np.zeros(len(self.cycles))
        outermost = not upper and boundary == len(self.levels[op])
        inbound = way in ("from_high", "to_low")
        if port is None or outermost or (op != "O" and not inbound):
            return Flow(nothing, nothing, nothing, nothing)
        period = self.period[op, boundary]
        count = np.floor(self.cycles / period)
        amount = self.held[op, boundary]
        if upper:
            amount = np.trunc(amount * self.spread[op][:, level])
        needed = np.ceil(amount * self.bits[op, boundary] / port.max_bits)
        window = np.trunc(period / self.runs[op, boundary])
        allowed = np.where(self.double[op, boundary], period, window)
        if op == "O" and inbound:  # only incomplete sums come back
            back = self.c.partial(boundary)
            needed, allowed, period, count = (np.where(back, x, 0.0) for x in (needed, allowed, period, count))
        return Flow(needed, allowed, period, count)

    def _port_flows(self, memory: Memory, port: Port) -> list[tuple[str, int, str, Flow]]:
        found = []
        for op, way in port.serves:
            level = self._level(op, memory)
            found.append((op, level, way, self.flows[op, level, way]))
        return found

    def _stall(self, memory: Memory, port: Port) -> Floats:
        flows = [flow for *_, flow in self._port_flows(memory, port)]
        number = np.sum([flow.active for flow in flows], axis=0)
        late = np.zeros(len(self.cycles))
        early = np.zeros(len(self.cycles))
        windows = np.zeros(len(self.cycles))
        for flow in flows:
            renewals = np.where(flow.active, flow.count - 1, 0.0)
            slip = (flow.needed - flow.allowed) * renewals
            late += np.maximum(slip, 0)
            early += np.minimum(slip, 0)
            windows += flow.allowed * renewals
        alone = late + early
        if number.max() <= 1:
            return np.where(number == 1, alone, 0.0)
        shared = late + np.maximum(0, early + windows - self._union(flows))
        return np.where(number > 1, shared, np.where(number == 1, alone, 0.0))

    def _union(self, flows: list[Flow]) -> Floats:
        """Cycles in which at least one of the port's windows is open.

        Periods are products of prefixes of one loop order, so each divides the longer ones: a window opens at
        the start of its period and what shorter periods cover of the rest follows by recursion.
        """
        always = np.stack([f.active & (f.period == f.allowed) for f in flows]).any(axis=0)
        if always.all():
            return self.cycles
        period = np.stack([np.where(f.active, np.maximum(f.period, 1), 1) for f in flows])
        allowed = np.stack([np.where(f.active, f.allowed, 0) for f in flows])
        order = np.argsort(period, axis=0, kind="stable")
        period = np.take_along_axis(period, order, axis=0)
        allowed = np.take_along_axis(allowed, order, axis=0)
        in_period: list[Floats] = []  # covered in a period by its own window and all shorter ones
        in_window: list[Floats] = []  # covered by the shorter ones within the window

        def covered(k: int, length: Floats) -> Floats:
            if k < 0:
                return np.zeros_like(length)
            whole, rest = np.divmod(length, period[k])
            beyond = allowed[k] - in_window[k] + covered(k - 1, rest)
            return whole * in_period[k] + np.where(rest <= allowed[k], rest, beyond)

        for k in range(len(flows)):
            in_window.append(covered(k - 1, allowed[k]))
            in_period.append(allowed[k] - in_window[k] + covered(k - 1, period[k]))
        union = in_period[-1] * np.floor(self.cycles / period[-1])
        return np.where(always, self.cycles, union)

    def _edges(self, stall: Floats) -> tuple[Floats, Floats]:
        """First loads of the inputs and last stores of the outputs."""
        spent: dict[tuple[str, int, str], tuple[Floats, bool]] = {}
        for memory in self.chip.memories:
            for port in memory.ports:
                both = {"I", "W"} <= {op for op, _ in port.serves}
                for key, cycles in self._edge(memory, port, stall).items():
                    spent[key] = cycles, both
        parts = {op: self._load_parts(op, spent) for op in ("W", "I")}
        (shared_w, half_w, own_w), (shared_i, half_i, own_i) = parts["W"], parts["I"]
        load = np.minimum(
            shared_w + np.maximum(shared_i + half_i + own_i, half_w + own_w),
            shared_i + np.maximum(shared_w + half_w + own_w, half_i + own_i),
        )
        unload = np.zeros(len(self.cycles))
        for level in range(len(self.levels["O"]) - 1):
            out = spent["O", level, "to_high"][0]
            unload += np.maximum(out, spent["O", level + 1, "from_low"][0])
        return load, unload

    def _load_parts(
        self, op: str, spent: dict[tuple[str, int, str], tuple[Floats, bool]]
    ) -> tuple[Floats, Floats, Floats]:
        """Cycles on links shared by both inputs on both ends, on one end, on none."""
        zero = np.zeros(len(self.cycles))
        shared, half, own = zero, zero, zero
        for level in range(len(self.levels[op]) - 1):
            write, write_both = spent[op, level, "from_high"]
            read, read_both = spent[op, level + 1, "to_low"]
            longest = np.maximum(write, read)
            if write_both and read_both:
                shared = shared + longest
            elif write_both or read_both:
                half = longest
            else:
                own = own + longest
        return shared, half, own

    def _edge(self, memory: Memory, port: Port, stall: Floats) -> dict[tuple[str, int, str], Floats]:
        """Cycles of each transfer before or after computing.

        Data that moves once in a layer uses what the port has to spare while the array computes, down to the
        first tile.
        """
        flows = [f for f in self._port_flows(memory, port) if not (f[0] == "O" and f[2] in ("to_low", "from_high"))]
        if all(level == 0 and way.endswith("low") for _, level, way, _ in flows):
            return {}  # feeds the array: no link between memories
        demand = np.zeros(len(self.cycles))
        for op, level, way, flow in flows:
            rate = self._rate(op, level, way)
            demand += np.where(flow.count > 1, np.ceil(np.trunc(rate)), 0.0)
        computing = np.ceil(self.cycles) + stall
        spare = np.maximum(0, (port.max_bits - demand) / port.max_bits * computing)
        once = np.stack([flow.count == 1 for *_, flow in flows])
        needed = np.stack([np.where(flow.count > 0, flow.needed, 0.0) for *_, flow in flows])
        least = np.stack([np.ceil(self.held[op, 1] * self.bits[op, 1] / port.max_bits) for op, *_ in flows])
        reducible = np.where(once, np.maximum(0, needed - least), 0.0)
        order = np.argsort(-np.where(once, needed, -1.0), axis=0, kind="stable")
        for k in range(len(flows)):
            pick = order[k][None]
            saved = np.minimum(np.take_along_axis(reducible, pick, axis=0)[0], spare)
            np.put_along_axis(needed, pick, np.take_along_axis(needed, pick, axis=0) - saved, axis=0)
            spare = spare - saved
        return {(op, level, way): cycles for (op, level, way, _), cycles in zip(flows, needed, strict=True)}

    def _rate(self, op: str, level: int, way: str) -> Floats:
        """Bits a cycle that a transfer needs on average."""
        upper = way.endswith("low")
        link = op, level if upper else level + 1
        rate = self.held[link] * self.bits[link] / self.period[link]
        return rate * self.spread[op][:, level] if upper else rate
