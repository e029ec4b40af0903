"""What a network keeps: its weights, and the activations it holds while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """A tensor that is kept.

    Attributes:
        name: which.
        elements: how many numbers.
        bits: of each.
        steps: for an activation, the steps of the run at which it is written and last read.
    """

    name: str
    elements: int
    bits: int
    steps: tuple[int, int] = (0, 0)

    @property
    def total_bits(self) -> int:
        """Bits of all elements."""
        return self.elements * self.bits


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network on given data; the steps (scales) of quantisers, one number a tensor, are not counted.

    Args:
        weights, buffers: every weight; every activation that is written to be read later.

    >>> weights = [Stored("w", 100, 4)]
    >>> buffers = [Stored("x", 10, 8, (0, 1)), Stored("h", 20, 8, (1, 2)), Stored("y", 5, 32, (2, 2))]
    >>> sizes = Sizes(weights, buffers)
    >>> sizes.weight_bits, sizes.buffer_bits, sizes.peak_bits, sizes.mean_bits
    (400, 400, 320, 13.0)
    """

    weights: Sequence[Stored]
    buffers: Sequence[Stored]

    @property
    def weight_bits(self) -> int:
        """Model size: bits of all weights."""
        return sum(stored.total_bits for stored in self.weights)

    @property
    def buffer_bits(self) -> int:
        """Bits of all activations, each in a place of its own."""
        return sum(stored.total_bits for stored in self.buffers)

    @property
    def peak_bits(self) -> int:
        """Most bits of activations held at one step, where places are used again."""
        steps = {step for stored in self.buffers for step in stored.steps}
        return max((self._held(step) for step in steps), default=0)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a weight."""
        return self.weight_bits / max(1, sum(stored.elements for stored in self.weights))

    @property
    def bits_per_activation(self) -> float:
        """Mean bits of an activation."""
        return self.buffer_bits / max(1, sum(stored.elements for stored in self.buffers))

    @property
    def mean_bits(self) -> float:
        """Mean over tensors, large or small, of the bits of an element."""
        tensors = [*self.weights, *self.buffers]
        return sum(stored.bits for stored in tensors) / max(1, len(tensors))

    def _held(self, step: int) -> int:
        return sum(stored.total_bits for stored in self.buffers if stored.steps[0] <= step <= stored.steps[1])
