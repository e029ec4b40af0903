"""What a run costs, as totals, by layer, by module and by memory level."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from lightning_effnn._files import write_text
from lightning_effnn._tables import ReportTable, html_table
from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.mapping import MappedLayer
from lightning_effnn.hardware.operation import Operation, UnknownOperation
from lightning_effnn.hardware.pricing import Cost

BITS_PER_KB = 8 * 1000
_HEADINGS = ("module", "energy uJ", "share", "latency us", "MMACs", "DRAM kB")


@dataclass(frozen=True, slots=True, repr=False)
class LayerCost:
    """One operation, its mapping (MAC kinds only), its cost, and its cost if no element were zero."""

    operation: Operation
    mapping: MappedLayer | None
    cost: Cost
    dense: Cost

    def __repr__(self) -> str:
        op, cost = self.operation, self.cost
        return f"LayerCost({op.name!r}, {op.op!r}, energy_pJ={float(cost.energy_pJ):.6g}, cycles={cost.cycles:.6g})"


@dataclass(frozen=True, repr=False)
class CostReport:
    """Cost of one inference (or whatever batch and phase were traced) on one accelerator.

    ``print(report)`` shows the table of its modules, a notebook the same as HTML, ``repr`` the main figures.

    Attributes:
        accelerator: the chip.
        layers: cost of every operation, in order.
        coverage: share of the work whose cost is known, in [0, 1].
        unknown: operations whose cost is not known, by name: elements moved, modules, and why.
        weights_bits: size of all constants that are read, as stored.
        notes: readings of the batch that may be wrong, and how to say the other.
        has_values: whether densities are those of real numbers; if not, everything counts as dense.
    """

    accelerator: Accelerator
    layers: tuple[LayerCost, ...]
    coverage: float
    unknown: Mapping[str, UnknownOperation]
    weights_bits: float
    notes: tuple[str, ...] = ()
    has_values: bool = True
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
        groups: dict[str, dict[str, Any]] = {}
        for row in self.rows():
            name = _module(row["name"], depth)
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
        levels = _by_place(self.layers)
        order = [m.name for m in self.accelerator.memories]
        return dict(sorted(levels.items(), key=lambda kv: order.index(kv[0]) if kv[0] in order else -1))

    def components_by_module(self, depth: int = 2) -> dict[str, dict[str, float]]:
        """Energy in uJ a module and level; the data of :meth:`plot`.

        Raises:
            ValueError: ``depth`` below 1.
        """
        groups: dict[str, list[LayerCost]] = {}
        for layer in self.layers:
            groups.setdefault(_module(layer.operation.name, depth), []).append(layer)
        return {name: _by_place(layers) for name, layers in groups.items()}

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
        """The report as a rich table.

        Args:
            depth: parts of a module's name by which layers are grouped, 1 or more.
        """
        table = ReportTable(title=Text(self._title), title_justify="left", caption=self._caption)
        for heading in _HEADINGS:
            table.add_column(heading, justify="left" if heading == "module" else "right")
        *modules, total = self._cells(depth)
        for name, *figures in modules:
            table.add_row(Text(name), *figures)  # a name is no markup
        table.add_section()
        table.add_row(*total)
        return table

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        return (
            f"<CostReport on {self.accelerator.name!r}: {len(self.layers):,} layers, coverage {self.coverage:.1%},\n"
            f" energy {_figure(self.energy_uJ)} uJ (if nothing were zero {_figure(self.energy_dense_uJ)}),"
            f" latency {_figure(self.latency_us)} us,\n"
            f" {self.macs:,.0f} MACs, DRAM {_figure(self.dram_kB)} kB, weights {_figure(self.weights_kB)} kB>"
        )

    def _repr_html_(self) -> str:
        """The table of :meth:`table`, which a notebook shows."""
        return html_table(f"{self._title}: {self._caption}", _HEADINGS, self._cells(2))

    @property
    def _title(self) -> str:
        return f"Cost on {self.accelerator.name}"

    @property
    def _caption(self) -> str:
        return (
            f"effectual MACs {self.effectual_macs / 1e6:,.3f} M, activation density {self.act_density:.1%}, "
            f"weights {self.weights_kB:,.1f} kB, coverage {self.coverage:.1%}"
        )

    def _cells(self, depth: int) -> list[tuple[str, ...]]:
        """One row a module, then the total."""
        total = {
            "module": "total", "energy_uJ": self.energy_uJ, "latency_us": self.latency_us, "macs": self.macs,
            "dram_kB": self.dram_kB, "share": 1.0,
        }  # fmt: skip
        energy = self.energy_uJ or 1.0
        return [
            (
                row["module"],
                f"{row['energy_uJ']:,.2f}",
                f"{row.get('share', row['energy_uJ'] / energy):.1%}",
                _number(row["latency_us"]),
                f"{row['macs'] / 1e6:,.3f}",
                f"{row['dram_kB']:,.1f}",
            )
            for row in (*self.by_module(depth), total)
        ]


def _by_place(layers: Iterable[LayerCost]) -> dict[str, float]:
    places: dict[str, float] = {}
    for layer in layers:
        for component, energy in layer.cost.components.items():
            spent = float(energy) * layer.operation.repeats / 1e6
            places[component.place] = places.get(component.place, 0.0) + spent
    return places


def _module(name: str, depth: int) -> str:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth={depth}: 1 or more parts of a module's name are needed")
    return ".".join(name.split(".")[:depth]) or "(root)"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.2f}"


def _figure(value: float) -> str:
    """As in the table, but what is small is not rounded to nothing."""
    return f"{value:.3g}" if 0 < value < 1 else _number(value)
