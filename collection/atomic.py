"""Writing a file so that a reader sees the old one or the new one, never a part of it."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from .errors import CollectionError

STALE_SECONDS = 600
"""Age at which a temporary file of a killed writer is swept (a live writer keeps touching its own)."""

PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between attempts to rename."""

IS_MAPPED = 1224
"""Windows' error for a file that a program has mapped."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it becomes `path`, on any error it vanishes.

    The caller writes the whole file to the yielded path, by any means. On leaving, the data are flushed to
    the disk (fsync) and renamed over `path` in one step, so a kill or a full disk leaves the previous file as
    it was. Missing parent folders are made. Leftovers of killed writers of the same file are removed.

    Raises CollectionError when the disk is full, saying that the previous file is untouched; any other error
    of the caller passes through.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing where it did
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    temporary = target.with_name(f".{target.name}.{uuid4().hex[:12]}.tmp")
    try:
        mode = _mode(target, temporary)
        yield temporary
        _flush(temporary)
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # some writers let nobody but the owner read
            with suppress(OSError):  # and some disks know no such thing
                temporary.chmod(mode)
        _replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            state = "the previous file is untouched" if target.exists() else "nothing was written"
            raise CollectionError(
                f"{target}: the disk is full, {state}; free some space and save again"
            ) from error
        raise
    _flush_folder(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file by `atomic_write`, in UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception means "no space left", also when a library wrapped it in its own type."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return True
    # 112 is Windows'
    return any(sign in str(error) for sign in ("No space left on device", "os error 28)", "os error 112)"))


def _replace(temporary: Path, target: Path) -> None:
    """Rename, patiently: Windows refuses while something else looks at one of the two, a virus scanner or a
    page that shows it. Raises CollectionError for a file that is in use for longer."""
    for pause in (*PAUSES, None):
        try:
            temporary.replace(target)
            return
        except OSError as error:
            if not isinstance(error, PermissionError) and getattr(error, "winerror", None) != IS_MAPPED:
                raise
            if pause is None:
                raise CollectionError(
                    f"{target} is in use, by a node that has loaded it or another program, and stays as it "
                    "was; remove that node or close that program, or save under another name"
                ) from error
            time.sleep(pause)


def _mode(target: Path, temporary: Path) -> int:
    """Who may read and write the file: as before, or as the system has it for new ones."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    temporary.touch()
    mode = stat.S_IMODE(temporary.stat().st_mode)
    temporary.unlink()
    return mode


def _flush(path: Path) -> None:
    with path.open("r+b") as file:  # Windows refuses to flush a file opened for reading
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(target: Path) -> None:
    for leftover in target.parent.glob(f".{_escape(target.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()


def _escape(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
