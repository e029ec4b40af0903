"""Attributes of somebody else's objects that are exchanged for a while, and put back as they were."""

from __future__ import annotations

_NONE = object()


class Exchanged:
    """What was exchanged, until :meth:`put_back`.

    An attribute that the object had itself returns, one of its class shows again. What somebody else has put there
    since stays.

    >>> class Hook:
    ...     def run(self):
    ...         return "own"
    >>> hook, exchanged = Hook(), Exchanged()
    >>> exchanged.exchange(hook, "run", lambda: "other")
    >>> hook.run()
    'other'
    >>> exchanged.put_back()
    >>> hook.run(), vars(hook)
    ('own', {})
    """

    def __init__(self) -> None:
        self._taken: list[tuple[object, str, object, object]] = []

    def exchange(self, owner: object, name: str, value: object) -> None:
        """Set an attribute of ``owner``.

        Args:
            owner: any object with attributes of its own.
            name: the attribute's.
            value: what stands there until it is put back.
        """
        own = vars(owner)
        self._taken.append((owner, name, value, own.get(name, _NONE)))
        own[name] = value

    def put_back(self) -> None:
        """Put back what stood there, the last exchange first; twice is no error."""
        for owner, name, value, before in reversed(self._taken):
            own = vars(owner)
            if own.get(name) is not value:
                continue
            if before is _NONE:
                del own[name]
            else:
                own[name] = before
        self._taken.clear()
