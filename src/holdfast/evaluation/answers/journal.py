"""A JSON Lines file that grows by whole rows, each on the disk before anything else is paid for, and none twice."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from holdfast.data.faults import Unreadable, kind_of
from holdfast.data.json_text import Parser, parse_line
from holdfast.errors import DataError, FolderInUse
from holdfast.files import sync

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
KeyOf = Callable[[Row], Hashable]

# What file systems answer that know no locks.
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def by(*names: str) -> KeyOf:
    """The key of a row whose values under `names` tell it from all others. Lists become tuples."""

    def key_of(row: Row) -> Hashable:
        return tuple(_hashable(row[name]) for name in names)

    return key_of


class Journal:
    """Rows in a file, as a context manager or until `close`. Safe for threads; one process at a time.

    A last line that a crash has cut off is moved to `NAME.torn` beside the file; where it lacks its line break alone,
    it is whole, and stays.

    Args:
        path: of the file, made if need be.
        key: tells rows apart: a function of the row, such as `by("question_id", "turn")`.

    Raises:
        DataError: a line that is no row, or two rows of one key; the message names the lines.
        FolderInUse: another process has the file open as a journal.
    """

    def __init__(self, path: str | Path, key: KeyOf) -> None:
        self.path = Path(path)
        self._key = key
        self._rows: dict[Hashable, dict[str, Any]] = {}
        self._guard = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock(self._handle)
            # A forked child that lives on would keep the lock, through the handle that it inherits.
            os.register_at_fork(after_in_child=partial(_close, weakref.ref(self)))
            sync(self.path.parent)
            self._read(self._handle)
        except BaseException:
            self.close()
            raise

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns.

        Raises:
            DataError: its key stands already, or the file cannot be written; then it is as it was.
        """
        text = json.dumps(row, allow_nan=False)
        kept = json.loads(text)  # as a later run will read it
        key = self._key(kept)
        with self._guard:
            if self._handle is None:
                raise ValueError(f"'{self.path}' is closed")
            if key in self._rows:
                raise DataError(f"'{self.path}' holds a row {key!r} already")
            before = os.fstat(self._handle).st_size
            try:
                _write(self._handle, text.encode() + b"\n")
                os.fsync(self._handle)
            except OSError as error:
                os.ftruncate(self._handle, before)
                raise DataError(f"'{self.path}' cannot be written: {error.strerror}") from error
            self._rows[key] = kept

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order of the file."""
        with self._guard:
            return list(self._rows.values())

    def has(self, key: Hashable) -> bool:
        """Whether a row has this key."""
        return key in self._rows

    def get(self, key: Hashable) -> dict[str, Any] | None:
        """The row of this key; None where there is none."""
        return self._rows.get(key)

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Let the file go. What was read and added can still be asked for."""
        if self._handle is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(
                    self._handle, fcntl.LOCK_UN
                )  # a child that has yet to close its copy holds it no more
            self.close_handle()

    def close_handle(self) -> None:
        """Close the file here, and leave the lock to whom it is: the parent of this process."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self, handle: int) -> None:
        """The system's own lock, which ends with the process however that ends."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"'{self.path}' is being written by another process: wait for its end, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(
                "the file system of '%s' has no locks: see that nothing else writes to it", self.path
            )

    def _read(self, handle: int) -> None:
        content = self.path.read_bytes()
        whole, newline, tail = content.rpartition(b"\n")
        parser = Parser()
        if tail:
            if isinstance(parse_line(tail, parser), dict):
                _write(handle, b"\n")
                whole, newline = content, b"\n"
            else:
                self._set_aside(tail)
                os.ftruncate(handle, len(whole) + len(newline))
            os.fsync(handle)
        lines: dict[Hashable, int] = {}
        for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
            if not line.strip():
                continue
            key, row = self._parsed(line, number, parser)
            if key in lines:
                raise DataError(
                    f"{self.path}:{number}: the row {key!r} stands on line {lines[key]} already; remove one of them"
                )
            lines[key] = number
            self._rows[key] = row

    def _parsed(self, line: bytes, number: int, parser: Parser) -> tuple[Hashable, dict[str, Any]]:
        row = parse_line(line, parser)
        if isinstance(row, Unreadable):
            raise DataError(f"{self.path}:{number}: {row.detail}; mend or remove the line")
        if not isinstance(row, dict):
            raise DataError(f"{self.path}:{number}: a row must be an object, not {kind_of(row)}")
        try:
            key = self._key(row)
            hash(key)
            return key, row
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(f"{self.path}:{number}: a row without its key: {error!r}") from error

    def _set_aside(self, tail: bytes) -> None:
        side = self.path.with_name(f"{self.path.name}.torn")
        with side.open("ab") as file:
            file.write(tail + b"\n")
            file.flush()
            os.fsync(file.fileno())
        logger.warning("the last line of '%s' was cut off; what there was of it is in '%s'", self.path, side)


def _close(journal: weakref.ref[Journal]) -> None:
    if (held := journal()) is not None:
        held.close_handle()


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _hashable(value: Any) -> Hashable:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((name, _hashable(item)) for name, item in sorted(value.items()))
    return value
