"""Calls that came before: found again by a short key where labels are what they were, by the whole key otherwise."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_effnn.hardware.tracing.axes import Label
from lightning_effnn.hardware.tracing.memo import Key, Met, Step, key_of, short_key_of, traits_of
from lightning_effnn.hardware.tracing.seen import Place
from lightning_effnn.hardware.tracing.storage import StorageBook

_NEVER: Any = object()
_MOST_FOUND = 4096  # steps in a loop; where labels are made anew in each, what was found is never found again


@dataclass(slots=True, eq=False)
class _Found:
    """A step that was found by its key.

    Attributes:
        key: from :func:`~lightning_effnn.hardware.tracing.memo.key_of`.
        roots: the labels in it.
        step: what the call leads to.
    """

    key: Key
    roots: tuple[Label, ...]
    step: Step

    def holds(self) -> bool:
        """Whether nothing has been learnt of the labels since then."""
        for label, traits in zip(self.roots, self.key[-1], strict=True):  # type: ignore[call-overload]
            if label.root is not label or traits_of(label) != traits:
                return False
        return True


class Steps:
    """What the calls of a trace led to, for those that come again.

    Args:
        book: knows the storages.
    """

    def __init__(self, book: StorageBook) -> None:
        self._book = book
        self._steps: dict[Key, Step | None] = {}  # by call; of one that came once it is None
        self._found: dict[Key, _Found] = {}  # by the short key
        self._extents: tuple[object, ...] = ()  # those that are known since then

    def clear(self) -> None:
        """Forget them: something was learnt that changes what they lead to."""
        self._steps.clear()
        self._found.clear()

    def meet(
        self, kind: Hashable, arguments: Hashable, inputs: Sequence[Tensor], place: Place, extents: tuple[object, ...]
    ) -> Met | None:
        """Know a call that is about to run, and count what it may overwrite; ``None`` if it comes for the first time.

        Args:
            kind: the operation.
            arguments: its signature.
            inputs: what it reads.
            place: where it runs.
            extents: those that may be the batch.
        """
        keyed = short_key_of(kind, arguments, inputs, self._book, place)
        if keyed is None:
            return None
        if extents != self._extents or len(self._found) > _MOST_FOUND:
            self._found.clear()
            self._extents = extents
        short, records = keyed
        try:
            found = self._found.get(short)
        except TypeError:  # an argument has no hash, such as a size that isn't a number yet
            return None
        if found is not None and found.holds():
            met = Met(found.key, found.roots, records, found.step)
        else:
            met = key_of(short, records, extents)
            met.step = self._steps.get(met.key, _NEVER)
            if met.step is _NEVER:
                self._steps[met.key] = met.step = None
                return None
            if met.step is not None:
                self._found[short] = _Found(met.key, met.roots, met.step)
        if met.step is not None:
            met.counts = met.step.counts(inputs, records, self._book)
        return met

    def remember(self, met: Met, step: Step | None) -> None:
        """Keep what a call led to, in place of what was kept of it."""
        if met.step is not None:
            self._found.clear()
        self._steps[met.key] = step
