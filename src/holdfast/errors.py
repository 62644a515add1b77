"""The errors a user can act on. The command line turns each into one message and an exit code."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from pathlib import Path


class HoldfastError(Exception):
    """Something the user can mend; the message says what and how."""

    exit_code = 2


class ConfigError(HoldfastError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(HoldfastError):
    """A row, file or chat template cannot be used as it is."""


class ModelError(HoldfastError):
    """A model, tokenizer or adapter cannot be used as it is."""


class CheckpointError(HoldfastError):
    """A checkpoint, or the folder it belongs in, cannot be written or used as it is."""


class FolderInUse(HoldfastError):
    """Another run holds the folder."""


class PeerError(HoldfastError):
    """Another process of the run has failed, and says why itself; this one ends likewise.

    Attributes:
        exit_code: the other one's.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NonFiniteError(HoldfastError):
    """A loss, a gradient or a parameter is NaN or infinite."""

    exit_code = 3


class SpikeError(HoldfastError):
    """A step's loss or gradient is far beyond those before it."""

    exit_code = 3


class Interrupted(HoldfastError):
    """A signal stopped a run.

    Attributes:
        what: what was stopped, and what there is of it.
        checkpoint: what was saved before the end.
        exit_code: 128 and the signal's number, as shells have it: 130 for Ctrl-C, 143 for a scheduler's SIGTERM.
    """

    def __init__(
        self, what: str, how_to_go_on: str, *, number: int = signal.SIGINT, checkpoint: Path | None = None
    ) -> None:
        super().__init__(f"{what}; {how_to_go_on}")
        self.what = what
        self.number = number
        self.checkpoint = checkpoint
        self.exit_code = 128 + number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known name, or the whole list when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (known: {', '.join(known)})"
