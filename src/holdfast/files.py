"""Files whole or absent, on the disk and not only in memory; and the folder for what need not be computed twice."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# What a network file system, or a disk under load, says of an action that may well succeed a moment later.
TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY})
# What a disk says that has no room left, or none for us.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
ATTEMPTS = 3
LEFT_OVER = 86_400  # seconds after which what is half written has no writer any more
PAUSE = 0.2  # seconds before the second attempt; doubled before the third


def cache_folder(configured: str | Path | None = None) -> Path:
    """The configured folder, or `HOLDFAST_CACHE`, or the user's cache."""
    return Path(configured or os.environ.get("HOLDFAST_CACHE") or "~/.cache/holdfast").expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; once written it is synced and takes `path`'s place, in one step.

    A reader never sees half a file, and what was there stays if the writing fails. The folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent, f".{path.name}.*.partial")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        sync(beside)
        beside.chmod(0o644)  # as any other file; mkstemp's are private
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to fill; once filled it becomes `folder`, unless another process was first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent, f".{folder.name}.*.making")
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".making", dir=folder.parent))
    try:
        yield beside
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sweep(folder: Path, pattern: str) -> None:
    """Remove what processes that were killed while writing the same left beside it, a day ago or longer."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process was first, or is not us
            if time.time() - path.lstat().st_mtime > LEFT_OVER:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names: they outlive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems sync their folders by themselves, and refuse to be told.
        if error.errno != errno.EINVAL or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)


def digest_of(path: Path) -> str:
    """32 hexadecimal digits of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def errno_of(error: BaseException) -> int | None:
    """The system's number of what went wrong (`errno.ENOSPC`, ...); None where the system did not refuse anything.

    The safetensors library gives it in its message alone.
    """
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def refusal(error: BaseException) -> str | None:
    """What a full disk refused, in one sentence; None where it was something else."""
    code = errno_of(error)
    if code not in FULL:
        return None
    name = getattr(error, "filename", None)
    what = f"'{name}'" if name else "a file"
    return f"{what} cannot be written: {os.strerror(code)}. Free some room, or choose another folder"


def retried(action: Callable[[], T]) -> T:
    """What `action` returns; called up to three times where the system says that the fault may pass.

    An action that writes must start anew each time: after a failed sync the system may drop the bytes it held.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if errno_of(error) not in TRANSIENT:
                raise
            time.sleep(PAUSE * attempt)
    return action()
