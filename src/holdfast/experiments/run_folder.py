"""The folder of a run: one run at a time is at work in it, and a run that is there is never lost.

run.json                      what was run, on what, and what came of it
metrics.jsonl                 every logging step of both stages
quarantine.jsonl              rows set aside (lenient validation only)
held_out_before.safetensors   the held-out pairs' scores before alignment
start/                        the from-scratch model, where the run starts from one
sft/, align/                  each stage's checkpoints; sft/final/ is where align starts
final/                        the trained model: AutoModelForCausalLM.from_pretrained loads it
run.lock                      who is at work in it
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from holdfast.errors import CheckpointError, ConfigError
from holdfast.experiments.record import read_record
from holdfast.ranks import is_main, once
from holdfast.training.run_lock import LOCK, RunLock

RECORD, METRICS, QUARANTINE = "run.json", "metrics.jsonl", "quarantine.jsonl"
SCORES = "held_out_before.safetensors"
# What a run makes before anything else of its own: a folder with one of these holds a run.
OF_A_RUN = (RECORD, METRICS, "start", "sft", "align", "final")


class RunFolder:
    """A run's folder, held by the main process while it is entered.

    Args:
        overwrite: move a run that is there aside (by `claim`).
        resume: go on with a run that is there.

    Attributes:
        record: what `run.json` says of the run to go on with; None for a new one.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        if overwrite and resume:
            raise ConfigError("--resume goes on with a run, --overwrite moves it aside: give one of the two")
        self.path = path
        self.overwrite, self.resume = overwrite, resume
        self.record: dict[str, Any] | None = None
        self.claimed = False
        self._lock = RunLock(path)
        self._made = False

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            FolderInUse: another run is at work in it; the message names it.
            ConfigError: it holds a run, and what to do with it was not said.
            CheckpointError: it cannot be written to; or it is to be resumed, and its record cannot be read.
        """
        self.record = once(self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the folder go; one that was made for nothing is removed."""
        if is_main():
            self._release()

    def claim(self) -> Path | None:
        """Make the folder this run's: to be called when nothing is left that could refuse the run.

        Returns:
            where the run that was there is now, if one was moved aside.
        """
        aside = once(self._move_aside)
        self.claimed = True
        return aside

    def take_back(self) -> None:
        """Leave nothing of a new run that was refused before its first step; rows that were set aside stay."""
        if self.record is None and is_main():
            (self.path / RECORD).unlink(missing_ok=True)
            for stage in ("sft", "align"):
                with suppress(OSError):  # not there, or not empty
                    (self.path / stage).rmdir()
        self.claimed = False

    def _take(self) -> dict[str, Any] | None:
        self._made = not self.path.exists()
        self._lock.acquire()
        try:
            return self.look()
        except BaseException:
            self._release()
            raise

    def look(self) -> dict[str, Any] | None:
        """The record of the run to go on with; None for a new one. Nothing is taken; errors as `__enter__`'s."""
        there = [name for name in OF_A_RUN if os.path.lexists(self.path / name)]
        if not there or self.overwrite:
            return None
        ways = "choose another output_dir, or move what is there aside with --overwrite"
        if RECORD not in there:
            raise ConfigError(
                f"'{self.path}' holds {', '.join(there)}, but no {RECORD} that says of which run: {ways}"
            )
        if self.resume:
            return read_record(self.path / RECORD)
        try:
            finished = "finished" in read_record(self.path / RECORD)
        except CheckpointError as error:
            raise ConfigError(f"'{self.path}' holds a run, and {error}: {ways}") from error
        if finished:
            raise ConfigError(
                f"'{self.path}' holds a finished run (with --resume there is nothing left to do): {ways}"
            )
        raise ConfigError(
            f"'{self.path}' holds a run that is not finished: go on with it with --resume, {ways}"
        )

    def _move_aside(self) -> Path | None:
        if not self.overwrite or not any(os.path.lexists(self.path / name) for name in OF_A_RUN):
            return None
        names = (self.path.with_name(f"{self.path.name}.before-{number}") for number in count(1))
        aside = next(name for name in names if not os.path.lexists(name))
        try:
            # Renamed while it is held, and taken anew under its name: no other run can come between.
            self.path.rename(aside)
        except OSError as error:
            raise CheckpointError(f"'{self.path}' cannot be moved aside: {error.strerror}") from error
        (aside / LOCK).unlink(missing_ok=True)
        self._lock.release()
        self._lock = RunLock(self.path)
        self._lock.acquire()
        return aside

    def _release(self) -> None:
        self._lock.release()
        if self._made:
            with suppress(OSError):  # not empty: then it was made for something
                self.path.rmdir()
