"""The moments of a process's work with files: before each folder it makes and each name it changes or deletes, in the
middle and at the end of each write, and around each sync. At a chosen one, something happens to it.

Runs as a program too, which saves a checkpoint and is killed at one of its moments:

    python moments.py FOLDER STEP KEEP MOMENT

It prints the moments that it passed; a moment of 0 is none.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Moments:
    """Counts moments, and calls `at` with each one's number and kind.

    Every function that is replaced is Python's own (`os.fsync`, `Path.open`): the code under test stands as it is.
    """

    def __init__(self, at: Callable[[int, str], None]) -> None:
        self.at = at
        self.passed: list[str] = []

    def moment(self, kind: str) -> None:
        """One more moment."""
        self.passed.append(kind)
        self.at(len(self.passed), kind)

    def watch(self, replace: Callable[[Any, str, Any], None] = setattr) -> None:
        """Put itself between the code and the system; `replace` is `setattr`, or what undoes it later."""
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            replace(os, name, self._before(name, getattr(os, name)))
        fsync = os.fsync

        def sync(handle: int) -> None:
            self.moment("before fsync")
            fsync(handle)
            self.moment("after fsync")

        replace(os, "fsync", sync)
        open_file = Path.open

        def watched_open(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = open_file(path, mode, *args, **options)
            return _WatchedFile(file, self.moment) if set(mode) & set("wax+") else file

        replace(Path, "open", watched_open)

    def _before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.moment(name)
            return function(*args, **options)

        return call


class _WatchedFile:
    """A file whose writes are done in two halves."""

    def __init__(self, file: Any, moment: Callable[[str], None]) -> None:
        self._file, self._moment = file, moment

    def write(self, content: Any) -> None:
        half = len(content) // 2
        for part, kind in ((content[:half], "half a write"), (content[half:], "write")):
            self._file.write(part)
            self._file.flush()
            self._moment(kind)

    def __enter__(self) -> _WatchedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def contents(text: str) -> dict[str, str]:
    """The files of a checkpoint that says `text`."""
    return {"weights.json": f"weights of {text}", "state/rng-0.json": f"random numbers of {text}"}


def writer(text: str) -> Callable[[Path], None]:
    """What fills a checkpoint that says `text`."""

    def write(folder: Path) -> None:
        for name, content in contents(text).items():
            (folder / name).parent.mkdir(exist_ok=True)
            with (folder / name).open("w") as file:
                file.write(content)

    return write


def _main() -> None:
    from holdfast.training.checkpoint import CheckpointStore
    from holdfast.training.run_lock import RunLock

    folder, step, keep, chosen = Path(sys.argv[1]), *map(int, sys.argv[2:])

    def kill(number: int, kind: str) -> None:
        if number == chosen:
            os.kill(os.getpid(), signal.SIGKILL)

    moments = Moments(kill)
    with RunLock(folder):
        moments.watch()
        store = CheckpointStore(folder)
        store.save(step, writer("the new one"))
        store.rotate(keep)
    print("\n".join(moments.passed))


if __name__ == "__main__":
    _main()
