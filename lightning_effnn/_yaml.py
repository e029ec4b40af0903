"""YAML from outside, within bounds of size and depth, without anchors: a few lines of it can stand for gigabytes."""

from __future__ import annotations

from pathlib import Path

import yaml

MOST_BYTES = 4_000_000
MOST_DEPTH = 50


def read_yaml(source: str | Path) -> str:
    """Return YAML text that is safe to build.

    Args:
        source: the text, or the ``Path`` of a file in UTF-8.

    Raises:
        ValueError: no YAML, larger or deeper than any file of this package's, or with anchors and aliases.
        OSError: it cannot be read.

    >>> read_yaml("a: [1, 2]")
    'a: [1, 2]'
    >>> read_yaml("a: &x [1]\\nb: [*x, *x]")
    Traceback (most recent call last):
        ...
    ValueError: line 1 has an anchor or an alias: write the value out
    """
    where = f"{source}: " if isinstance(source, Path) else ""
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if size > MOST_BYTES:
        raise ValueError(f"{where}{size:,} bytes of YAML: at most {MOST_BYTES:,} are read")
    depth = 0
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1
            if getattr(event, "anchor", None) is not None:
                raise ValueError(f"{where}line {line} has an anchor or an alias: write the value out")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MOST_DEPTH:
                raise ValueError(f"{where}line {line} is more than {MOST_DEPTH} levels deep")
        yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where}not valid YAML: {error}") from None
    except (TypeError, OverflowError, AttributeError) as error:  # a date or a number that Python can't hold
        raise ValueError(f"{where}not valid YAML: {error}") from None
    return text
