"""A limit on how long somebody else's program may compute: a chat template is one, and can loop without end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class OverTime(Exception):
    """What ran has used up its time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OverTime` in what runs inside once it has computed for so long.

    Time is what the processor spends on this process, so a busy machine shortens nothing. The limit holds between
    steps of Python code, not within one; in the main thread, which alone is told; and where the system has such a
    timer (Windows has none). Elsewhere there is no limit.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL if before is None else before)


def _end(number: int, frame: FrameType | None) -> None:
    raise OverTime
