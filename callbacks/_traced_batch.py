"""One batch of a run, traced as it runs; what goes wrong in tracing never reaches the run."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from torch import nn

from lightning_effnn.hardware import Accelerator, CostReport, Tracer, estimate
from lightning_effnn.hardware.tracing.batch import inspect_batch


class TracedBatch:
    """Opens and closes the trace of a batch and prices it.

    Args:
        warn: takes what it is about and the words, to be said once a run.
        accelerator: the chip.
        batch_size: inferences the figures are for.
        batch_dim: axis of the batch; found if ``None``.
        inferences: how many inferences a full batch of the first traced loader holds; found if ``None``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        warn: Callable[[str, str], None],
        accelerator: Accelerator,
        batch_size: int,
        batch_dim: int | None,
        inferences: int | None,
    ) -> None:
        self._warn = warn
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.batch_dim = batch_dim
        self.inferences = inferences
        self._tracer: Tracer | None = None
        self._full: int | None = None  # items of the batch that `inferences` was said of
        self._size: int | None = None  # the same, as the batch itself shows it

    def open(self, model: nn.Module, batch: object, loader: object) -> None:
        """Trace what runs from here on.

        Args:
            model: the LightningModule.
            batch: what it is going to work on.
            loader: where the batch is the first of, or ``None`` if that isn't one loader.
        """
        self.abandon()
        try:
            inferences = self._held(batch, loader)
            tracer = Tracer(model, self.batch_size, batch, batch_dim=self.batch_dim, inferences=inferences)
            tracer.__enter__()
        except Exception as error:
            self._give_up(error)
        else:
            self._tracer = tracer

    def close(self) -> CostReport | None:
        """End the trace; return its report, or ``None`` if none was open or the batch can't be priced."""
        if self._tracer is None:
            return None
        tracer, self._tracer = self._tracer, None
        try:
            tracer.__exit__(None, None, None)
            return estimate(tracer.trace, self.accelerator)
        except Exception as error:
            self._give_up(error)
            return None

    def abandon(self) -> None:
        """End the trace without a report; does nothing if none is open."""
        if self._tracer is not None:
            tracer, self._tracer = self._tracer, None
            tracer.abandon()

    def _give_up(self, error: Exception) -> None:
        self._warn(str(error), f"no new figures, the batch can't be traced: {type(error).__name__}: {error}")

    def _held(self, batch: object, loader: object) -> int | None:
        """How many inferences the batch holds, if the user said so of a full one.

        Raises:
            ValueError: a batch smaller than a full one would hold a fraction of an inference.
        """
        if self.inferences is None:
            return None
        items = _items(loader)
        if items is None:
            self._compare(inspect_batch(batch, self.batch_dim).size)
            return self.inferences
        first, full = items
        self._full = self._full or full
        if first == self._full:
            return self.inferences
        share = self.inferences * Fraction(first, self._full)
        smaller = f"the traced batch has {first} items, and inferences={self.inferences} is said of {self._full}"
        if share.denominator != 1:
            raise ValueError(f"{smaller}: it would hold {float(share):.2f} inferences; give batches of one size")
        self._warn("inferences", f"{smaller}; it was taken as {share} inferences")
        return int(share)

    def _compare(self, size: int | None) -> None:
        self._size = self._size or size
        if size != self._size:
            self._warn(
                "inferences",
                f"the traced batch has the extent {size} along its axis, the first one had {self._size}; both were"
                f" taken as inferences={self.inferences}",
            )


def _items(loader: object) -> tuple[int, int] | None:
    """Items in a loader's first batch and in a full one, if it says so."""
    full = getattr(loader, "batch_size", None)
    if isinstance(full, bool) or not isinstance(full, int) or full < 1:
        return None
    sampler: Any = getattr(loader, "sampler", None)
    try:
        return min(full, len(sampler)), full
    except (TypeError, NotImplementedError):
        return None  # a stream: its end isn't known
