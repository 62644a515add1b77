"""A folder of checkpoints, each whole and verified or not there at all.

    checkpoint-200/                     a checkpoint: whatever was written, and manifest.json
    .checkpoint-300.5f0c2a91.partial/   one being written
    .checkpoint-200.81d4e6b3.replaced/  the one that stood there before, while the new one takes its place
    .checkpoint-100.0b7e55aa.removed/   one being deleted

A checkpoint is filled under a name that nothing looks for. When every file is on the disk its manifest is written,
and one rename makes it a checkpoint: a process may be killed, and the machine may lose power, at any moment.

The store knows files only. It counts on being one run's: hold the folder's `RunLock`. All its methods are the main
process's to call; the others write into the folder that `begin` returned there.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from holdfast.errors import CheckpointError, HoldfastError
from holdfast.files import FULL, errno_of, retried, sync
from holdfast.training.manifest import Fault, listed, verify, write_manifest
from holdfast.training.run_lock import RunLock

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint-(0|[1-9]\d*)")
HIDDEN = re.compile(r"\.(checkpoint-\d+)\.[0-9a-f]{8}\.(partial|replaced|removed)")

Signature = tuple[tuple[str, int, int], ...]


class CheckpointStore:
    """The checkpoints of one run, in one folder.

    Args:
        folder: where they stand, beside whatever else; made by `preflight` or the first `begin`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._partial: dict[int, Path] = {}  # what is being written, by step
        self._verified: dict[Path, Signature] = {}  # what this store has read whole and found good
        self._expected = 0  # bytes of a checkpoint, as far as is known
        self._written = 0  # bytes of the last one that could not be written

    # ---- write

    def preflight(self, bytes_needed: int) -> None:
        """See that a checkpoint can be written, before anything is trained.

        Args:
            bytes_needed: the size of one checkpoint, estimated.

        Raises:
            CheckpointError: the folder cannot be written to, or not one checkpoint fits.
        """
        self._expected = bytes_needed
        probe = self._hidden("checkpoint-0", "partial")
        try:
            probe.mkdir(parents=True)
            (probe / "probe").write_bytes(b"\0")
            sync(probe / "probe")
            (probe / "probe").rename(probe / "renamed")
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise CheckpointError(self._refusal("a checkpoint", error)) from error
        finally:
            _delete(probe)
        if free < bytes_needed:
            raise CheckpointError(
                f"not one checkpoint fits in '{self.folder}': it needs about {bytes_needed:,} bytes, and {free:,} are "
                "free; free some, or choose another output folder"
            )

    def save(self, step: int, write: Callable[[Path], object]) -> Path:
        """Write a checkpoint and publish it; where the system says that a fault may pass, in up to three attempts.

        Args:
            write: fills the folder that it is given, which is empty in each attempt. For a run of one process.

        Raises:
            CheckpointError: the disk is full, or refuses; the partial checkpoint is gone, and those before stand.
            Exception: whatever else `write` raises; likewise.
        """

        def attempt() -> Path:
            with self._abandoning(step):
                write(self._begin(step))
                return self._commit(step)

        with self._naming(step):
            return retried(attempt)

    def begin(self, step: int) -> Path:
        """An empty folder for all processes of a run to write their parts of a checkpoint into.

        Raises:
            CheckpointError: it cannot be made.
        """
        with self._naming(step):
            return self._begin(step)

    def commit(self, step: int) -> Path:
        """Publish the checkpoint that `begin` began, when all have written their parts.

        A checkpoint of the same step that is there already gives way to it.

        Raises:
            CheckpointError: the disk is full, or refuses, or a file is of a kind that a checkpoint must not hold;
                the partial checkpoint is gone, and those before stand.
        """
        with self._naming(step), self._abandoning(step):
            return self._commit(step)

    def abandon(self, step: int) -> None:
        """Remove what `begin` began, where a process cannot write its part."""
        if (partial := self._partial.pop(step, None)) is not None:
            _delete(partial)

    def _begin(self, step: int) -> Path:
        self.abandon(step)
        partial = self._hidden(f"checkpoint-{step}", "partial")
        partial.mkdir(parents=True)
        self._partial[step] = partial
        return partial

    def _commit(self, step: int) -> Path:
        partial, path = self._partial[step], self.folder / f"checkpoint-{step}"
        self._expected = write_manifest(partial, step).bytes
        before = self._set_aside(path, "replaced") if os.path.lexists(path) else None
        try:
            partial.rename(path)
        except OSError:
            if before is not None:
                before.rename(path)
            raise
        sync(self.folder)
        del self._partial[step]
        if before is not None:
            _delete(before)
        return path

    # ---- read

    def checkpoints(self) -> list[Path]:
        """Every checkpoint by its name, whole or damaged; the oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if NAME.fullmatch(path.name)), key=_step)

    def newest(self) -> Path | None:
        """The newest checkpoint that verifies; None where there is none at all. A warning names each that does not.

        Raises:
            CheckpointError: there are checkpoints, and not one of them verifies: to begin anew would lose them.
        """
        refused = {}
        for path in reversed(self.checkpoints()):
            if not (faults := self._faults(path)):
                return path
            refused[path] = faults
        if not refused:
            return None
        reasons = "; ".join(f"{path.name}: {listed(faults)}" for path, faults in refused.items())
        raise CheckpointError(
            f"no checkpoint in '{self.folder}' can be used ({reasons}); restore one, or move them away to begin anew"
        )

    def recover(self, lock: RunLock) -> None:
        """Put right what a killed process left; to be called before `newest`.

        Partial checkpoints are deleted. A checkpoint that had given way to one that never came gets its name back.

        Args:
            lock: held, on this folder or one above: no other process can be writing here.

        Raises:
            CheckpointError: the disk refuses.
        """
        if not (lock.held and self.folder.resolve().is_relative_to(lock.folder.resolve())):
            raise ValueError(f"the lock on '{lock.folder}' does not hold '{self.folder}'")
        if not self.folder.is_dir():
            return
        try:
            for path in sorted(self.folder.iterdir()):
                match = HIDDEN.fullmatch(path.name)
                if match is None or path in self._partial.values():
                    continue
                home = self.folder / match[1]
                if match[2] == "replaced" and not os.path.lexists(home) and not verify(path):
                    path.rename(home)
                    sync(self.folder)
                else:
                    _delete(path)
        except OSError as error:
            raise CheckpointError(
                f"what a killed process left in '{self.folder}' cannot be put right: {error}"
            ) from error

    # ---- delete

    def rotate(self, keep: int | None, protect: Collection[Path] = ()) -> None:
        """Delete the oldest checkpoints, as far as newer ones verify; what cannot be deleted is a warning.

        Args:
            keep: how many that verify are to stay; None for all. A damaged one is not counted, and goes when enough
                good ones are newer: the last good one never goes.
            protect: checkpoints that stay whatever their age (the best one, say); `keep` counts them.
        """
        if keep is None:
            return
        if keep < 1:
            raise ValueError(f"a rotation must keep at least one checkpoint, not {keep}")
        stays = {path.resolve() for path in protect}
        try:
            paths = self.checkpoints()
            kept, safe = sum(path.resolve() in stays for path in paths), False
            for path in reversed(paths):
                if path.resolve() in stays:
                    safe = safe or self._verifies(path)
                elif safe and kept >= keep:
                    self._remove(path)
                elif self._verifies(path):
                    kept, safe = kept + 1, True
        except OSError as error:
            logger.warning("old checkpoints in '%s' cannot be deleted: %s", self.folder, error)

    def move_aside_after(self, step: int) -> list[Path]:
        """Rename the checkpoints of later steps (`checkpoint-300.before-1`); returns their new paths.

        For a run that goes on from an earlier one: they belong to another course, and `newest` would return them.

        Raises:
            CheckpointError: the disk refuses.
        """
        later = [path for path in self.checkpoints() if _step(path) > step]
        try:
            return [path.rename(_free_name(path)) for path in later]
        except OSError as error:
            raise CheckpointError(
                f"later checkpoints in '{self.folder}' cannot be moved aside: {error}"
            ) from error

    def _remove(self, path: Path) -> None:
        self._verified.pop(path, None)
        # Renamed first: what is half deleted must not look like a checkpoint.
        _delete(self._set_aside(path, "removed"))

    # ---- inside

    def _faults(self, path: Path) -> list[Fault]:
        """What is wrong with a checkpoint, which is read whole; a warning if anything is."""
        signature = _signature(path)
        faults = verify(path)
        if faults:
            logger.warning("the checkpoint '%s' is not used: %s", path, listed(faults))
        else:
            self._verified[path] = signature
        return faults

    def _verifies(self, path: Path) -> bool:
        """Whether a checkpoint verifies; one that did is not read again while its files keep their sizes and times."""
        return self._verified.get(path) == _signature(path) or not self._faults(path)

    def _set_aside(self, path: Path, kind: str) -> Path:
        return path.rename(self._hidden(path.name, kind))

    def _hidden(self, name: str, kind: str) -> Path:
        return self.folder / f".{name}.{secrets.token_hex(4)}.{kind}"

    @contextmanager
    def _abandoning(self, step: int) -> Iterator[None]:
        """Remove the partial checkpoint if anything goes wrong."""
        try:
            yield
        except BaseException:
            with suppress(OSError, KeyError):
                self._written = _size(self._partial[step])
            self.abandon(step)
            raise

    @contextmanager
    def _naming(self, step: int) -> Iterator[None]:
        """Say in one sentence what the system refused, and what to do."""
        try:
            yield
        except HoldfastError:
            raise
        except Exception as error:
            if errno_of(error) is None:
                raise
            raise CheckpointError(self._refusal(f"checkpoint-{step}", error)) from error

    def _refusal(self, what: str, error: Exception) -> str:
        code = errno_of(error)
        assert code is not None
        where = f" ('{error.filename}')" if isinstance(error, OSError) and error.filename else ""
        message = f"{what} cannot be written to '{self.folder}': {os.strerror(code)}{where}"
        if code not in FULL:
            return f"{message}; mend the folder, or choose another output folder"
        needed = f"about {self._expected:,}" if self._expected > self._written else f"over {self._written:,}"
        there = next(path for path in (self.folder, *self.folder.resolve().parents) if path.is_dir())
        return (
            f"{message}; it needs {needed} bytes, and {shutil.disk_usage(there).free:,} are free. Free some, keep "
            "fewer checkpoints, or choose another output folder"
        )


def _delete(path: Path) -> None:
    """Delete a file, or a folder as far as that goes; what stays has a name that `recover` knows."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.before-{number}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _signature(folder: Path) -> Signature:
    """Names, sizes and times of a folder's files."""
    status = {path.as_posix(): path.lstat() for path in sorted(folder.rglob("*"))}
    return tuple((name, known.st_size, known.st_mtime_ns) for name, known in status.items())
