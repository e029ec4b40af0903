"""What several threads that run one model need: a turn each, and values of their own. Copies and pickles begin anew."""

from __future__ import annotations

import threading
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
