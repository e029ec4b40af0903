"""One batch of a run, traced as it runs; what goes wrong in tracing never reaches the run."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_effnn.hardware import Accelerator, CostReport, Tracer, estimate
from lightning_effnn.hardware.tracing.batch import inspect_batch


class TracedBatch:
    """Opens and closes the trace of a batch and prices it.

    Args:
        owner: who warns.
        accelerator: the chip.
        batch_size: inferences the figures are for.
        batch_dim: axis of the batch; found if ``None``.
        inferences: how many inferences a full batch of the first traced loader holds; found if ``None``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, owner: str, accelerator: Accelerator, batch_size: int, batch_dim: int | None, inferences: int | None
    ) -> None:
        self.owner = owner
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.batch_dim = batch_dim
        self.inferences = inferences
        self._tracer: Tracer | None = None
        self._said: set[str] = set()
        self._full: int | None = None  # items of the batch that `inferences` was said of
        self._size: int | None = None  # the same, as the batch itself shows it

    def begin(self) -> None:
        """Begin a run: what was said in an earlier one may be said again."""
        self.abandon()
        self._said = set()

    def open(self, model: Any, batch: Any, loader: Any) -> None:
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

    def warn(self, about: str, text: str) -> None:
        """Warn once a run about one thing."""
        if about not in self._said:
            self._said.add(about)
            rank_zero_warn(f"{self.owner}: {text}")

    def _give_up(self, error: Exception) -> None:
        self.warn(str(error), f"no new figures, the batch can't be traced: {type(error).__name__}: {error}")

    def _held(self, batch: Any, loader: Any) -> int | None:
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
        self.warn("inferences", f"{smaller}; it was taken as {share} inferences")
        return int(share)

    def _compare(self, size: int | None) -> None:
        self._size = self._size or size
        if size != self._size:
            self.warn(
                "inferences",
                f"the traced batch has the extent {size} along its axis, the first one had {self._size}; both were"
                f" taken as inferences={self.inferences}",
            )


def loader_of(trainer: Any, loop: str) -> Any:
    """The loader that the first batch of a loop comes from; ``None`` if several make one batch.

    Args:
        trainer: of ``lightning`` or ``pytorch_lightning``.
        loop: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
    """
    if loop == "train":
        loaders = trainer.train_dataloader
        return None if isinstance(loaders, Mapping | list | tuple) else loaders
    names = {"validate": "val_dataloaders", "test": "test_dataloaders", "predict": "predict_dataloaders"}
    loaders = getattr(trainer, names[loop])
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return next(iter(loaders), None) if isinstance(loaders, list | tuple) else loaders


def _items(loader: Any) -> tuple[int, int] | None:
    """Items in a loader's first batch and in a full one, if it says so."""
    full = getattr(loader, "batch_size", None)
    if isinstance(full, bool) or not isinstance(full, int) or full < 1:
        return None
    try:
        return min(full, len(loader.sampler)), full
    except (AttributeError, TypeError, NotImplementedError):
        return None  # a stream: its end isn't known
