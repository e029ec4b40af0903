"""Tables of the energy of each choice of a graph network, from traces of a block.

A block is traced with each option, with a number of bits for each place that no format has: wherever it turns up in the
operations, the bits of that place decide. What an operation moves and does is a constant and a share for each channel;
two traces of narrow blocks give both. How zeros spread from a product to all that is done for the edges is traced with
several shares of them. So every network is priced by :func:`lightning_effnn.hardware.estimate` without being run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_effnn import hardware
from lightning_effnn._random import random_state_kept
from lightning_effnn.formats import FP32, Binary, FixedPoint, NumberFormat
from lightning_effnn.formats.tagging import simulated, tag
from lightning_effnn.hardware.engines import check_prices_operations
from lightning_effnn.search.cost import CostTerm
from lightning_effnn.search.graph.block import GraphBlock
from lightning_effnn.search.graph.config import ATTENTIONS, BITS, FULL, WITHOUT_WEIGHTS, BlockConfig
from lightning_effnn.search.graph.densities import Densities
from lightning_effnn.search.graph.parts import Graph
from lightning_effnn.search.graph.space import GraphSpace

_NARROW, _WIDE = 2, 4
"""Widths that are traced."""
_SHARES = (0.05, 0.2, 0.5, 1.0)
"""Densities of a product that are traced, with the wider block."""
_IN = "<activation_a"
"""The place before a block; ``<`` says: of the block before."""
_WEIGHTED = tuple(kind for kind in ATTENTIONS if kind not in WITHOUT_WEIGHTS)
_MARKS = {place: 40 + number for number, place in enumerate((_IN, *BITS))}
_PLACES = {bits: place for place, bits in _MARKS.items()}
_PLAIN = {"attention": "none", "aggregation": "sum", "activation": "none", "skip": "none"}
_Entry = tuple[tuple[str, ...], tuple[int, ...], hardware.Operation]


class _Mark(nn.Module):
    """Declares the bits of a place; leaves a share of the numbers, and zeros."""

    def __init__(self, place: str, share: float = 1.0) -> None:
        super().__init__()
        self.format = FixedPoint(_MARKS[place])
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        with simulated():
            draws = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), device="cpu")
            x = x * (draws < self.share).to(x.device)
        return tag(x, self.format)


class _Probe(nn.Module):
    """A block alone, called like a network."""

    def __init__(self, config: BlockConfig, share: float) -> None:
        super().__init__()

        def quantizers(name: str, signed: bool = True) -> nn.Module:
            return _Mark(name, share if name == "linear_a" else 1.0)

        self.input = _Mark(_IN)
        self.block = GraphBlock.from_config(config, config.width, 0.0, quantizers)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        result: Tensor = self.block(self.input(x), Graph.of(edge_index, len(x)))
        return result


@dataclass(frozen=True)
class _Step:
    """An operation of a block, and the options with which it runs.

    Attributes:
        part: the part of the block it belongs to.
        options: of the block's parts, as far as the operation depends on them.
        narrow: as traced in the narrow block.
        wide: as traced in the wider one, with each share of non-zeros.
    """

    part: str
    options: Mapping[str, str]
    narrow: hardware.Operation
    wide: tuple[hardware.Operation, ...]

    @property
    def places(self) -> tuple[str, ...]:
        """Places whose bits its operands have."""
        op = self.narrow
        formats = (op.i_format, op.o_format, op.w_format) if op.is_mac else (op.i_format, op.o_format)
        return tuple(dict.fromkeys(_PLACES[f.bits] for f in formats if f.bits in _PLACES))

    def at(self, width: int, density: float, bits: Mapping[str, int], **product: Any) -> hardware.Operation:
        """The operation in a network of this width, each place with its bits."""
        low, high = self.narrow, self.wide[-1]
        fields: dict[str, Any] = {
            f"{operand}_density": float(
                np.interp(density, _SHARES, [getattr(op, f"{operand}_density") for op in self.wide])
            )
            for operand in "io"
        }
        for operand in "wio":
            place = _PLACES.get(getattr(low, f"{operand}_format").bits)
            if place is not None and place in bits:
                fields[f"{operand}_format"] = _format(bits[place])
        if low.is_mac:
            return replace(low, K=width, **{**fields, **product})
        for name in ("elements_in", "elements_out", "operations"):
            first, second = getattr(low, name), getattr(high, name)
            fields[name] = round(first + (second - first) * (width - _NARROW) / (_WIDE - _NARROW))
        if low.fused:  # priced alone: it writes nothing of its own
            fields["elements_out"] = 0
        return replace(low, fused=False, **{**fields, **product})


class EnergyTables:
    """Energy in pJ of every part of every network of a space on one graph.

    Args:
        space: of the networks.
        x, edge_index: of the graph.
        accelerator: a preset's name, or anything else that ``hardware.estimate`` takes.
        densities: of each block, as measured; without them, those of normally distributed numbers.

    Raises:
        ValueError: an accelerator that prices modules, not operations.

    Source: a table of operations, and its expectation: Wu et al. (2019), "FBNet", arXiv 1812.03443, section 3.3.
    """

    def __init__(
        self,
        space: GraphSpace,
        x: Tensor,
        edge_index: Tensor,
        accelerator: str | Path | hardware.Accelerator,
        densities: Sequence[Densities] | None = None,
    ) -> None:
        self.space = space
        self.chip = hardware.Accelerator.load(accelerator)
        check_prices_operations(self.chip)
        self._graph = len(x), edge_index.cpu()
        self._x_density = float(torch.count_nonzero(x)) / max(1, x.numel())
        self._densities = densities or [Densities() for _ in range(space.num_layers)]
        self._traces: dict[tuple[Any, ...], list[_Step]] = {}

    def terms(self) -> list[CostTerm]:
        """Return the cost terms, those of the same choices added up."""
        steps = list(self._steps())
        entries = [entry for number in range(self.space.num_layers) for entry in self._entries(steps, number)]
        distinct = tuple(dict.fromkeys(operation for _, _, operation in entries))
        layers = hardware.estimate(hardware.Trace(operations=distinct), self.chip).layers
        energy = {op: float(layer.cost.energy_pJ) * op.repeats for op, layer in zip(distinct, layers, strict=True)}
        tables: dict[tuple[str, ...], np.ndarray] = {}
        for read, place, operation in entries:
            if read not in tables:
                tables[read] = np.zeros([len(self.space.options[choice]) for choice in read])
            tables[read][place] += energy[operation]
        return [CostTerm(" ".join(read), read, torch.from_numpy(table)) for read, table in tables.items()]

    def _entries(self, steps: Sequence[_Step], number: int) -> Iterator[_Entry]:
        """For each step and each combination of what it depends on: the choices, the place in their table, the cost."""
        options = self.space.options
        for step in steps:
            if step.part == "graph":
                if not number:
                    yield (), (), step.narrow  # the edges are prepared once
                continue
            if any(option not in options[self._name(part, number)] for part, option in step.options.items()):
                continue  # the last block has no activation, the first no skip
            for fixed, places in self._variants(step, number):
                names = list(dict.fromkeys(["width", *places.values(), *self._more(step, number)]))
                chosen_parts = {**step.options, **fixed}
                read = tuple(self._name(name, number) for name in (*chosen_parts, *names))
                for picks in itertools.product(*(options[choice] for choice in read[len(chosen_parts) :])):
                    picked = {**chosen_parts, **dict(zip(names, picks, strict=True))}
                    bits = {place: picked[name] for place, name in places.items()}
                    place = tuple(
                        options[choice].index(pick) for choice, pick in zip(read, picked.values(), strict=True)
                    )
                    yield read, place, self._operation(step, number, picked, bits)

    def _more(self, step: _Step, number: int) -> Iterator[str]:
        """What else an operation depends on: the channels in, and what decides how many of its numbers are zero."""
        if step.narrow.is_mac and number:
            yield "<width"
        if step.part in ("attention", "aggregation"):
            yield "linear_a"
        if step.part == "attention" and step.options["attention"] in _WEIGHTED:
            yield "attention_w"

    def _variants(self, step: _Step, number: int) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
        """Where the bits of each place come from: without an activation, what was aggregated is handed on as it is."""
        places = {place: place for place in step.places}
        if _IN in places and not number:
            places[_IN] = "input_a"
        options = self.space.options
        own = options[self._name("activation", number)] if "aggregation_a" in places else ("",)
        before = options[self._name("<activation", number)] if _IN in places and number else ("",)
        for kind, kind_before in itertools.product(own, before):
            fixed, renamed = {}, dict(places)
            if kind:
                fixed["activation"] = kind
                renamed["aggregation_a"] = "aggregation_a" if kind == "none" else "activation_a"
            if kind_before:
                fixed["<activation"] = kind_before
                renamed[_IN] = "<aggregation_a" if kind_before == "none" else "<activation_a"
            yield fixed, renamed

    def _operation(
        self, step: _Step, number: int, picked: Mapping[str, Any], bits: Mapping[str, int]
    ) -> hardware.Operation:
        here = self._densities[number]
        density = here.of("linear_a", picked["linear_a"]) if "linear_a" in picked else 1.0
        if "attention_w" in picked:
            density *= here.of("attention_w", picked["attention_w"])
        product: dict[str, Any] = {}
        if "aggregation_a" in bits and not step.narrow.is_mac and not step.narrow.fused:
            product["o_density"] = here.activated(picked["activation"], bits["aggregation_a"])
        if step.narrow.is_mac:
            before = self._densities[number - 1]
            product = {
                "C": picked["<width"] if number else self.space.in_channels,
                "i_density": _rounded(before.activated(picked["<activation"], bits[_IN]))
                if number
                else self._x_density,
                "w_density": _rounded(here.of("linear_w", bits["linear_w"])),
            }
        return step.at(picked["width"], density, bits, **product)

    def _name(self, name: str, number: int) -> str:
        if name == "input_a":
            return name
        return f"blocks.{number - 1}.{name[1:]}" if name.startswith("<") else f"blocks.{number}.{name}"

    def _steps(self) -> Iterator[_Step]:
        """Every operation of every option, each traced beside the plainest options of the other parts."""
        for part in ("graph", "linear", "bias"):
            yield from self._steps_of(part, {})
        for kind in self.space.skip:
            yield from self._steps_of("skip", {"skip": kind})
        for kind in self.space.activation:
            yield from self._steps_of("activation", {"activation": kind})
        for kind in self.space.attention:
            yield from self._steps_of("attention", {"attention": kind})
            # a message is multiplied where there is a coefficient, whichever
            like = "none" if kind == "none" else "gcn"
            for aggregation in self.space.aggregation:
                for step in self._steps_of("aggregation", {"attention": like, "aggregation": aggregation}):
                    yield replace(step, options={"attention": kind, "aggregation": aggregation})

    def _steps_of(self, part: str, options: Mapping[str, str]) -> Iterator[_Step]:
        return (replace(step, options=options) for step in self._traced({**_PLAIN, **options}) if step.part == part)

    def _traced(self, options: Mapping[str, Any]) -> list[_Step]:
        """Operations of a block."""
        key = tuple(options.values())
        if key not in self._traces:
            narrow = self._operations(BlockConfig(_NARROW, **options), 1.0)
            wide = [self._operations(BlockConfig(_WIDE, **options), share) for share in _SHARES]
            steps = []
            for first, *others in zip(narrow, *wide, strict=True):
                assert all((first.op, first.fused, first.repeats) == (op.op, op.fused, op.repeats) for op in others)
                steps.append(_Step(_part_of(first.name), {}, first, tuple(others)))
            self._traces[key] = steps
        return self._traces[key]

    def _operations(self, config: BlockConfig, share: float) -> list[hardware.Operation]:
        nodes, edge_index = self._graph
        x = torch.randn(nodes, config.width, generator=torch.Generator().manual_seed(0), device="cpu")
        with random_state_kept(), torch.device("cpu"):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would seed all devices
            probe = _Probe(config, share)
        # as estimated: what is fused to an operation is in the format of its result
        report = hardware.estimate(hardware.trace(probe, x, edge_index=edge_index), self.chip)
        return [layer.operation for layer in report.layers]


def _rounded(density: float) -> float:
    """To sixteenths: products that are nearly alike are priced once."""
    return max(1, round(16 * density)) / 16


def _part_of(module: str) -> str:
    """The part of a block that a module belongs to."""
    names = module.split(".")
    return "graph" if not names[0] else names[1] if len(names) > 1 else "bias"


def _format(bits: int) -> NumberFormat:
    return FP32 if bits == FULL else Binary() if bits == 1 else FixedPoint(bits)
