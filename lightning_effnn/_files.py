"""Writing a file so that it appears whole or not at all, with the rights that any other program would give it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self))/fd/(\d+)")
_MOST_LINKS = 40
_LONGEST_STEM = 40  # of a name beside: with what is added to it, it stays below what file systems take


def write_whole(path: str | Path, write: Callable[[Path], object]) -> int:
    """Have ``write`` fill a file beside ``path``, then rename it; an error leaves what was there before.

    A symbolic link is followed: what it leads to is replaced. A new file has the rights that the umask gives, an
    existing one keeps its own. What is no regular file (``/dev/null``, a pipe) stays and is written to, once all is
    there; so is what this process has open (``/dev/stdout``), wherever it leads.

    Args:
        path: the file; its folder is made.
        write: called with the path to fill, which has the same suffix.

    Returns:
        How many bytes were written.

    Raises:
        OSError: the file can't be written: its folder or it itself is protected, or it is a folder.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/deep/a.txt", lambda beside: beside.write_text("all of it"))
    ...     [p.name for p in Path(folder, "deep").iterdir()]
    9
    ['a.txt']
    """
    path = Path(path)
    if is_stream(path):
        return _write_through(path, write)
    present = _status(path)
    if present is not None and stat.S_ISDIR(present.st_mode):
        raise IsADirectoryError(f"{str(path)!r} is a folder: give the name of a file")
    if present is not None and not os.access(path, os.W_OK):
        raise PermissionError(f"{str(path)!r} is protected against writing")
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.stem[:_LONGEST_STEM]}.{secrets.token_hex(4)}{target.suffix}")
    # Not mkstemp, which asks for fewer rights than the umask gives. What replaces a secret is secret from the start.
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if present is None else 0o600))
    try:
        mode = stat.S_IMODE((present or beside.stat()).st_mode)
        write(beside)
        if present is not None:
            with suppress(OSError):  # only root gives files away
                os.chown(beside, present.st_uid, present.st_gid)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        beside.chmod(mode)
        os.replace(beside, target)
        return size
    finally:
        beside.unlink(missing_ok=True)


def write_figure(path: str | Path, figure: Figure, dpi: int = 120) -> None:
    """Write a matplotlib figure whole or not at all, in the format that the suffix of ``path`` names, else as PNG.

    Raises:
        ValueError: matplotlib doesn't know the suffix.
        OSError: as :func:`write_whole`.
    """
    kind = Path(path).suffix[1:] or "png"  # savefig would add it to the name
    write_whole(path, lambda beside: figure.savefig(beside, dpi=dpi, format=kind))


def write_text(path: str | Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all.

    Raises:
        OSError: as :func:`write_whole`.
    """
    write_whole(path, lambda beside: beside.write_bytes(text.encode()))


def is_taken(path: str | Path) -> bool:
    """Return whether writing would replace something: devices and pipes only take what is written.

    >>> is_taken(__file__), is_taken(os.devnull)
    (True, False)
    """
    return _status(Path(path)) is not None and not is_stream(path)


def is_stream(path: str | Path) -> bool:
    """Return whether a path is no file, but takes what is written: a device, a pipe, or an open descriptor.

    >>> is_stream("/dev/stdout"), is_stream(os.devnull), is_stream(__file__)
    (True, True, False)
    """
    present = _status(Path(path))
    regular = present is None or stat.S_ISREG(present.st_mode) or stat.S_ISDIR(present.st_mode)
    return not regular or descriptor(path) is not None


def descriptor(path: str | Path) -> int | None:
    """Return which of this process's open files a path names, links followed: ``/dev/stdout`` is 1.

    >>> descriptor("/dev/fd/2"), descriptor("/dev/null")
    (2, None)
    """
    name = os.path.abspath(path)
    for _ in range(_MOST_LINKS):
        if name in _STANDARD:
            return _STANDARD[name]
        if found := _DESCRIPTOR.fullmatch(name):
            return int(found[1])
        if not os.path.islink(name):
            break
        name = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(name)))
    return None


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # or a link that leads nowhere yet
        return None


def _write_through(path: Path, write: Callable[[Path], object]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, f"whole{path.suffix}")
        whole.touch()
        write(whole)
        number = descriptor(path)
        sys.stdout.flush()  # what was printed before comes before
        # A descriptor is written to where it stands: opened anew, what it leads to would be emptied.
        with whole.open("rb") as source, open(path if number is None else os.dup(number), "wb") as node:
            shutil.copyfileobj(source, node)
            return source.tell()
