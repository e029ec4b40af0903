"""What several threads that run one model need: a turn each, and values of their own. Copies and pickles begin anew."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Lock:
    """A lock that the thread that holds it may take again.

    >>> import copy
    >>> lock = Lock()
    >>> with lock, lock, copy.deepcopy(lock):
    ...     print("held")
    held
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()


class PerThread(threading.local, Generic[Value]):
    """A value that each thread has its own of, ``None`` until it sets one.

    >>> latest = PerThread()
    >>> latest.value = 3
    >>> other = threading.Thread(target=lambda: print(latest.value))
    >>> other.start(), other.join(), latest.value
    None
    (None, None, 3)
    """

    value: Value | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PerThread, ()


class _Kept:
    """Attributes of shared objects that several threads set for a while.

    The last one to leave gives back what was there before the first came; each by itself would give back what another
    had set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: dict[tuple[int, str], tuple[int, Any]] = {}  # how many keep it, and what it was

    @contextmanager
    def __call__(self, objects: Iterable[Any], attribute: str) -> Iterator[None]:
        """Let ``attribute`` of each object be set inside, and be what it was afterwards."""
        held = list(objects)
        with self._lock:
            for one in held:
                count, before = self._before.get((id(one), attribute), (0, getattr(one, attribute)))
                self._before[id(one), attribute] = count + 1, before
        try:
            yield
        finally:
            with self._lock:
                for one in held:
                    count, before = self._before.pop((id(one), attribute))
                    if count > 1:
                        self._before[id(one), attribute] = count - 1, before
                    else:
                        setattr(one, attribute, before)


kept = _Kept()
"""``with kept(model.modules(), "training"): model.eval()``"""
