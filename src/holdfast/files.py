"""Files that are whole or absent, on the disk and not only in memory; the folder for what need not be computed twice;
and what a file's first bytes say it is, whatever its name says."""

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
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# What a network file system, or a disk under load, says of an action that may well succeed a moment later.
TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY})
ATTEMPTS = 3
PAUSE = 0.2  # seconds before the second attempt; doubled before the third

# What a pickle is named, and PyTorch's files, which are pickles: loading one can run any code.
PICKLES = frozenset(".pkl .pickle .pt .pth .bin .ckpt .joblib .dill".split())
HEAD = 262  # bytes that `foreign_kind` looks at
_PICKLED = (
    (0, b"\x80[\x02-\x05]", "a Python pickle"),
    (0, b"PK\x03\x04", "a zip archive, as torch.save writes"),
)
_MAGIC = (
    *_PICKLED,
    (0, b"\x1f\x8b", "packed by gzip"),
    (0, b"BZh[1-9]", "packed by bzip2"),
    (0, b"\xfd7zXZ\0", "packed by xz"),
    (0, b"\\(\xb5/\xfd", "packed by zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a rar archive"),
    (257, b"ustar", "a tar archive"),
)


def cache_folder(configured: str | Path | None = None) -> Path:
    """The configured folder, or `HOLDFAST_CACHE`, or the user's cache."""
    return Path(configured or os.environ.get("HOLDFAST_CACHE") or "~/.cache/holdfast").expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; once written it is synced and takes `path`'s place, in one step.

    A reader never sees half a file, and what was there stays if the writing fails. The folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield beside
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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


def foreign_kind(head: bytes) -> str | None:
    """What a file is that begins with these bytes (`HEAD` of them, or all), if it is a pickle or an archive.

    Pickles of the protocols 0 and 1 are text, and look like any other.
    """
    return next((kind for at, magic, kind in _MAGIC if re.match(magic, head[at:], re.DOTALL)), None)


def pickle_kind(head: bytes) -> str | None:
    """As `foreign_kind`, of pickles and of archives as `torch.save` writes them: what may run code as it is read."""
    return next((kind for at, magic, kind in _PICKLED if re.match(magic, head[at:], re.DOTALL)), None)


def begins_as_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of so many bytes begins as safetensors: the length of the header, eight bytes, and a JSON object.

    To be asked before `foreign_kind`: a length of 640 alone looks like a pickle of protocol 2.
    """
    return 8 + int.from_bytes(head[:8], "little") <= size and head[8:9] == b"{"


def errno_of(error: BaseException) -> int | None:
    """The system's number of what went wrong (`errno.ENOSPC`, ...); None where the system did not refuse anything.

    The safetensors library gives it in its message alone.
    """
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


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
