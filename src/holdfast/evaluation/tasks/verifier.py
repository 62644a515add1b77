"""Whether an answer to a question of mathematics is its reference, however either is written.

math-verify compares the two as formulas. It runs in processes of its own, where no answer can hang the evaluation or
take the machine's memory: see `verifier_process`. One that has to be ended is wrong, and is counted apart.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Literal, get_args

from holdfast.data.processes import cores
from holdfast.errors import ConfigError, DataError

Outcome = Literal[
    "right",
    "wrong",
    "unreadable",  # no formula and no word that could be compared
    "over_time",  # ended: it had computed for as long as it may
    "over_memory",  # ended: it asked for more than it may have
    "crashed",  # ended by a fault in the libraries below
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
ENDED: tuple[Outcome, ...] = ("over_time", "over_memory", "crashed")

SECONDS = 5.0  # of computing, for one answer
MEMORY = 1 << 31  # bytes of address space, for one answer
LONGEST = 2000  # characters of an answer; the longest reference of MATH-500 has under 70
SHARE = 16  # comparisons below which another process is not worth its start
PROGRAM = Path(__file__).with_name("verifier_process.py")
# All that the process is told of this one: no key of anything.
NEEDED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_BOXES = ("\\boxed", "\\fbox")


def boxed_answer(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` (or `\fbox{...}`) of a text; None where there is none, or it is open.

    Braces inside are counted; those written `\{` and `\}` are part of the formula. Takes time linear in the text.
    """
    start = max(text.rfind(box) for box in _BOXES)
    if start < 0:
        return None
    head, _, rest = text[start:].partition("{")
    if head.rstrip() not in _BOXES:
        return None
    depth, escaped = 1, False
    for place, char in enumerate(rest):
        if escaped or char == "\\":
            escaped = not escaped
        elif char in "{}":
            depth += 1 if char == "{" else -1
            if not depth:
                return rest[:place].strip() or None
    return None


def check_answers(
    pairs: Sequence[tuple[str, str]],
    *,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    processes: int | None = None,
) -> list[Outcome]:
    """What becomes of each `(reference, answer)`, in their order; equal pairs are compared once.

    The outcome of a pair depends on nothing but the pair and the limits: not on its neighbours, on the number of
    processes, or (time is the processor's) on what else the machine does.

    Args:
        pairs: LaTeX, without dollar signs or a box around it.
        seconds: of computing that one answer may take; ten times as many pass on the clock before it is ended.
        memory: bytes of address space that one answer may take, with the 300 MB or so of the libraries.
        processes: side by side; None for one a core, and never more than that.

    Raises:
        ConfigError: math-verify is not installed; a limit or a number of processes below 1; a system that cannot fork.
        DataError: a process is ended from outside.
    """
    require_verifier()
    if seconds <= 0 or memory < 1 or (processes is not None and processes < 1):
        raise ConfigError(
            f"checking answers needs time, memory and a process: seconds {seconds}, memory {memory}, processes "
            f"{processes}"
        )
    distinct = list(dict.fromkeys(pair for pair in pairs if len(pair[1]) <= LONGEST))
    side_by_side = max(1, min(processes or cores(), cores(), len(distinct) // SHARE))
    shares = [distinct[first::side_by_side] for first in range(side_by_side)]
    found: dict[tuple[str, str], Outcome] = {}
    with ExitStack() as open_files:
        workers = [_Worker(share, seconds, memory, open_files) for share in shares if share]
        try:
            for worker in workers:
                found |= worker.outcomes()
        finally:
            for worker in workers:
                worker.end()
    return [found.get(pair, "unreadable") for pair in pairs]


def require_verifier() -> None:
    """See that answers can be checked here.

    Raises:
        ConfigError: math-verify is not installed, or the system cannot fork.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            "answers are compared by math-verify, which is not installed: pip install 'holdfast[eval]'"
        )
    if not hasattr(os, "fork"):
        raise ConfigError(
            "answers are checked in forked processes, which this system has not: use Linux or macOS"
        )


class _Worker:
    """A process that compares a share of the pairs. Files stand between, so neither side ever waits for the other."""

    def __init__(
        self, share: Sequence[tuple[str, str]], seconds: float, memory: int, open_files: ExitStack
    ) -> None:
        self._share = share
        asked, self._told, self._errors = (_file(open_files) for _ in range(3))
        asked.writelines(json.dumps(pair) + "\n" for pair in share)
        asked.seek(0)
        # By path, and with neither its folder nor the current one searched for modules; the seed of hashes orders
        # what sympy walks through.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), repr(seconds), str(memory)],
            stdin=asked,
            stdout=self._told,
            stderr=self._errors,
            env={name: os.environ[name] for name in NEEDED if name in os.environ} | {"PYTHONHASHSEED": "0"},
        )

    def outcomes(self) -> dict[tuple[str, str], Outcome]:
        """Wait for the end, and read what became of each pair."""
        code = self._process.wait()
        lines = _text(self._told).splitlines()
        if code or len(lines) != len(self._share):
            words = _text(self._errors).strip().splitlines()[-1:] or [f"exit code {code}"]
            raise DataError(
                f"a process that checks answers ended after {len(lines)} of {len(self._share)}: {words[0]}. The "
                "answers are kept; run the same command again, with fewer processes if memory ran out"
            )
        known: dict[str, Outcome] = {outcome: outcome for outcome in OUTCOMES}
        return {pair: known[line] for pair, line in zip(self._share, lines, strict=True)}

    def end(self) -> None:
        """End the process, where it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _file(open_files: ExitStack) -> IO[str]:
    """A file without a name, gone when `open_files` is left."""
    return open_files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
