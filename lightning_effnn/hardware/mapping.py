"""Where each loop of a layer runs: the cheapest of all loop orders, for many layers at once.

For every ordering of a layer's temporal loops the memories are filled from the inside, each operand taking
as many loops as fit (uneven mapping); of all orderings the one of least energy is kept, ties going to the
faster. This is the search of LOMA (Symons et al., AICAS 2021) with the cost model of ZigZag (Mei et al., IEEE TC
2021), in closed form over tables of loop subsets (:mod:`nest`) instead of one ordering at a time. There is
nothing to fit: the tests hold it against results of the simulator itself.

A register narrower than one element (a 32-bit number on an 8-bit chip) is taken as wide as the element. Where the
levels inside a memory hold more than it has room for in every order, half of them is used, or half of that.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.latency import Candidates, Timing, latency
from lightning_effnn.hardware.memory import Memory
from lightning_effnn.hardware.nest import IRRELEVANT, OPERANDS, Floats, Ints, NestBatch, Problem
from lightning_effnn.hardware.operation import DIMENSIONS
from lightning_effnn.hardware.transfers import Transfers, link_transfers

_CACHE_SIZE = 4096
_MOST_AT_ONCE = 300_000  # orders of loops, for all layers of a batch: some hundred megabytes
_cache: OrderedDict[tuple[object, Problem], MappedLayer] = OrderedDict()


@dataclass(frozen=True, slots=True)
class Link:
    """Word transfers of one operand at one memory, by direction, for the whole layer, in port widths."""

    memory: str
    operand: str
    level: int
    to_low: float
    from_low: float
    to_high: float
    from_high: float
    read_pJ: float
    write_pJ: float

    @property
    def energy_pJ(self) -> float:
        """Energy of these transfers."""
        reads, writes = self.to_low + self.to_high, self.from_low + self.from_high
        return reads * self.read_pJ + writes * self.write_pJ


@dataclass(frozen=True, slots=True)
class MappedLayer:
    """The mapping of one layer and what it moves.

    Attributes:
        order: temporal loops, innermost first, ``(dimension, trip count)``.
        held: per operand, number of loops inside each memory level.
        links: transfers of each operand at each level, innermost first, operands in the order O, W, I.
        timing: cycles, split into compute, stalls, loading, unloading and drain.
    """

    order: tuple[tuple[str, int], ...]
    held: dict[str, tuple[int, ...]]
    links: tuple[Link, ...] = field(repr=False)
    timing: Timing


def map_layers(problems: Sequence[Problem], accelerator: Accelerator) -> list[MappedLayer]:
    """The best mapping of each problem on ``accelerator``; equal problems are searched once.

    Raises:
        ValueError: a memory is too small for a layer in any order of its loops; the message names both.
    """
    fresh: dict[int, list[Problem]] = {}
    results: dict[Problem, MappedLayer] = {}
    for problem in dict.fromkeys(problems):
        found = _cache.get((accelerator.key, problem))
        if found is None:
            fresh.setdefault(len(problem.loops()), []).append(problem)
        else:
            results[problem] = found
    for loops, group in fresh.items():
        step = max(1, _MOST_AT_ONCE // math.factorial(loops))
        for start in range(0, len(group), step):
            some = group[start : start + step]
            results.update(zip(some, _best(accelerator, some), strict=True))
    for problem, mapped in results.items():
        _cache[accelerator.key, problem] = mapped
        _cache.move_to_end((accelerator.key, problem))
    while len(_cache) > _CACHE_SIZE:
        _cache.popitem(last=False)
    return [results[p] for p in problems]


def forget_mappings() -> None:
    """Empty the cache of searched layers; what a benchmark of the search needs."""
    _cache.clear()


class _NoRoom(Exception):
    """A memory is too small for what the levels inside it hold, whatever the order of a layer's loops."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory.name)
        self.memory = memory


