"""Where a data file lies: the folder that was named, else the folder in ``EFFNN_DATA``."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "EFFNN_DATA"


def find_file(name: str, root: str | Path | None = None) -> Path:
    """Return the path of the data file ``name``.

    Args:
        name: the file's name, ``"cifar10_test_jpeg.npz"``.
        root: the folder to look in; ``None`` takes the folder in the variable ``EFFNN_DATA``.

    Raises:
        FileNotFoundError: says where it looked and both ways to say where the file is.
    """
    folder = root if root is not None else os.environ.get(VARIABLE) or None
    if folder is None:
        looked = f"no folder was given and {VARIABLE} is not set"
    else:
        path = Path(folder).expanduser() / name
        if path.is_file():
            return path
        origin = "root" if root is not None else VARIABLE
        looked = f"{origin} is {str(folder)!r}, which does not hold it"
    raise FileNotFoundError(
        f"data file {name!r} not found: {looked}. Name the folder that holds it by root=... "
        f"or by the environment variable {VARIABLE}."
    )
