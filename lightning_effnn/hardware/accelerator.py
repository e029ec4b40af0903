"""A chip: processing-element array, memory levels, what each access and operation costs, what zeros save.

An :class:`Accelerator` is read from YAML (a preset of this package or a user's file; the schema is in
``hardware/README.md``), or made by :meth:`Accelerator.systolic`. Units stand in the key names. A wrong file
is refused with the file, the key, the value and what would be accepted.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from lightning_effnn._yaml import MOST_BYTES, load_yaml
from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.energy import OperationEnergies
from lightning_effnn.hardware.schema import SchemaError, validate

Operand = Literal["I", "W", "O"]
Direction = Literal["from_high", "to_low", "from_low", "to_high"]
PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True, slots=True)
class Port:
    """A physical port: up to ``max_bits`` move a cycle, in steps of ``min_bits``, for the listed transfers.

    ``serves`` holds ``(operand, direction)``; directions are seen from the memory: ``from_high`` is filled
    from the level above, ``to_low`` feeds the level below, ``from_low`` takes results from below,
    ``to_high`` hands them up.
    """

    kind: Literal["read", "write", "read_write"]
    min_bits: int
    max_bits: int
    serves: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory level: one unit serves the processing elements along ``served_dims``, copies the rest."""

    name: str
    size_bits: int
    read_pJ: float
    write_pJ: float
    operands: tuple[str, ...]
    served_dims: tuple[str, ...]
    ports: tuple[Port, ...]

    def port(self, operand: str, direction: str) -> Port | None:
        """The port of a transfer, None where the level has none."""
        return next((p for p in self.ports if (operand, direction) in p.serves), None)


@dataclass(frozen=True, slots=True)
class Zeros:
    """What the chip saves on zeros of one operand.

    ``compute``: ``none``, ``gating`` (the operation and its register accesses cost no energy) or ``skipping``
    (they cost no time either). ``storage``: ``dense``, ``bitmap`` (one bit an element and the non-zeros) or
    ``run_length`` (each non-zero with the length of the run of zeros before it, ``run_bits`` wide), used in
    the memories named in ``stored_in``, and only where it is smaller than dense.
    """

    compute: Literal["none", "gating", "skipping"] = "none"
    storage: Literal["dense", "bitmap", "run_length"] = "dense"
    run_bits: int = 0
    stored_in: tuple[str, ...] = ()

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
            packed = (density + (1 - density) / 2**self.run_bits) * (bits + self.run_bits)
        smaller = packed < bits
        return packed * smaller + bits * (1 - smaller * 1)


