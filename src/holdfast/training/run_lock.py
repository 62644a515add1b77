"""One run a folder: a lock that lives as long as the process that holds it.

`run.lock` in the folder says who holds it, and carries the operating system's own lock (flock), which ends with the
process however that ends: nothing is left to clear up after a crash. Where a file system has no such lock, the file
alone is the lock, and its holder counts as alive while a process of that number runs on that host.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from holdfast.errors import CheckpointError, FolderInUse

LOCK = "run.lock"
WAIT = 1.0  # seconds: what a run that is just ending may take to let go
INTERVAL = 0.05
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        pid: the process, a number on its host.
        host: the host's name.
        started: when the lock was taken, in UTC.
        command: the program's name, without its arguments, where keys may stand.
    """

    pid: int
    host: str
    started: str
    command: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), started, Path(sys.argv[0]).name)

    @classmethod
    def read(cls, text: bytes) -> Holder | None:
        """The holder that a lock file names; None where it names none (its process is just writing it, say)."""
        try:
            holder = cls(**json.loads(text))
        except (ValueError, TypeError):
            return None
        return holder if type(holder.pid) is int and holder.pid > 0 else None

    def text(self) -> str:
        """The holder as it stands in the lock file."""
        return json.dumps(asdict(self)) + "\n"

    def is_alive(self) -> bool:
        """Whether its process may be alive: it runs, or it is another host's, of which nothing is known."""
        if not self.is_here:
            return True
        try:
            os.kill(self.pid, 0)  # asks, and sends nothing
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass  # another user's
        return True

    @property
    def is_here(self) -> bool:
        """Whether its process is, or was, on this host."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host!r} ({self.command}, since {self.started})"


class RunLock:
    """The lock on a run's folder, as a context manager or by `acquire` and `release`.

    Of the processes of a run, the main one takes it. Processes forked from the holder do not keep it alive.

        with RunLock(folder):
            ...
    """

    _ours: ClassVar[set[Path]] = set()  # what this process holds

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.resolve() / LOCK
        self._handle: int | None = None
        self._by_name = False  # the file system has no locks

    @property
    def held(self) -> bool:
        """Whether this process holds the folder by this lock."""
        return self._handle is not None

    def acquire(self, wait: float = WAIT) -> None:
        """Take the folder, which is made if need be; what a dead holder left is taken over.

        Args:
            wait: seconds to wait for a holder that is about to end.

        Raises:
            FolderInUse: another run holds the folder; the message names it.
            CheckpointError: the lock file cannot be written.
        """
        if self.held:
            return
        deadline = time.monotonic() + wait
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while (handle := self._try()) is None:
                if time.monotonic() >= deadline:
                    raise FolderInUse(self._refusal())
                time.sleep(INTERVAL)
        except OSError as error:
            raise CheckpointError(
                f"the lock file '{self.path}' cannot be written ({error.strerror}): choose another output folder, or "
                "mend this one"
            ) from error
        self._handle = handle
        self._ours.add(self.path)
        # A child that lives on would keep the lock, through the handle that it inherits.
        os.register_at_fork(after_in_child=self._forget)

    def release(self) -> None:
        """Let the folder go; nothing is left in it."""
        if self.held:
            # The file goes first: whoever then gets its lock sees that it is no longer there.
            self.path.unlink(missing_ok=True)
            self._forget()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _forget(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            self._ours.discard(self.path)

    def _try(self) -> int | None:
        """An open handle on the lock file, which is ours now; None while it is not."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            created = True
        except FileExistsError:
            try:
                handle = os.open(self.path, os.O_RDWR)
            except FileNotFoundError:
                return None  # its holder has just let go
            created = False
        ours = False
        try:
            ours = self._lock(handle, created)
            if ours:
                os.ftruncate(handle, 0)
                os.pwrite(handle, Holder.here().text().encode(), 0)
        finally:
            if not ours:
                os.close(handle)
        return handle if ours else None

    def _lock(self, handle: int, created: bool) -> bool:
        """Lock the open file; where the file system cannot, whoever has created it has the lock."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._by_name = True
            if not created:
                self._remove_dead()  # the next try may create it
            return created
        try:
            # Its last holder may have removed it between our opening and our locking.
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False

    def _remove_dead(self) -> None:
        """Remove the file of a holder that is dead. One process at a time: the file may be another's by now."""
        guard = self.path.with_name(f"{LOCK}.taking")
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        try:
            holder = self._holder()
            if holder is None:
                return
            # In a container that is started again, processes have the numbers they had before.
            was_us = holder.is_here and holder.pid == os.getpid() and self.path not in self._ours
            if was_us or not holder.is_alive():
                self.path.unlink(missing_ok=True)
        finally:
            guard.unlink()

    def _holder(self) -> Holder | None:
        try:
            return Holder.read(self.path.read_bytes())
        except FileNotFoundError:
            return None

    def _refusal(self) -> str:
        holder = self._holder() or "another run, which its lock file does not name"
        message = f"'{self.folder}' is in use by {holder}: wait for its end, stop it, or choose another output folder"
        if self._by_name:  # the file may have outlived its process
            message += f". Where it has ended already, delete '{self.path}' and what begins with that name"
        return message
