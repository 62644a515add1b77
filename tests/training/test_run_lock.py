"""One run a folder: the second is told who has it, and nobody has to clear up after a crash."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.errors import CheckpointError, FolderInUse
from holdfast.training import run_lock
from holdfast.training.run_lock import LOCK, RunLock


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(folder: Path, pid: int, host: str | None = None) -> None:
    holder = {
        "pid": pid,
        "host": host or socket.gethostname(),
        "started": "2024-01-01T00:00:00+00:00",
        "command": "holdfast",
    }
    (folder / LOCK).write_text(json.dumps(holder))


def test_what_stands_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/bin/holdfast", "run", "judge.api_key=canary-4711"])
    with RunLock(tmp_path / "runs" / "a") as lock:
        assert lock.held
        text = (tmp_path / "runs" / "a" / LOCK).read_text()
        holder = json.loads(text)
        assert holder.keys() == {"pid", "host", "started", "command"}
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
        assert holder["command"] == "holdfast"
        assert "canary" not in text
    assert not lock.held
    assert list((tmp_path / "runs" / "a").iterdir()) == []


def test_the_second_is_told_who_is_first(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(FolderInUse) as caught:
        RunLock(tmp_path).acquire(wait=0)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert f"process {os.getpid()} on host {socket.gethostname()!r}" in message
    assert caught.value.exit_code == 2
    with RunLock(tmp_path):  # and the refused one has spoilt nothing
        pass


def test_a_lock_is_taken_once_and_let_go_once(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.acquire(wait=0)
    lock.release()
    lock.release()
    assert not lock.held


def test_waiting_ends_within_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only sleeping moves."""
    now = [0.0]
    monkeypatch.setattr(run_lock.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    with RunLock(tmp_path), pytest.raises(FolderInUse):
        RunLock(tmp_path).acquire()
    assert 0.5 < now[0] < 2


def test_one_that_lets_go_meanwhile_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: first.release())
    second.acquire()
    assert second.held
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("left", ["", "no JSON", "[]", '{"pid": 1}', "dead"])
def test_a_file_without_its_lock_is_taken_over(tmp_path: Path, left: str) -> None:
    (tmp_path / LOCK).write_text(left)
    if left == "dead":
        left_by(tmp_path, dead_process(), host="another")
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_file_removed_while_it_is_locked_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second opens the file; the first removes it and lets go; the second's lock is on a file that is gone."""
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    flock, let_go = fcntl.flock, [first.release]

    def late(handle: int, operation: int) -> None:
        if let_go:
            let_go.pop()()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second.acquire()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    with pytest.raises(FolderInUse):
        RunLock(tmp_path).acquire(wait=0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"run\.lock' cannot be written \((Not a directory|File exists)\)"
    ):
        RunLock(tmp_path / "file" / "run").acquire()


class TestWithoutLocksOfTheSystem:
    """A file system that knows no flock."""

    @pytest.fixture(autouse=True)
    def _none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(handle: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)

    def test_one_at_a_time(self, tmp_path: Path) -> None:
        with RunLock(tmp_path), pytest.raises(FolderInUse, match=f"process {os.getpid()} on host"):
            RunLock(tmp_path).acquire(wait=0)
        with RunLock(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_a_dead_holder_is_recovered(self, tmp_path: Path) -> None:
        left_by(tmp_path, dead_process())
        with RunLock(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []

    def test_a_living_holder_is_not(self, tmp_path: Path) -> None:
        left_by(tmp_path, os.getppid())
        with pytest.raises(FolderInUse, match=f"delete '{tmp_path / LOCK}'"):
            RunLock(tmp_path).acquire(wait=0.1)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]

    def test_the_same_number_before_a_restart_is_a_dead_holder(self, tmp_path: Path) -> None:
        left_by(tmp_path, os.getpid())
        with RunLock(tmp_path):
            pass

    def test_of_another_host_nothing_is_known(self, tmp_path: Path) -> None:
        left_by(tmp_path, dead_process(), host="elsewhere")
        with pytest.raises(FolderInUse, match=f"on host 'elsewhere' .* delete '{tmp_path / LOCK}'"):
            RunLock(tmp_path).acquire(wait=0.1)

    def test_a_file_that_names_nobody_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / LOCK).write_bytes(b"\xff")
        with pytest.raises(FolderInUse, match=f"another run, .* delete '{tmp_path / LOCK}'"):
            RunLock(tmp_path).acquire(wait=0.1)

    def test_only_one_process_at_a_time_takes_over(self, tmp_path: Path) -> None:
        left_by(tmp_path, dead_process())
        (tmp_path / f"{LOCK}.taking").write_text("")
        with pytest.raises(FolderInUse):
            RunLock(tmp_path).acquire(wait=0.1)
