"""YAML from outside, within bounds of size and depth, without anchors: a few lines of it can stand for gigabytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 4_000_000
MOST_DEPTH = 50


class _EachKeyOnce(yaml.SafeLoader):
    """A key that stands twice would lose the first of its values."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} stands twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def load_yaml(source: str | Path) -> Any:
    """Return what YAML holds.

    Args:
        source: the text, or the ``Path`` of a file in UTF-8.

    Raises:
        ValueError: as :func:`read_yaml`, a key that stands twice, or values that Python can't hold.
        OSError: it cannot be read.

    >>> load_yaml("a: [1, 2]")
    {'a': [1, 2]}
    """
    text = read_yaml(source)
    try:
        return _EachKeyOnce(text).get_single_data()
    except (yaml.YAMLError, TypeError, OverflowError, AttributeError, ValueError) as error:
        what = str(source) if isinstance(source, Path) else "this"
        raise ValueError(f"{what} is no YAML file: {error}") from None


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
    what = str(source) if isinstance(source, Path) else "this"
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if size > MOST_BYTES:
        raise ValueError(f"{where}{size:,} bytes of YAML: at most {MOST_BYTES:,} are read")
    depth = 0
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 0
            if getattr(event, "anchor", None) is not None:
                raise ValueError(f"{where}line {line} has an anchor or an alias: write the value out")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MOST_DEPTH:
                raise ValueError(f"{where}line {line} is more than {MOST_DEPTH} levels deep")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} is no YAML file: {error}") from None
    return text
