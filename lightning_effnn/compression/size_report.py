"""What a compressed file holds and what each tensor takes, as rows, a table and totals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_effnn._tables import ReportTable

_DENSE_BYTES = 4


@dataclass(frozen=True, slots=True)
class TensorSize:
    """One tensor of a compressed file.

    Attributes:
        name: its key in the state dict.
        shape: its shape.
        dtype: its dtype, as safetensors calls it.
        layout: how positions and values are written, such as ``"gaps+codes"``.
        format: what one value is stored as: ``"focus5"``, ``"palette18"``, ``"fp16"``.
        sparsity: share of elements that are 0, in [0, 1]; 0 for no elements.
        distinct: how many different values there are; ``None`` for more than 4096 besides 0.
        bytes: what it takes in the file, without its entry in the index.
        entropy_bytes: zero-order entropy of its elements; their plain size if ``distinct`` is ``None``.
        tied_to: the tensor it shares its memory with, which is stored in its place; ``""`` for none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    format: str
    sparsity: float
    distinct: int | None
    bytes: int
    entropy_bytes: float
    tied_to: str = ""

    @property
    def elements(self) -> int:
        """How many elements it has."""
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file for one element."""
        return self.bytes * 8 / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class CompressionReport:
    """What a compressed file takes, in all and by tensor.

    Attributes:
        path: the file; the null device if it was only measured.
        bytes: its size on disk, header, index and checksum included.
        tensors: one entry a tensor, in the order of the state dict.
    """

    path: Path
    bytes: int
    tensors: tuple[TensorSize, ...]

    @property
    def elements(self) -> int:
        """Elements of all tensors; of those that share memory, once."""
        return sum(t.elements for t in self.tensors if not t.tied_to)

    @property
    def dense_bytes(self) -> int:
        """Size of the same tensors at four bytes an element, whatever their dtype; shared ones once."""
        return self.elements * _DENSE_BYTES

    @property
    def ratio(self) -> float:
        """``dense_bytes`` over ``bytes``."""
        return self.dense_bytes / self.bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file for one element."""
        return self.bytes * 8 / self.elements if self.elements else 0.0

    @property
    def sparsity(self) -> float:
        """Share of all elements that are 0."""
        zeros = sum(t.sparsity * t.elements for t in self.tensors if not t.tied_to)
        return zeros / self.elements if self.elements else 0.0

    def rows(self) -> list[dict[str, Any]]:
        """One row a tensor."""
        return [
            {
                "name": t.name,
                "shape": "x".join(map(str, t.shape)),
                "dtype": t.dtype,
                "layout": t.layout,
                "format": t.format,
                "sparsity": t.sparsity,
                "distinct": t.distinct,
                "bits_per_weight": t.bits_per_weight,
                "bytes": t.bytes,
                "entropy_bytes": t.entropy_bytes,
                "tied_to": t.tied_to,
            }
            for t in self.tensors
        ]

    def table(self) -> ReportTable:
        """The report as a rich table."""
        table = ReportTable(title=str(self.path), title_justify="left")
        table.add_column("tensor", overflow="fold")
        table.add_column("shape", no_wrap=True)
        table.add_column("stored as", no_wrap=True)
        for heading in ("zeros", "values", "bits/weight", "bytes", "entropy"):
            table.add_column(heading, justify="right", no_wrap=True)
        for t in self.tensors:
            shape = "x".join(map(str, t.shape)) or "scalar"
            if t.tied_to:
                table.add_row(t.name, shape, f"= {t.tied_to}", "", "", "", "0", "")
                continue
            table.add_row(
                t.name, shape, t.format, f"{t.sparsity:.1%}", "many" if t.distinct is None else f"{t.distinct:,}",
                f"{t.bits_per_weight:.3f}", f"{t.bytes:,}", f"{t.entropy_bytes:,.0f}",
            )  # fmt: skip
        overhead = self.bytes - sum(t.bytes for t in self.tensors)
        table.add_section()
        table.add_row("header, index, checksum", "", "", "", "", "", f"{overhead:,}", "")
        table.add_row(
            "file", f"{self.elements:,}", "", f"{self.sparsity:.1%}", "", f"{self.bits_per_weight:.3f}",
            f"{self.bytes:,}", "",
        )  # fmt: skip
        table.caption = f"{self.dense_bytes:,} bytes in fp32, {self.ratio:,.1f} times smaller"
        return table

    def __str__(self) -> str:
        return str(self.table())
