"""How far the calls of an evaluation are, on stderr: a bar on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from holdfast.evaluation.answers.client import CallError, Reply
from holdfast.evaluation.answers.generation import Fail, Generator, Keep, Request

REFRESHED = 0.5  # seconds between two looks at a bar
TOLD = 30.0  # seconds between two lines, where there is no terminal


class Watched:
    """A `Generator` that does what another one does, and says on stderr how far it is.

    Args:
        what: it makes: "answers", "judgments".
        repeated: how many calls failed and were made again, so far.
        told: seconds between two lines where stderr is no terminal.
    """

    def __init__(self, generator: Generator, what: str, repeated: Callable[[], int], *, told: float) -> None:
        self._generator = generator
        self._what = what
        self._repeated = repeated
        self._told = told

    @property
    def model(self) -> str:
        """Its name."""
        return self._generator.model

    @property
    def identity(self) -> str:
        """See `Generator`."""
        return self._generator.identity

    def answer(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """See `Generator`."""
        with _Progress(self._what, len(requests), self._repeated, self._told) as progress:

            def kept(request: Request, reply: Reply) -> None:
                keep(request, reply)
                progress.count(failed=False)

            def failed(request: Request, error: CallError) -> None:
                progress.count(failed=True)
                fail(request, error)

            self._generator.answer(requests, kept, failed)


class _Progress:
    """Counts, and a thread that shows them: a server that keeps everybody waiting is seen to do so."""

    def __init__(self, what: str, total: int, repeated: Callable[[], int], told: float) -> None:
        self._what = what
        self._total = total
        self._repeated = repeated
        self._before = repeated()  # by earlier calls
        self._done = self._failed = 0
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._bar: Any = None
        self._every = told
        if sys.stderr.isatty():
            self._every = REFRESHED
            self._bar = tqdm(total=total, desc=what, file=sys.stderr, dynamic_ncols=True, leave=False)
        self._thread = threading.Thread(target=self._show, name="holdfast-progress", daemon=True)

    def count(self, *, failed: bool) -> None:
        """One more is there, or is known to fail."""
        with self._guard:
            self._done += 1
            self._failed += failed

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        with suppress(OSError, ValueError):  # a stderr that is closed is nobody's to look at
            while not self._ended.wait(self._every):
                with self._guard:
                    done, failed = self._done, self._failed
                again = self._repeated() - self._before
                if self._bar is None:
                    more = f", {again:,} calls made again" if again else ""
                    line = f"{self._what}: {done:,} of {self._total:,}, {failed:,} failed{more}"
                    print(line, file=sys.stderr, flush=True)
                else:
                    self._bar.n = done
                    self._bar.set_postfix_str(f"{failed} failed, {again} made again")


def watched(generator: Generator, what: str) -> Watched:
    """A generator whose progress is shown, with the calls that a server's client makes again."""
    client = getattr(generator, "client", None)
    return Watched(generator, what, int if client is None else lambda: client.repeated, told=TOLD)