def _best(accelerator: Accelerator, problems: list[Problem]) -> list[MappedLayer]:
    """Registers that together hold more than the memory around them are used in part."""
    try:
        return _search(NestBatch(accelerator, problems))
    except _NoRoom as full:
        if len(problems) > 1:  # the others may have room
            return [mapped for problem in problems for mapped in _best(accelerator, [problem])]
        inside = [m.name for m in accelerator.memories[: accelerator.memories.index(full.memory)] if m.size_bits > 1]
        if not inside:
            extents = dict(zip(DIMENSIONS, problems[0].extents, strict=True))
            raise ValueError(
                f"a layer with the extents {extents} has no mapping on {accelerator.name!r}: memory"
                f" {full.memory.name!r} has no room for what the array works on at once; make size_bits larger"
            ) from None
    halved = (replace(m, size_bits=m.size_bits // 2) if m.name in inside else m for m in accelerator.memories)
    return _best(replace(accelerator, memories=tuple(halved)), problems)


@lru_cache(maxsize=8)
def _orderings(n: int) -> tuple[Ints, Ints]:
    """All orders of ``n`` loops: ``[n!, n]`` loop at each position, ``[n!, n + 1]`` mask of each prefix."""
    loops = np.array(list(itertools.permutations(range(n))), dtype=np.int64).reshape(-1, n)
    prefixes = np.concatenate([np.zeros((len(loops), 1), np.int64), np.cumsum(1 << loops, axis=1)], axis=1)
    return loops, prefixes


def _search(nest: NestBatch) -> list[MappedLayer]:
    loops, prefixes = _orderings(nest.loop_count)
    bounds, valid = _fill(nest, prefixes)
    stationary = {op: _pass_irrelevant(nest, op, loops, bounds[op]) for op in OPERANDS}
    transfers = link_transfers(nest)
    rows = np.arange(len(nest.problems))[:, None]
    total = np.zeros((len(nest.problems), len(loops)))
    for op in OPERANDS:
        for link, position in enumerate(stationary[op][:-1]):
            masks = np.take_along_axis(prefixes[None], position[..., None], axis=2)[..., 0]
            total += transfers[op][link].energy[rows, masks]
    total = np.where(valid, total, np.inf)
    best = total.min(axis=1, keepdims=True)
    which, order = np.nonzero(total <= best * (1 + 1e-12))
    picks = Candidates(
        nest=nest,
        layer=which,
        loops=loops[order],
        prefixes=prefixes[order],
        bounds={op: np.stack([p[which, order] for p in stationary[op]]) for op in OPERANDS},
    )
    timing = latency(picks)
    winners = _fastest(which, timing.total, len(nest.problems))
    return [_collect(nest, transfers, picks, timing, row, t) for row, t in enumerate(winners)]


def _fastest(layer: Ints, cycles: Floats, count: int) -> Ints:
    """Per layer, index of the first of its candidates with the fewest cycles."""
    order = np.lexsort((np.arange(len(layer)), cycles, layer))
    first = np.searchsorted(layer[order], np.arange(count))
    winners: Ints = order[first]
    return winners


def _fill(nest: NestBatch, prefixes: Ints) -> tuple[dict[str, list[Ints]], npt.NDArray[np.bool_]]:
    """Per operand and level, how many loops of each ordering lie inside: ``[L, orders]`` each."""
    shape = (len(nest.problems), len(prefixes))
    taken = {op: np.zeros(shape, np.int64) for op in OPERANDS}
    bounds: dict[str, list[Ints]] = {op: [] for op in OPERANDS}
    valid = np.ones(shape, bool)
    for memory in nest.accelerator.memories:
        levels = {op: len(bounds[op]) for op in memory.operands}
        inner = [op for op in memory.operands if levels[op] < len(nest.accelerator.levels(op)) - 1]
        chosen = {op: np.full(shape, nest.loop_count, np.int64) for op in memory.operands if op not in inner}
        if inner:
            found, fits = _fit(nest, memory, {op: levels[op] for op in inner}, taken, prefixes)
            chosen.update(found)
            valid &= fits
            if not valid.any(axis=1).all():
                raise _NoRoom(memory)
        for op in memory.operands:
            bounds[op].append(chosen[op])
            taken[op] = chosen[op]
    return bounds, valid


def _footprint(nest: NestBatch, op: str, level: int, taken: Ints, prefixes: Ints) -> Floats:
    """``[L, orders, n + 1]`` bits that the operand takes at a level when the first ``i`` loops run inside."""
    held = nest.elements[op][:, level + 1]
    if op != "O":
        result: Floats = (held * nest.bits[op][:, None])[:, prefixes]
        return result
    # the width of a sum is decided once a level, by what remains to be added when the level begins
    start = np.take_along_axis(prefixes[None], taken[..., None], axis=2)[..., 0]
    partial = nest.partial_sums(whole=False)[:, level][np.arange(len(held))[:, None], start]
    width = np.where(partial, nest.bits["P"][:, None], nest.bits["O"][:, None])
    result = held[:, prefixes] * width[..., None]
    return result


def _fit(
    nest: NestBatch, memory: Memory, levels: dict[str, int], taken: dict[str, Ints], prefixes: Ints
) -> tuple[dict[str, Ints], npt.NDArray[np.bool_]]:
    """The most loops that fit; sharing operands split the memory so that the level above is read least."""
    size = {op: _footprint(nest, op, lv, taken[op], prefixes) for op, lv in levels.items()}
    least = [np.take_along_axis(size[op], taken[op][..., None], axis=2)[..., 0] for op in levels]
    smallest: Floats = np.sum(least, axis=0)
    # registers are at least as wide as one element of what they hold
    innermost = all(level == 0 for level in levels.values())
    capacity = np.maximum(memory.size_bits, smallest) if innermost else np.full_like(smallest, memory.size_bits)
    *others, last = levels
    trips = nest.trips[:, prefixes]
    rereads = {op: size[op] * (trips[..., -1:] / trips) for op in levels} if others else {}
    best = np.full(smallest.shape, np.inf)
    chosen = {op: taken[op].copy() for op in levels}
    # footprints never shrink and re-reads never grow with more loops inside: given the other operands' choice,
    # the most that fits beside them is best for the last one; ties go to the later choice
    for picks in itertools.product(range(nest.loop_count + 1), repeat=len(others)):
        room = capacity - sum(size[op][..., i] for op, i in zip(others, picks, strict=True))
        most = (size[last] <= room[..., None]).sum(axis=2) - 1
        possible = most >= taken[last]
        cost = np.zeros_like(best)
        for op, i in zip(others, picks, strict=True):
            possible &= taken[op] <= i
            cost += rereads[op][..., i]
        if others:
            cost += np.take_along_axis(rereads[last], np.maximum(most, 0)[..., None], axis=2)[..., 0]
        better = possible & (cost <= best * (1 + 1e-12))
        best = np.where(better, cost, best)
        for op, pick in zip(levels, (*picks, most), strict=True):
            chosen[op] = np.where(better, pick, chosen[op])
    return chosen, smallest <= capacity


def _pass_irrelevant(nest: NestBatch, op: str, loops: Ints, bounds: list[Ints]) -> list[Ints]:
    """Boundaries moved up over loops that leave the operand unchanged: its data stays where it is.

    The list gains the boundary below the innermost level: an input stays at the array's ports during its
    innermost irrelevant loops, a sum is read and written each cycle.
    """
    still = IRRELEVANT[op][nest.dims][:, loops]  # [L, orders, n]
    n = nest.loop_count
    onward = np.empty((*still.shape[:2], n + 1), np.int64)
    onward[..., n] = n
    for i in range(n - 1, -1, -1):
        onward[..., i] = np.where(still[..., i], onward[..., i + 1], i)
    moved = [np.take_along_axis(onward, b[..., None], axis=2)[..., 0] for b in bounds]
    below = np.zeros_like(bounds[0]) if op == "O" else onward[..., 0]
    return [below, *moved]


def _collect(
    nest: NestBatch,
    transfers: dict[str, list[Transfers]],
    picks: Candidates,
    timing: Timing,
    row: int,
    t: int,
) -> MappedLayer:
    links, held = [], {}
    for op in OPERANDS:
        levels = nest.accelerator.levels(op)
        masks = picks.prefixes[t][picks.bounds[op][:, t]]
        held[op] = tuple(int(b) for b in picks.bounds[op][1:, t])
        for level, memory in enumerate(levels):
            low, high = transfers[op][level], transfers[op][level + 1] if level + 1 < len(levels) else None
            links.append(
                Link(
                    memory.name,
                    op,
                    level,
                    to_low=float(low.to_low[row, masks[level]]),
                    from_low=float(low.from_low[row, masks[level]]),
                    to_high=float(high.to_high[row, masks[level + 1]]) if high else 0.0,
                    from_high=float(high.from_high[row, masks[level + 1]]) if high else 0.0,
                    read_pJ=memory.read_pJ,
                    write_pJ=memory.write_pJ,
                )
            )
    order = tuple((DIMENSIONS[nest.dims[row, j]], int(nest.factors[row, j])) for j in picks.loops[t])
    return MappedLayer(order, held, tuple(links), timing.at(t))
