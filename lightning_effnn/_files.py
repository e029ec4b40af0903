"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Have ``write`` fill a file beside ``path``, then rename it; an error leaves what was there before.

    Args:
        path: the file; its folder is made.
        write: called with the path to fill, which has the same suffix.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/deep/a.txt", lambda beside: beside.write_text("all of it"))
    ...     [p.name for p in Path(folder, "deep").iterdir()]
    ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    beside = Path(name)
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o644)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
