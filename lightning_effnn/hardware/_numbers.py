"""Numbers from files: YAML reads 84e5 as text and 8.4e6 as no integer, a CSV holds nothing but text."""

from __future__ import annotations

import math
import numbers
from typing import Any

MOST = 10**15
"""The largest number of an accelerator's file: beyond anything built, and exact in double precision."""


def whole(value: Any) -> int | None:
    """The integer that ``value`` stands for, None if it stands for none.

    >>> whole(8.4e6), whole("84e5"), whole("16"), whole(2.5), whole(True), whole("nan")
    (8400000, 8400000, 16, None, None, None)
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:  # perhaps 84e5 or 16.0
            pass
    found = real(value)
    return int(found) if found is not None and found.is_integer() else None


def real(value: Any) -> float | None:
    """The finite number that ``value`` stands for, None if it stands for none.

    >>> real("1e10"), real(3), real("many"), real(float("inf")), real(False)
    (10000000000.0, 3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
