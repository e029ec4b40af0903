"""When something happens in a fit: at a fraction of it, or at an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

Moment = float | int


@dataclass(frozen=True, slots=True)
class Schedule:
    """From ``start`` to ``end``; a float is a fraction of the fit, an int an epoch.

    Raises:
        ValueError: a fraction outside [0, 1], a negative epoch, or an end before its start.

    >>> Schedule.of("prune", (0.1, 0.5)).progress(0.3, max_epochs=10)
    0.5
    >>> Schedule.of("prune", (2, 6)).progress(0.3, max_epochs=10)
    0.25
    """

    name: str
    start: Moment
    end: Moment

    @classmethod
    def of(cls, name: str, window: tuple[Moment, Moment]) -> Schedule:
        """From the pair that a user gives."""
        try:
            start, end = window
        except (TypeError, ValueError):
            raise ValueError(f"{name}={window!r}: a pair (start, end) is needed") from None
        for moment in (start, end):
            epoch = isinstance(moment, int) and not isinstance(moment, bool)
            if not (epoch and moment >= 0) and not (isinstance(moment, float) and 0.0 <= moment <= 1.0):
                raise ValueError(
                    f"{name}={window!r}: {moment!r} is neither a fraction of the fit (a float from 0 to 1)"
                    " nor an epoch (an int of 0 or more)"
                )
        if type(start) is type(end) and end < start:
            raise ValueError(f"{name}={window!r}: the end lies before the start")
        return cls(name, start, end)

    def fractions(self, max_epochs: int | None) -> tuple[float, float]:
        """Start and end as fractions of the fit.

        Args:
            max_epochs: its length; None if that is given in steps.

        Raises:
            MisconfigurationException: it does not fit into ``max_epochs``, or counts epochs of a fit that does not.
        """
        if max_epochs is None:
            if isinstance(self.start, int) or isinstance(self.end, int):
                raise MisconfigurationException(
                    f"{self.name}=({self.start}, {self.end}) counts epochs, the fit counts steps: give the Trainer"
                    " max_epochs, or the window in fractions of the fit such as 0.5"
                )
            return self.start, self.end
        start, end = (m / max_epochs if isinstance(m, int) else m for m in (self.start, self.end))
        if end > 1.0 or end < start:
            raise MisconfigurationException(
                f"{self.name}=({self.start}, {self.end}) does not fit into max_epochs={max_epochs}:"
                " it has to begin before it ends and to end with the fit at the latest"
            )
        return start, end

    def progress(self, done: float, max_epochs: int | None) -> float:
        """Share of the window that has passed when ``done`` of the fit has; below 0 before it begins."""
        start, end = self.fractions(max_epochs)
        if done < start:
            return -1.0
        return 1.0 if done >= end else (done - start) / (end - start)


def epochs_of(trainer: Trainer) -> int | None:
    """How many epochs the fit has; None where ``max_steps`` alone ends it."""
    epochs = trainer.max_epochs
    return int(epochs) if epochs is not None and epochs > 0 else None


def passed(trainer: Trainer, batches: int) -> float:
    """Fraction of the fit that has passed with so many batches of the present epoch.

    Where a loader has no length, epochs are counted as passed from their first batch on.
    """
    epochs, each = epochs_of(trainer), trainer.num_training_batches
    if epochs is None:
        return float(trainer.global_step / trainer.max_steps)
    if math.isinf(each):
        return float((trainer.current_epoch + 1) / epochs)
    return float((trainer.current_epoch * each + batches) / (epochs * each))


def check_end(trainer: Trainer, owner: str, *windows: Schedule | None) -> None:
    """Refuse a fit whose end isn't known, or into which a schedule does not fit.

    Args:
        trainer: before the fit.
        owner: who has the schedules.
        windows: the schedules; None for one that is left out.

    Raises:
        MisconfigurationException: names the owner and the argument of the Trainer, or the window.
    """
    epochs = epochs_of(trainer)
    if epochs is None and trainer.max_steps < 1:
        raise MisconfigurationException(f"{owner} has a schedule in a fit: it needs max_epochs or max_steps")
    for window in windows:
        if window is not None:
            window.fractions(epochs)
