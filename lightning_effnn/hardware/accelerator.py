"""A chip: processing-element array, memory levels, what each access and operation costs, what zeros save.

An :class:`Accelerator` is read from YAML (a preset of this package or a user's file; the schema is in
``hardware/README.md``), or made by :meth:`Accelerator.systolic`. Units stand in the key names. A wrong file
is refused with the file, the key, the value and what would be accepted.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from lightning_effnn._yaml import MOST_BYTES, load_yaml
from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware import consistency
from lightning_effnn.hardware._numbers import whole
from lightning_effnn.hardware.energy import OperationEnergies
from lightning_effnn.hardware.memory import Memory, Port, Zeros
from lightning_effnn.hardware.schema import (
    CONFIG,
    Amount,
    Kind,
    Label,
    Loop,
    Positive,
    Role,
    SchemaError,
    Text,
    Unfit,
    refusal,
)

PRESETS = Path(__file__).parent / "presets"


def _by_name(memories: Any) -> Any:
    """A file has a mapping of names to memories."""
    if isinstance(memories, tuple | list) and all(isinstance(memory, Memory) for memory in memories):
        return memories
    if not isinstance(memories, Mapping):
        raise ValueError("accepted: a mapping of names to memories")
    for name, memory in memories.items():
        if not isinstance(memory, Mapping):
            raise Unfit(str(name), memory, "a mapping of keys to values")
        if "name" in memory:
            raise Unfit(f"{name}.name", memory["name"], "no such key: the name is the key of the memory")
    return [{**memory, "name": name} for name, memory in memories.items()]


def _of_both(zeros: Any) -> Any:
    return {"weights": Zeros(), "activations": Zeros(), **zeros} if isinstance(zeros, Mapping) else zeros


@dataclass(frozen=True, kw_only=True, repr=False, config=CONFIG)
class Accelerator:
    """A chip. See the module; build one with :meth:`from_preset`, :meth:`from_yaml` or :meth:`systolic`.

    What it is built from is checked; ``dataclasses.replace`` gives a changed one, checked again.

    Attributes:
        name, source: what it is and where its numbers come from.
        array: name and size of each dimension of the processing-element array.
        spatial: per kind of layer, the loop unrolled along each array dimension.
        clock_MHz: turns cycles into microseconds; 0 for a model without time.
        energies: energy of one operation by its operands' formats (``operations`` in a file).
        vector_lanes: simple operations a cycle of the unit beside the array.
        partial_sum_bits: width of a partial sum.
        systolic_dims: array dimensions through which results travel a unit a cycle.
        memories: from the innermost to the outermost, which holds everything and serves the whole array.
        zeros: what zeros of ``weights`` and ``activations`` save.
        model: ``mapped`` (everything of this package), ``systolic`` (its cycles are those of a stall-free
            systolic array) or ``shumailov2021`` (the simulator of the sponge-example paper).
        dataflow: of a systolic array: ``ws``, ``os``, ``is``.
        access_pJ: energy of a scalar in ``shumailov2021``, which has no memories.

    Raises:
        ValueError: a value out of range, or one that does not fit the others.
    """

    name: Text
    source: Text
    clock_MHz: Amount
    energies: Annotated[OperationEnergies, Field(alias="operations")]
    vector_lanes: Positive
    partial_sum_bits: Positive
    array: dict[Label, Positive] = field(default_factory=dict)
    spatial: dict[Kind, dict[str, Loop]] = field(default_factory=dict)
    memories: Annotated[tuple[Memory, ...], BeforeValidator(_by_name)] = ()
    systolic_dims: tuple[Text, ...] = ()
    zeros: Annotated[dict[Role, Zeros], BeforeValidator(_of_both), Field(validate_default=True)] = field(
        default_factory=dict
    )
    model: Literal["mapped", "systolic", "shumailov2021"] = "mapped"
    dataflow: Literal["", "ws", "os", "is"] = ""
    access_pJ: Amount = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Accelerator:
        consistency.check(self)
        return self

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
        """Whatever names a chip: an Accelerator, a preset's name, or the path of a YAML file.

        Raises:
            TypeError: it is none of these.
            ValueError, FileNotFoundError: as :meth:`from_preset` and :meth:`from_yaml`.
        """
        if isinstance(what, Accelerator):
            return what
        if not isinstance(what, str | Path):
            raise TypeError(
                f"accelerator={what!r}: a preset's name, the path of a YAML file or an Accelerator is needed"
            )
        if isinstance(what, Path) or what.lower().endswith((".yaml", ".yml")):
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
            if (whole(value) or 0) < 1:
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

    def __repr__(self) -> str:
        memories = ", ".join(memory.name for memory in self.memories)
        return f"Accelerator(name={self.name!r}, model={self.model!r}, array={self.array}, memories=({memories}))"

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
    """What a text says is worked out once; each chip has mappings of its own, for they can be changed."""
    if path.stat().st_size > MOST_BYTES:
        raise SchemaError(f"{path}: more than {MOST_BYTES:,} bytes, the most that is read")
    chip = copy.copy(_parsed(path.read_bytes(), str(path)))
    for name in ("array", "spatial", "zeros"):
        object.__setattr__(chip, name, copy.deepcopy(getattr(chip, name)))
    return chip


@lru_cache(maxsize=16)
def _parsed(text: bytes, file: str) -> Accelerator:
    try:
        raw = load_yaml(text.decode())
    except ValueError as error:
        raise SchemaError(f"{file}: {error}") from None
    try:
        return _CHIP.validate_python(raw, by_name=False, by_alias=True)
    except ValidationError as error:
        raise refusal(error, file, raw, _KEYS) from None


def _keys(cls: Any) -> tuple[str, ...]:
    return tuple(known.alias or name for name, known in cls.__pydantic_fields__.items())


_CHIP = TypeAdapter(Accelerator)
_KEYS = {
    "": _keys(Accelerator),
    "memories": tuple(key for key in _keys(Memory) if key != "name"),
    "ports": _keys(Port),
    "zeros": _keys(Zeros),
    "operations": _keys(OperationEnergies),
}
