"""The errors a user can act on. The command line turns each into one message and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class Interrupted(HoldfastError):
    """The user stopped a run."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known name, or the whole list when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (known: {', '.join(known)})"
