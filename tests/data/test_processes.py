"""Chunks by several processes: the order, the errors, and how little is held."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from holdfast.data import processes
from holdfast.data.processes import map_chunks, require_processes
from holdfast.errors import ConfigError, DataError


def work(factor: int, chunk: list[int]) -> tuple[int, list[int]]:
    if -1 in chunk:
        raise DataError("row -1")
    return os.getpid(), [factor * item for item in chunk]


def end_process(_: int, chunk: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_proc", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 23])
def test_order_is_kept(num_proc: int, count: int) -> None:
    parts = list(map_chunks(work, 10, range(count), chunk=4, num_proc=num_proc))
    assert [item for _, part in parts for item in part] == [10 * n for n in range(count)]
    assert [len(part) for _, part in parts] == [4] * (count // 4) + [count % 4] * (count % 4 > 0)


def test_work_leaves_this_process_only_if_there_is_enough() -> None:
    def processes(count: int, num_proc: int | None) -> set[int]:
        return {pid for pid, _ in map_chunks(work, 1, range(count), chunk=4, num_proc=num_proc)}

    assert processes(100, 1) == {os.getpid()}
    assert processes(4, 2) == {os.getpid()}
    assert os.getpid() not in processes(100, 2)


def test_an_error_in_a_process_is_raised_here() -> None:
    with pytest.raises(DataError, match="row -1"):
        list(map_chunks(work, 1, [*range(20), -1, *range(20)], chunk=4, num_proc=2))


def test_a_process_that_is_killed_is_an_error_and_no_wait() -> None:
    with pytest.raises(DataError, match="one of 2 processes .* was ended from outside"):
        list(map_chunks(end_process, 1, range(20), chunk=4, num_proc=2))


def test_the_stream_is_not_read_far_ahead() -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for n in range(1000):
            read += 1
            yield n

    for number, _ in enumerate(map_chunks(work, 1, items(), chunk=4, num_proc=2), start=1):
        assert read <= 4 * (number + 6)


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    list(map_chunks(work, 1, range(20), chunk=4, num_proc=2))
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    list(map_chunks(work, 1, range(20), chunk=4, num_proc=2))
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_as_many_processes_as_no_machine_bears_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"must be from 1 to .* not {count}"):
        list(map_chunks(work, 1, [1], chunk=4, num_proc=count))


def test_the_bound_is_a_matter_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four a core, and 64 on any: a recipe written on a larger machine is not refused for a few more."""
    monkeypatch.setattr(processes, "cores", lambda: 2)
    require_processes("workers", 64)
    with pytest.raises(ConfigError, match="workers must be from 0 to 64 on these 2 cores, not 65"):
        require_processes("workers", 65)
    monkeypatch.setattr(processes, "cores", lambda: 100)
    require_processes("workers", 400)
