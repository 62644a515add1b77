"""Work over a stream in chunks, by several processes, with the order kept and few chunks in memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from holdfast.errors import ConfigError, DataError

C = TypeVar("C")
T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # chunks a process has waiting


def map_chunks(
    work: Callable[[C, list[T]], R], context: C, items: Iterable[T], *, chunk: int, num_proc: int | None
) -> Iterator[R]:
    """`work(context, chunk)` for every `chunk` consecutive items, in their order.

    Args:
        context: what every chunk needs; it is handed to each process once.
        num_proc: processes; None for one a core. There are never more than chunks, and a single one is this
            process itself.

    Raises:
        ConfigError: `num_proc` below 1, or beyond `most_processes`.
        DataError: a process is ended from outside.
        Exception: whatever `work` or `items` raises.
    """
    if num_proc is not None:
        require_processes("the number of processes", num_proc, least=1)
    stream = iter(items)
    chunks = iter(lambda: list(islice(stream, chunk)), [])
    first = list(islice(chunks, num_proc or cores()))
    if len(first) <= 1:
        yield from (work(context, own) for own in chain(first, chunks))
    else:
        yield from _in_processes(work, context, chain(first, chunks), len(first))


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_processes(setting: str, count: int, least: int = 0) -> None:
    """See that a number of processes is one that this machine can bear: four a core, and 64 on any machine.

    Raises:
        ConfigError: it is not; begins with `setting`.
    """
    most = max(64, 4 * cores())
    if not least <= count <= most:
        raise ConfigError(f"{setting} must be from {least} to {most} on these {cores()} cores, not {count}")


def _in_processes(
    work: Callable[[C, list[T]], R], context: C, chunks: Iterator[list[T]], processes: int
) -> Iterator[R]:
    # Forked processes share what is loaded, and need no importable main module. They never touch a GPU.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with (
        _single_threaded_tokenizers(),
        ProcessPoolExecutor(
            processes, multiprocessing.get_context(method), initializer=_enter, initargs=(work, context)
        ) as pool,
    ):
        waiting: deque[Future[R]] = deque()
        try:
            for own in chunks:
                waiting.append(pool.submit(_run, own))
                if len(waiting) > AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"one of {processes} processes that prepare the rows was ended from outside, as happens where "
                "memory runs out; use fewer processes"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


_job: Sequence[Any] = ()  # of a worker process: its work and context


def _enter(work: Callable[[C, list[T]], R], context: C) -> None:
    global _job
    _job = (work, context)
    # An interrupt is the parent's to handle: it ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(chunk: list[Any]) -> Any:
    work, context = _job
    return work(context, chunk)


@contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """The tokenizers library must not start threads in forked processes, and warns unless told so."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
