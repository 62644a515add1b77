"""A limit on how much memory somebody else's program may take: a chat template can ask for a text of any length."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

PAGES = "/proc/self/statm"  # of memory, of which this process has so many


@contextmanager
def memory_limit(count: int) -> Iterator[None]:
    """What runs inside gets `count` bytes at most beside those that the process has, or a `MemoryError`.

    The limit is on addresses and is the whole process's, other threads' too. Linux alone has it; elsewhere there is
    none.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open(PAGES, encoding="ascii") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + count
    if soft != resource.RLIM_INFINITY and soft <= most:  # it is held tighter already
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