@dataclass(frozen=True)
class Accelerator:
    """A chip. See the module; build one with :meth:`from_preset`, :meth:`from_yaml` or :meth:`systolic`.

    Attributes:
        name, source: what it is and where its numbers come from.
        array: name and size of each dimension of the processing-element array.
        spatial: per kind of layer, the loop unrolled along each array dimension.
        clock_MHz: turns cycles into microseconds.
        energies: energy of one operation by its operands' formats.
        systolic_dims: array dimensions through which results travel a unit a cycle.
        vector_lanes: simple operations a cycle of the unit beside the array.
        memories: from the innermost to the outermost.
        zeros: what zeros of ``weights`` and ``activations`` save.
        access_pJ: energy of a scalar in ``shumailov2021``, which has no memories.
        model: ``mapped`` (everything of this package), ``systolic`` (its cycles are those of a stall-free
            systolic array) or ``shumailov2021`` (the simulator of the sponge-example paper).
    """

    name: str
    source: str
    array: Mapping[str, int]
    spatial: Mapping[str, Mapping[str, str]]
    clock_MHz: float
    energies: OperationEnergies
    memories: tuple[Memory, ...]
    systolic_dims: tuple[str, ...] = ()
    vector_lanes: int = 1
    partial_sum_bits: int = 16
    zeros: Mapping[str, Zeros] = field(default_factory=lambda: {"weights": Zeros(), "activations": Zeros()})
    model: Literal["mapped", "systolic", "shumailov2021"] = "mapped"
    dataflow: Literal["", "ws", "os", "is"] = ""
    access_pJ: float = 0.0

    @classmethod
    def from_preset(cls, name: str) -> Accelerator:
        """A preset of this package.

        Raises:
            ValueError: there is no such preset; the message lists them and the nearest name.

        >>> Accelerator.from_preset("tpu_like").array["D1"]
        32
        """
        if name not in presets():
            near = difflib.get_close_matches(name, presets(), n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown accelerator {name!r}: presets are {', '.join(presets())}.{hint}")
        return _read(PRESETS / f"{name}.yaml")

    @classmethod
    def from_yaml(cls, path: str | Path) -> Accelerator:
        """A chip of the user's own.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a key is missing, misspelt or has a value out of range; the message names all three.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"accelerator file {str(path)!r} does not exist")
        return _read(Path(path).resolve())

    @classmethod
    def load(cls, what: str | Path | Accelerator) -> Accelerator:
        """Whatever names a chip: an Accelerator, a preset's name, or the path of a YAML file."""
        if isinstance(what, Accelerator):
            return what
        if isinstance(what, Path) or str(what).endswith((".yaml", ".yml")):
            return cls.from_yaml(what)
        return cls.from_preset(what)

    @classmethod
    def systolic(cls, rows: int, cols: int, dataflow: str = "ws") -> Accelerator:
        """A ``rows`` x ``cols`` systolic array whose cycles are those of SCALE-Sim (arXiv 1811.02883).

        ``dataflow`` is ``ws`` (weights stay in the array), ``os`` (outputs) or ``is`` (inputs). Memories and
        energies are those of the preset ``horowitz45``.

        Raises:
            ValueError: a size below 1 or an unknown dataflow.

        >>> Accelerator.systolic(16, 16, dataflow="ws").name
        'systolic_ws_16x16'
        """
        for label, value in (("rows", rows), ("cols", cols)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{label}={value!r}: a positive integer is needed")
        loops = {"ws": ("C", "K"), "os": ("OX", "K"), "is": ("C", "OX")}
        if dataflow not in loops:
            raise ValueError(f"dataflow={dataflow!r}: one of 'ws', 'os', 'is' is needed")
        base = cls.from_preset("horowitz45")
        along = dict(zip(base.array, loops[dataflow], strict=True))
        return cls(
            name=f"systolic_{dataflow}_{rows}x{cols}",
            source=f"SCALE-Sim cycles (arXiv 1811.02883); energies of {base.name}",
            array=dict(zip(base.array, (rows, cols), strict=True)),
            spatial={"conv": along, "gemm": along, "depthwise": along},
            clock_MHz=base.clock_MHz,
            energies=base.energies,
            memories=base.memories,
            systolic_dims=tuple(base.array),
            vector_lanes=cols,
            partial_sum_bits=base.partial_sum_bits,
            zeros=base.zeros,
            model="systolic",
            dataflow=dataflow,  # type: ignore[arg-type]
        )

    def levels(self, operand: str) -> list[Memory]:
        """Memory levels that hold an operand, innermost first."""
        return [m for m in self.memories if operand in m.operands]

    def unrolling(self, kind: str) -> list[tuple[str, int]]:
        """``(loop, size)`` of each array dimension for a kind of layer."""
        return [(self.spatial[kind][dim], size) for dim, size in self.array.items()]

    def accumulator_bits(self, weights: NumberFormat, inputs: NumberFormat, outputs: NumberFormat) -> int:
        """Width of a partial sum: the chip's own, or the outputs' where they are wider."""
        return max(self.partial_sum_bits, outputs.bits, inputs.bits if inputs.kind == "float" else 0)

    @property
    def key(self) -> tuple[Any, ...]:
        """What a mapping depends on beside the layer; equal for chips that map alike, whatever their names."""
        return (tuple(self.array.items()), self.memories, self.systolic_dims)

    def __hash__(self) -> int:
        return hash(self.key)

    def summary(self) -> dict[str, str]:
        """Main figures, for tables."""
        size = " x ".join(str(s) for s in self.array.values())
        zeros = ", ".join(f"{what} {z.compute}" for what, z in self.zeros.items() if z.compute != "none")
        return {
            "name": self.name,
            "array": size or "none",
            "memories": ", ".join(f"{m.name} ({'/'.join(m.operands)})" for m in self.memories) or "none",
            "clock": f"{self.clock_MHz:g} MHz" if self.clock_MHz else "no time model",
            "int8 MAC": f"{self.energies.int8_mac_pJ:g} pJ",
            "zeros": zeros or "cost as much as any value",
            "source": self.source,
        }


def presets() -> list[str]:
    """Names of the accelerators that come with the package.

    >>> presets()
    ['edge_tpu_like', 'eyeriss_like', 'horowitz45', 'shumailov2021', 'tpu_like']
    """
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def _read(path: Path) -> Accelerator:
    """Each chip is built anew, for its mappings can be changed; what a text says is worked out once."""
    if path.stat().st_size > MOST_BYTES:
        raise SchemaError(f"{path}: more than {MOST_BYTES:,} bytes, the most that is read")
    return _build(validate(copy.deepcopy(_contents(path.read_bytes(), str(path))), str(path)))


@lru_cache(maxsize=16)
def _contents(text: bytes, file: str) -> Any:
    try:
        return load_yaml(text.decode())
    except ValueError as error:
        raise SchemaError(f"{file}: {error}") from None


def _build(data: dict[str, Any]) -> Accelerator:
    memories = tuple(
        Memory(
            name=name,
            size_bits=m["size_bits"],
            read_pJ=m["read_pJ"],
            write_pJ=m["write_pJ"],
            operands=tuple(m["operands"]),
            served_dims=tuple(m["served_dims"]),
            ports=tuple(
                Port(
                    kind=p["kind"],
                    min_bits=p["min_bits_per_cycle"],
                    max_bits=p["max_bits_per_cycle"],
                    serves=tuple(tuple(s.split()) for s in p["serves"]),
                )
                for p in m["ports"]
            ),
        )
        for name, m in data["memories"].items()
    )
    zeros = {
        what: Zeros(
            compute=z["compute"],
            storage=z["storage"],
            run_bits=z.get("run_bits", 0),
            stored_in=tuple(z.get("stored_in", ())),
        )
        for what, z in data["zeros"].items()
    }
    return Accelerator(
        name=data["name"],
        source=data["source"],
        array=data["array"],
        spatial=data["spatial"],
        clock_MHz=data["clock_MHz"],
        energies=OperationEnergies.of(data["operations"]),
        memories=memories,
        systolic_dims=tuple(data["systolic_dims"]),
        vector_lanes=data["vector_lanes"],
        partial_sum_bits=data["partial_sum_bits"],
        zeros=zeros,
        model=data["model"],
        access_pJ=data.get("access_pJ", 0.0),
    )
