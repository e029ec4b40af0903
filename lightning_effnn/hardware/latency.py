"""Cycles of mapped layers: compute, stalls of shared ports, first loads, last stores, drain of the array.

ZigZag's latency model (Mei et al., IEEE TC 2021, section V; Symons et al., DATE 2022), vectorised over ``T``
candidate mappings: every memory port has, per operand and direction, a period in which it must move an amount
of data and a window in which it may. A level that can hold two tiles may use the whole period, another only
the part after its last reuse. What doesn't fit in the window stalls the array; transfers that share a port
share the union of their windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_effnn.hardware.memory import Memory, Port
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


@dataclass
class Candidates:
    """``T`` mappings: their layer, loop order, and per operand the boundaries ``[levels + 1, T]``."""

    nest: NestBatch
    layer: Ints
    loops: Ints
    prefixes: Ints
    bounds: dict[str, Ints]


class Transfer(NamedTuple):
    """One direction of one operand at one level: what a port serves."""

    operand: str
    level: int
    way: str

    @property
    def upper(self) -> bool:
        """Whether it crosses the boundary below the level."""
        return self.way.endswith("low")

    @property
    def link(self) -> tuple[str, int]:
        """Operand and boundary it crosses."""
        return self.operand, self.level if self.upper else self.level + 1

    @property
    def inbound(self) -> bool:
        """Whether it moves towards the array."""
        return self.way in ("from_high", "to_low")


def latency(candidates: Candidates) -> Timing:
    """Cycles of each candidate."""
    return _Latency(candidates).timing()


class _Latency:
    """The arrays are ``[links, T]`` (a link is an operand's boundary) or ``[transfers, T]``."""

    def __init__(self, candidates: Candidates) -> None:
        self.c = candidates
        self.chip = candidates.nest.accelerator
        self.levels = {op: self.chip.levels(op) for op in OPERANDS}
        self.cycles = candidates.nest.cycles[candidates.layer]
        boundaries = {op: range(len(self.levels[op]) + 1) for op in OPERANDS}
        self.links = {key: i for i, key in enumerate((op, b) for op in OPERANDS for b in boundaries[op])}
        self.bounds = np.concatenate([candidates.bounds[op] for op in OPERANDS])
        self.masks = candidates.prefixes[np.arange(len(self.cycles)), self.bounds]
        self.period = candidates.nest.trips[candidates.layer, self.masks]
        self.held, self.bits, self.partial = self._contents(whole=True)
        self.double = self._double_buffered()
        transfers = [
            Transfer(op, level, way)
            for op in OPERANDS
            for level in range(len(self.levels[op]))
            for way in (("to_low", "from_high", "from_low", "to_high") if op == "O" else ("to_low", "from_high"))
        ]
        self.rows = {transfer: row for row, transfer in enumerate(transfers)}
        self._measure(transfers)

    def timing(self) -> Timing:
        registers, buffers, dram = (np.zeros(len(self.cycles)) for _ in range(3))
        for memory in self.chip.memories:
            where = dram if memory is self.chip.memories[-1] else buffers if memory.served_dims else registers
            for port in memory.ports:
                np.maximum(where, self._stall([self.rows[t] for t in self._served(memory, port)]), out=where)
        load, unload = self._edges(np.maximum(np.maximum(registers, buffers), dram))
        drain = np.zeros(len(self.cycles))
        axes = {name: i for i, name in enumerate(self.chip.array)}
        for dim in self.chip.systolic_dims:
            used = np.array([p.spatial[axes[dim]][1] for p in self.c.nest.problems])
            drain += np.maximum(used[self.c.layer] - 1, 0)
        return Timing(self.cycles, registers, buffers, dram, load, unload, drain)

    def _contents(self, whole: bool) -> tuple[Floats, Floats, Bools]:
        """Elements one unit holds below each link, their width, and whether they are incomplete sums."""
        nest, layer = self.c.nest, self.c.layer
        held: Floats = np.empty(self.masks.shape)
        bits: Floats = np.empty(self.masks.shape)
        partial: Bools = np.zeros(self.masks.shape, bool)
        elements = nest.elements_whole if whole else nest.elements
        for op in OPERANDS:
            rows = [row for (operand, _), row in self.links.items() if operand == op]
            where = layer, np.arange(len(rows))[:, None], self.masks[rows]
            held[rows] = elements[op][where]
            bits[rows] = nest.bits[op][layer]
            if op == "O":
                partial[rows] = nest.partial_sums(whole)[where]
                bits[rows] = np.where(partial[rows], nest.bits["P"][layer], bits[rows])
        return held.round(), bits, partial

    def _runs(self, relevant: bool) -> Floats:
        """Iterations of the unbroken run of (ir)relevant loops at the top of the level below each link."""
        kinds = RELEVANT if relevant else IRRELEVANT
        order = self.c.nest.dims[self.c.layer[:, None], self.c.loops]
        inside = np.stack([kinds[op][order] for op, _ in self.links])
        bottom = np.zeros_like(self.bounds)  # the innermost level begins with what stays at the array's ports
        for (op, boundary), row in self.links.items():
            if boundary > 1:
                bottom[row] = self.bounds[self.links[op, boundary - 1]]
            elif boundary == 0:
                bottom[row] = self.bounds[row]
        start = self.bounds.copy()
        links, t = np.ogrid[: len(self.bounds), : len(self.cycles)]
        for _ in range(self.c.loops.shape[1]):
            start -= (start > bottom) & inside[links, t, np.maximum(start - 1, 0)]
        runs: Floats = self.period / self.c.nest.trips[self.c.layer, self.c.prefixes[t, start]]
        return runs

    def _double_buffered(self) -> Bools:
        """Whether the level below each link has room for a second tile; the array has none."""
        held, bits, _ = self._contents(whole=False)
        live = np.floor(held * bits / self._runs(relevant=True))
        share = {
            (op, level): live[self.links[op, level + 1]] / memory.size_bits
            for op in OPERANDS
            for level, memory in enumerate(self.levels[op])
        }
        together = {
            (op, level): np.sum([share[o, self.levels[o].index(m)] for o in m.operands], axis=0)
            for op in OPERANDS
            for level, m in enumerate(self.levels[op])
        }
        double = np.zeros(self.masks.shape, bool)
        for (op, level), own in share.items():
            memory = self.levels[op][level]
            roomy = together[op, level] <= 0.5
            fits = own <= 1 - together[op, level]
            double[self.links[op, level + 1]] = roomy | fits
            # a second tile of this operand leaves less room for those that share the memory
            taken = np.where(fits & ~roomy, own, 0.0)
            for other in memory.operands:
                key = other, self.levels[other].index(memory)
                together[key] = together[key] + taken
        return double

    def _measure(self, transfers: list[Transfer]) -> None:
        """Per transfer: cycles needed and allowed in a period, the period, how often, bits a cycle on average."""
        ports = [self.levels[t.operand][t.level].port(t.operand, t.way) for t in transfers]
        link = np.array([self.links[t.link] for t in transfers])
        spread = np.ones((len(transfers), len(self.cycles)))
        moves = np.zeros((len(transfers), len(self.cycles)), bool)
        for row, transfer in enumerate(transfers):
            op, level = transfer.operand, transfer.level
            outermost = not transfer.upper and level + 1 == len(self.levels[op])
            back = op == "O" and transfer.inbound  # only incomplete sums come back
            if transfer.upper:
                spread[row] = self.c.nest.broadcast(op, whole=True)[self.c.layer, level]
            if ports[row] is not None and not outermost:
                moves[row] = self.partial[link[row]] if back else True
        width = np.array([[1 if port is None else port.max_bits] for port in ports])
        period = self.period[link]
        window = np.trunc(period / self._runs(relevant=False)[link])
        self.count = np.where(moves, np.floor(self.cycles / period), 0.0)
        self.needed = np.where(moves, np.ceil(np.trunc(self.held[link] * spread) * self.bits[link] / width), 0.0)
        self.allowed = np.where(moves, np.where(self.double[link], period, window), 0.0)
        self.every = np.where(moves, period, 1.0)
        self.rate = self.held[link] * self.bits[link] / period * spread

    def _served(self, memory: Memory, port: Port) -> list[Transfer]:
        return [Transfer(op, self.levels[op].index(memory), way) for op, way in port.serves if self._exists(op, way)]

    @staticmethod
    def _exists(op: str, way: str) -> bool:
        return op == "O" or way in ("from_high", "to_low")

    def _stall(self, rows: list[int]) -> Floats:
        """Stall of a port that serves these transfers."""
        needed, allowed, count = self.needed[rows], self.allowed[rows], self.count[rows]
        renewals = np.maximum(count - 1, 0)
        slip = (needed - allowed) * renewals
        if len(rows) == 1:
            return np.where(count[0] > 0, slip[0], 0.0)
        late: Floats = np.maximum(slip, 0).sum(axis=0)
        early: Floats = np.minimum(slip, 0).sum(axis=0)
        windows: Floats = (allowed * renewals).sum(axis=0)
        shared = late + np.maximum(0, early + windows - self._union(rows))
        number = (count > 0).sum(axis=0)
        return np.where(number > 1, shared, late + early)

    def _union(self, rows: list[int]) -> Floats:
        """Cycles in which at least one of the port's windows is open.

        Periods are products of prefixes of one loop order, so each divides the longer ones: a window opens at
        the start of its period and what shorter periods cover of the rest follows by recursion.
        """
        period, allowed = self.every[rows], self.allowed[rows]
        always = ((self.count[rows] > 0) & (period == allowed)).any(axis=0)
        if always.all():
            return self.cycles
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

        for k in range(len(rows)):
            in_window.append(covered(k - 1, allowed[k]))
            in_period.append(allowed[k] - in_window[k] + covered(k - 1, period[k]))
        union = in_period[-1] * np.floor(self.cycles / period[-1])
        return np.where(always, self.cycles, union)

    def _edges(self, stall: Floats) -> tuple[Floats, Floats]:
        """First loads of the inputs and last stores of the outputs."""
        spent: dict[Transfer, tuple[Floats, bool]] = {}
        for memory in self.chip.memories:
            for port in memory.ports:
                both = {"I", "W"} <= {op for op, _ in port.serves}
                for transfer, cycles in self._edge(self._served(memory, port), port, stall).items():
                    spent[transfer] = cycles, both
        (shared_w, half_w, own_w), (shared_i, half_i, own_i) = (self._load_parts(op, spent) for op in ("W", "I"))
        load = np.minimum(
            shared_w + np.maximum(shared_i + half_i + own_i, half_w + own_w),
            shared_i + np.maximum(shared_w + half_w + own_w, half_i + own_i),
        )
        unload = np.zeros(len(self.cycles))
        for level in range(len(self.levels["O"]) - 1):
            out, taken = spent[Transfer("O", level, "to_high")][0], spent[Transfer("O", level + 1, "from_low")][0]
            unload += np.maximum(out, taken)
        return load, unload

    def _load_parts(self, op: str, spent: dict[Transfer, tuple[Floats, bool]]) -> tuple[Floats, Floats, Floats]:
        """Cycles on links shared by both inputs on both ends, on one end, on none."""
        zero = np.zeros(len(self.cycles))
        shared, half, own = zero, zero, zero
        for level in range(len(self.levels[op]) - 1):
            write, write_both = spent[Transfer(op, level, "from_high")]
            read, read_both = spent[Transfer(op, level + 1, "to_low")]
            longest = np.maximum(write, read)
            if write_both and read_both:
                shared = shared + longest
            elif write_both or read_both:
                half = longest
            else:
                own = own + longest
        return shared, half, own

    def _edge(self, served: list[Transfer], port: Port, stall: Floats) -> dict[Transfer, Floats]:
        """Cycles of each transfer before or after computing.

        Data that moves once in a layer uses what the port has to spare while the array computes, down to the
        first tile.
        """
        served = [t for t in served if not (t.operand == "O" and t.inbound)]
        if all(t.level == 0 and t.upper for t in served):
            return {}  # feeds the array: no link between memories
        rows = [self.rows[t] for t in served]
        count, needed = self.count[rows], self.needed[rows].copy()
        demand = np.where(count > 1, np.ceil(np.trunc(self.rate[rows])), 0.0).sum(axis=0)
        spare = np.maximum(0, (port.max_bits - demand) / port.max_bits * (np.ceil(self.cycles) + stall))
        first = [self.links[t.operand, 1] for t in served]
        least = np.ceil(self.held[first] * self.bits[first] / port.max_bits)
        reducible = np.where(count == 1, np.maximum(0, needed - least), 0.0)
        t = np.arange(len(self.cycles))
        for pick in np.argsort(-np.where(count == 1, needed, -1.0), axis=0, kind="stable"):
            saved = np.minimum(reducible[pick, t], spare)
            needed[pick, t] -= saved
            spare = spare - saved
        return dict(zip(served, needed, strict=True))
