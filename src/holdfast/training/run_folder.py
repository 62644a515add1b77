"""The folder in which a run keeps its checkpoints: taken, put right, and searched for the one to go on from.

For the main process alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import CheckpointError
from holdfast.training.checkpoint import CheckpointStore
from holdfast.training.fingerprint import require_same_run
from holdfast.training.manifest import listed, read_manifest, verify
from holdfast.training.run_lock import RunLock

logger = logging.getLogger(__name__)


class RunFolder:
    """A store of checkpoints that is one run's while it is held.

    Attributes:
        store: the checkpoints.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = CheckpointStore(path)
        self._lock = RunLock(path)

    def hold(self) -> bool:
        """Take the folder, unless it is ours already, and put right what a killed run left in it.

        Returns:
            whether it was not ours before.

        Raises:
            FolderInUse: another run holds it.
            CheckpointError: it cannot be written to.
        """
        if self._lock.held:
            return False
        self._lock.acquire()
        self.store.recover(self._lock)
        return True

    def release(self) -> None:
        """Let the folder go."""
        self._lock.release()

    def find(self, resume: str | Path | bool | None, fields: Mapping[str, Any]) -> Path | None:
        """The checkpoint that is meant, verified and of this run; None for a start from nothing.

        Args:
            resume: True, "auto", a checkpoint's folder, or None; see `ResumableTrainer.train`.
            fields: the run's fingerprint.

        Raises:
            CheckpointError: there is none, or it is damaged, or of another run.
        """
        if resume is None or resume is False:
            return None
        if resume is True or resume == "auto":
            found = self.store.newest()
            if found is None and resume is True:
                raise CheckpointError(
                    f"there is no checkpoint in '{self.path}' to go on from: begin without `resume_from_checkpoint`, "
                    "or name the checkpoint's folder"
                )
        else:
            found = Path(resume)
            require_verified(found)
        if found is not None:
            require_same_run(fields, found)
        return found

    def set_course(self, checkpoint: Path | None) -> None:
        """Move aside the checkpoints that are not of the run which now goes on: `newest` would find them.

        Args:
            checkpoint: the one it goes on from; None: it begins.
        """
        step = -1
        if checkpoint is not None and checkpoint.resolve().parent == self.path.resolve():
            step = read_manifest(checkpoint).step
        moved = self.store.move_aside_after(step)
        if moved:
            logger.warning(
                "training begins at %s: the later checkpoints in '%s' are moved aside (%s)",
                "its start" if checkpoint is None else f"'{checkpoint}'",
                self.path,
                ", ".join(path.name for path in moved),
            )


def require_verified(checkpoint: Path) -> None:
    """See that a checkpoint is whole.

    Raises:
        CheckpointError: it is not; the message names the files.
    """
    if faults := verify(checkpoint):
        raise CheckpointError(f"the checkpoint '{checkpoint}' cannot be used: {listed(faults)}")
