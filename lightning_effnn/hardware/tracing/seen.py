"""What is passed around while one operation is looked at."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lightning_effnn.formats import NumberFormat
from lightning_effnn.hardware.operation import Phase
from lightning_effnn.hardware.tracing.axes import Spot
from lightning_effnn.hardware.tracing.drafts import Source
from lightning_effnn.hardware.tracing.storage import Count, Record

_NOTHING: tuple[Spot, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A constant that an inference reads, as it is stored: a parameter, a buffer, or what is computed from them.

    Attributes:
        name: qualified name of the parameter or buffer, of the first where several make it.
        elements, nonzero: how many numbers, and how many of them are not zero.
        format: how each is stored.
    """

    name: str
    elements: int
    nonzero: int
    format: NumberFormat

    @property
    def bits(self) -> int:
        """Bits of all elements together, stored dense."""
        return self.elements * self.format.bits


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call ran: name and number of the module call, and the phase."""

    name: str
    frame: int
    phase: Phase


@dataclass(slots=True)
class Seen:
    """What a call read, as it was before the call.

    Attributes:
        looked: each tensor with what is known of its storage and what it holds of the batch.
        tainted: whether any of them depends on the batch.
        format: the tag that all floating inputs share.
        counts, formats: non-zeros and formats by tensor.
        sources: for each storage read, who wrote it and how many elements are read of it.
    """

    looked: list[tuple[Tensor, Record | None, tuple[Spot, ...]]]
    tainted: bool
    format: NumberFormat | None = None
    counts: dict[int, Count | None] = field(default_factory=dict)
    formats: dict[int, NumberFormat] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)

    def spots_of(self, tensor: Tensor | None) -> tuple[Spot, ...]:
        """What a tensor among those read holds of the batch."""
        return next((spots for t, _, spots in self.looked if t is tensor), _NOTHING)
