"""Files that are whole or absent, and the folder for what need not be computed twice."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path


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
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o644)  # as any other file; mkstemp's are private
        beside.replace(path)
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


def digest_of(path: Path) -> str:
    """32 hexadecimal digits of a file's bytes."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
