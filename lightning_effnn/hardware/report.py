"""What a run costs, as totals, by layer, by module and by memory level."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_effnn._files import write_text
from lightning_effnn._tables import ReportTable
from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.mapping import MappedLayer
from lightning_effnn.hardware.operation import Operation
from lightning_effnn.hardware.pricing import Cost

BITS_PER_KB = 8 * 1000


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One operation, its mapping (MAC kinds only), its cost, and its cost if no element were zero."""

    operation: Operation
    mapping: MappedLayer | None
    cost: Cost
    dense: Cost


@dataclass(frozen=True)
class CostReport:
    """Cost of one inference (or whatever batch and phase were traced) on one accelerator.

    Attributes:
        accelerator: the chip.
        layers: cost of every operation, in order.
        coverage: share of the work whose cost is known, in [0, 1].
        unknown: elements moved by operations that are not known, by name.
        weights_bits: size of all parameters as stored.
    """

    accelerator: Accelerator
    layers: tuple[LayerCost, ...]
    coverage: float
    unknown: Mapping[str, int]
    weights_bits: float
    macs_counted: int | None = None
    effectual_macs_counted: float | None = None
    act_density_counted: float | None = None

    @property
    def energy_uJ(self) -> float:
        """Energy in microjoules."""
        return sum(float(c.cost.energy_pJ) * c.operation.repeats for c in self.layers) / 1e6

    @property
    def energy_dense_uJ(self) -> float:
        """Energy in microjoules if no weight and no activation were zero."""
        return sum(float(c.dense.energy_pJ) * c.operation.repeats for c in self.layers) / 1e6

    @property
    def latency_cycles(self) -> float:
        """Cycles, layer after layer; nan where the model has no notion of time."""
        if not self.accelerator.clock_MHz:
            return math.nan
        return sum(c.cost.cycles * c.operation.repeats for c in self.layers)

    @property
    def latency_us(self) -> float:
        """Time in microseconds; nan where the model has no notion of time."""
        clock = self.accelerator.clock_MHz
        return self.latency_cycles / clock if clock else math.nan

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        if self.macs_counted is not None:
            return self.macs_counted
        return sum(c.operation.macs for c in self.layers)

    @property
    def effectual_macs(self) -> float:
        """Multiply-accumulates with two non-zero factors."""
        if self.effectual_macs_counted is not None:
            return self.effectual_macs_counted
        return sum(c.operation.effectual_macs for c in self.layers)

    @property
    def dram_kB(self) -> float:
        """Traffic to and from DRAM in kB (1000 bytes)."""
        return sum(float(c.cost.dram_bits) * c.operation.repeats for c in self.layers) / BITS_PER_KB

    @property
    def weights_kB(self) -> float:
        """Size of all parameters as stored, in kB."""
        return self.weights_bits / BITS_PER_KB

    @property
    def act_density(self) -> float:
        """Share of non-zero activations among all that multiply-accumulates read."""
        if self.act_density_counted is not None:
            return self.act_density_counted
        read = [(c.operation.inputs * c.operation.repeats, c.operation.i_density) for c in self.layers]
        total = sum(n for n, _ in read)
        return sum(n * d for n, d in read) / total if total else 1.0

    def totals(self) -> dict[str, float]:
        """The figures that are logged, by key without prefix; those without a meaning on this chip are left out."""
        names = (
            "energy_uJ", "energy_dense_uJ", "latency_us", "macs", "effectual_macs", "dram_kB", "weights_kB",
            "act_density", "coverage",
        )  # fmt: skip
        values = {name: float(getattr(self, name)) for name in names}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def rows(self) -> list[dict[str, Any]]:
        """One row an operation: what it was, formats, densities, energy in pJ, time in cycles."""
        return [self._row(c) for c in self.layers]

    @staticmethod
    def _row(layer: LayerCost) -> dict[str, Any]:
        op, times = layer.operation, layer.operation.repeats
        return {
            "name": op.name,
            "op": op.op,
            "kind": op.kind,
            "phase": op.phase,
            "repeats": times,
            "macs": op.macs,
            "effectual_macs": op.effectual_macs,
            "energy_pJ": layer.cost.energy_pJ * times,
            "energy_dense_pJ": layer.dense.energy_pJ * times,
            "latency_cycles": layer.cost.cycles * times,
            "compute_cycles": layer.cost.compute_cycles * times,
            "dram_kB": float(layer.cost.dram_bits) * times / BITS_PER_KB,
            "w_format": str(op.w_format) if op.is_mac else "",
            "i_format": str(op.i_format),
            "o_format": str(op.o_format),
            "w_density": op.w_density if op.is_mac else 1.0,
            "i_density": op.i_density,
        }

    def by_module(self, depth: int = 2) -> list[dict[str, Any]]:
        """Totals a module, names cut after ``depth`` parts; in order of first use.

        Raises:
            ValueError: ``depth`` below 1.
        """
        if depth < 1:
            raise ValueError(f"depth={depth}: 1 or more parts of a module's name are needed")
        groups: dict[str, dict[str, Any]] = {}
        for row in self.rows():
            name = ".".join(row["name"].split(".")[:depth]) or "(root)"
            group = groups.setdefault(
                name, {"module": name, "energy_uJ": 0.0, "latency_us": 0.0, "macs": 0, "dram_kB": 0.0}
            )
            group["energy_uJ"] += row["energy_pJ"] / 1e6
            clock = self.accelerator.clock_MHz
            group["latency_us"] += row["latency_cycles"] / clock if clock else math.nan
            group["macs"] += row["macs"]
            group["dram_kB"] += row["dram_kB"]
        return list(groups.values())

    def by_level(self) -> dict[str, float]:
        """Energy in uJ by where it goes: multiply-accumulates, vector unit, each memory."""
        levels: dict[str, float] = {}
        for layer in self.layers:
            for component, energy in layer.cost.components.items():
                level = component.split(" ")[-1]
                levels[level] = levels.get(level, 0.0) + energy * layer.operation.repeats / 1e6
        order = [m.name for m in self.accelerator.memories]
        return dict(sorted(levels.items(), key=lambda kv: order.index(kv[0]) if kv[0] in order else -1))

    def components_by_module(self, depth: int = 2) -> dict[str, dict[str, float]]:
        """Energy in uJ a module and level; the data of :meth:`plot`."""
        result: dict[str, dict[str, float]] = {}
        for layer in self.layers:
            name = ".".join(layer.operation.name.split(".")[:depth]) or "(root)"
            group = result.setdefault(name, {})
            for component, energy in layer.cost.components.items():
                level = component.split(" ")[-1]
                group[level] = group.get(level, 0.0) + energy * layer.operation.repeats / 1e6
        return result

    def to_csv(self, path: str | Path) -> None:
        """Write :meth:`rows`; the file appears whole or not at all."""
        text = io.StringIO()
        rows = self.rows()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["name"])
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())

    def plot(self, path: str | Path, depth: int = 2) -> None:
        """Stacked bars of energy a module, coloured by where it goes. Needs the extra ``plots``."""
        from lightning_effnn.hardware.plots import stacked_bars

        stacked_bars(self, path, depth)

    def table(self, depth: int = 2) -> ReportTable:
        """The report as a rich table."""
        total = self.energy_uJ or 1.0
        table = ReportTable(title=f"Cost on {self.accelerator.name}", title_justify="left")
        for heading in ("module", "energy uJ", "share", "latency us", "MMACs", "DRAM kB"):
            table.add_column(heading, justify="left" if heading == "module" else "right")
        rows = self.by_module(depth)
        for row in rows:
            table.add_row(
                row["module"],
                f"{row['energy_uJ']:,.2f}",
                f"{row['energy_uJ'] / total:.1%}",
                _number(row["latency_us"]),
                f"{row['macs'] / 1e6:,.3f}",
                f"{row['dram_kB']:,.1f}",
            )
        table.add_section()
        table.add_row(
            "total", f"{self.energy_uJ:,.2f}", "100.0%", _number(self.latency_us), f"{self.macs / 1e6:,.3f}",
            f"{self.dram_kB:,.1f}",
        )  # fmt: skip
        table.caption = (
            f"effectual MACs {self.effectual_macs / 1e6:,.3f} M, activation density {self.act_density:.1%}, "
            f"weights {self.weights_kB:,.1f} kB, coverage {self.coverage:.1%}"
        )
        return table

    def __str__(self) -> str:
        return str(self.table())


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.2f}"
