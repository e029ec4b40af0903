"""What the command prints for a mistake in its use: one message, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake of the person at the keyboard: ``effnn`` prints the message and exits with code 2."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that is not known: the nearest one and the whole list.

    >>> print(unknown_name("recipe", "quikstart", ["quickstart", "search/digits"]))
    no recipe 'quikstart': did you mean 'quickstart'? There are: quickstart, search/digits
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"no {what} {name!r}: {hint}There are: {', '.join(known) or 'none'}")
