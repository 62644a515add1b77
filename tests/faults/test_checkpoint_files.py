"""Checkpoints and run folders under fire, in real processes: what was saved before is there afterwards, whatever
happens while the next one is written."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from holdfast import files
from holdfast.errors import CheckpointError, FolderInUse
from holdfast.training.checkpoint import CheckpointStore
from holdfast.training.manifest import listed, verify
from holdfast.training.run_lock import RunLock
from holdfast.training.state_files import load_state, save_state
from tests.faults import moments
from tests.faults.moments import Moments, contents, writer

AS_ROOT = os.geteuid() == 0


def said(path: Path | None) -> str:
    """What a checkpoint says, of which every byte must be there."""
    assert path is not None
    assert verify(path) == []
    for text in ("the first", "the second", "the new one"):
        if all((path / name).read_text() == content for name, content in contents(text).items()):
            return text
    raise AssertionError(f"{path} is a mixture")


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- killed at every moment of a save


def save_in_a_process(folder: Path, step: int, keep: int, moment: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, moments.__file__, str(folder), str(step), str(keep), str(moment)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("step", "keep"),
    [
        (3, 1),  # a new step; the two before it are rotated away
        (2, 2),  # a step that is there already, which the new one replaces
    ],
)
def test_killed_at_every_moment_of_a_save(tmp_path: Path, step: int, keep: int) -> None:
    before = tmp_path / "before"
    CheckpointStore(before).save(1, writer("the first"))
    CheckpointStore(before).save(2, writer("the second"))

    shutil.copytree(before, tmp_path / "whole")
    whole = save_in_a_process(tmp_path / "whole", step, keep, moment=0)
    passed = whole.stdout.split("\n")[:-1]
    assert whole.returncode == 0, whole.stderr
    assert {"mkdir", "half a write", "write", "before fsync", "after fsync", "rename", "unlink"} <= set(
        passed
    )

    found = []
    for moment, kind in enumerate(passed, start=1):
        where = f"moment {moment}, {kind}"
        folder = tmp_path / f"killed-{moment}"
        shutil.copytree(before, folder)
        assert save_in_a_process(folder, step, keep, moment).returncode == -signal.SIGKILL, where
        store = CheckpointStore(folder)
        with RunLock(folder) as lock:  # the dead process's is in nobody's way
            store.recover(lock)
            found.append(said(store.newest()))
            assert not [name for name in visible(folder) if name.startswith(".")], where
            store.save(step, writer("the new one"))
            store.rotate(keep)
            assert said(store.newest()) == "the new one", where
            assert visible(folder) == [*visible(tmp_path / "whole"), "run.lock"], where
        shutil.rmtree(folder)
    published = found.index("the new one")
    assert passed[published - 1] == "rename"
    assert found == ["the second"] * published + ["the new one"] * (len(found) - published)


# ---- damaged afterwards


@pytest.mark.parametrize("name", ["weights.json", "state/rng-0.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "a byte flipped"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("the first"))
    path = store.save(2, writer("the second")) / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[1] ^= 0x10
        path.write_bytes(content)
    newest = CheckpointStore(tmp_path).newest()
    assert newest == tmp_path / "checkpoint-1"
    assert said(newest) == "the first"
    (warning,) = caplog.messages
    assert "checkpoint-2' is not used" in warning
    assert repr(name) in warning


# ---- a disk that is full, or fails


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, at: Callable[[int, str], None]) -> Iterator[Moments]:
    watched = Moments(at)
    with monkeypatch.context() as patch:
        watched.watch(patch.setattr)
        yield watched


@pytest.mark.parametrize("step", [3, 2])
def test_a_disk_full_from_any_moment_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Full for all that follows; deleting and renaming still go."""
    needs_room = {"mkdir", "half a write", "write", "before fsync"}
    refused = 0
    for chosen in range(1, 100):

        def fill_up(number: int, kind: str, chosen: int = chosen) -> None:
            if number >= chosen and kind in needs_room:
                raise OSError(errno.ENOSPC, "No space left on device")

        store = CheckpointStore(tmp_path / str(chosen))
        store.save(1, writer("the first"))
        store.save(2, writer("the second"))
        with failing(monkeypatch, fill_up):
            try:
                store.save(step, writer("the new one"))
            except CheckpointError as error:
                refused += 1
                message = str(error)
                assert f"checkpoint-{step} cannot be written" in message
                assert "No space left on device" in message
                assert "bytes, and " in message
                assert " are free" in message
            else:
                break
        with RunLock(store.folder) as lock:
            store.recover(lock)
        assert visible(store.folder) in (
            ["checkpoint-1", "checkpoint-2"],
            ["checkpoint-1", "checkpoint-2", "checkpoint-3"],  # full only after it was published
        )
        newest = CheckpointStore(store.folder).newest()
        assert said(newest) in ("the second", "the new one")
    assert refused >= 15


@pytest.mark.parametrize("step", [3, 2])
def test_a_name_that_cannot_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Whichever rename is refused, the checkpoint that was to give way has its name, without any recovery."""
    for chosen in range(1, 4):
        renames = []

        def refuse(number: int, kind: str, chosen: int = chosen, renames: list[int] = renames) -> None:
            if kind == "rename":
                renames.append(number)
                if len(renames) == chosen:
                    raise OSError(errno.EACCES, "Permission denied")

        store = CheckpointStore(tmp_path / str(chosen))
        store.save(1, writer("the first"))
        store.save(2, writer("the second"))
        with failing(monkeypatch, refuse):
            try:
                store.save(step, writer("the new one"))
            except CheckpointError:
                assert said(store.newest()) == "the second"
                assert visible(store.folder) == ["checkpoint-1", "checkpoint-2"]
            else:
                assert len(renames) < chosen
                return
    raise AssertionError("there are not so many renames in a save")


def test_the_message_says_what_is_needed_and_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        (folder / "weights.json").write_bytes(b"x" * 5000)
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "weights.json"))

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_234))
    with pytest.raises(
        CheckpointError, match=r"weights\.json.*it needs over 5,000 bytes, and 1,234 are free"
    ):
        CheckpointStore(tmp_path).save(1, full)
    store = CheckpointStore(tmp_path)
    store.save(1, lambda folder: (folder / "weights.json").write_bytes(b"x" * 7000))
    with pytest.raises(CheckpointError, match=r"it needs about 7,000 bytes, and 1,234 are free"):
        store.save(2, full)


def test_a_limit_of_the_system_on_files_that_safetensors_writes(tmp_path: Path) -> None:
    """A real refusal, in a library that is not Python's: it comes as no OSError."""
    store = CheckpointStore(tmp_path)
    store.save(1, lambda folder: save_state({"weights": torch.zeros(10)}, folder / "state"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(
            CheckpointError, match=r"checkpoint-2 cannot be written .*: File too large; it needs"
        ):
            store.save(2, lambda folder: save_state({"weights": torch.zeros(10_000)}, folder / "state"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert visible(tmp_path) == ["checkpoint-1"]
    newest = store.newest()
    assert newest is not None
    assert load_state(newest / "state")["weights"].shape == (10,)


def test_a_fault_that_passes_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save is begun again from nothing: of a file whose sync failed, the system may have dropped the bytes."""
    monkeypatch.setattr(files, "PAUSE", 0)
    for chosen in range(1, 100):

        def fail_once(number: int, kind: str, chosen: int = chosen) -> None:
            if number == chosen:
                raise OSError(errno.EIO, "Input/output error")

        store = CheckpointStore(tmp_path / str(chosen))
        with failing(monkeypatch, fail_once) as watched:
            path = store.save(1, writer("the new one"))
        assert said(path) == "the new one"
        with RunLock(store.folder) as lock:
            store.recover(lock)
        assert visible(store.folder) == ["checkpoint-1"]
        if len(watched.passed) < chosen:
            break
    assert chosen > 20


def test_a_fault_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSE", 0)
    store = CheckpointStore(tmp_path)
    store.save(1, writer("the first"))
    begun = []

    def write(folder: Path) -> None:
        begun.append(folder)
        writer("the new one")(folder)

    def fail(number: int, kind: str) -> None:
        if kind == "before fsync":
            raise OSError(errno.ESTALE, "Stale file handle")

    with failing(monkeypatch, fail), pytest.raises(CheckpointError, match="Stale file handle"):
        store.save(2, write)
    assert len(set(begun)) == 3
    assert visible(tmp_path) == ["checkpoint-1"]


def test_a_disk_that_cannot_be_read_for_a_moment_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PAUSE", 0)
    store = CheckpointStore(tmp_path)
    path = store.save(1, writer("the first"))
    sha256_of, faults = files.sha256_of, [errno.EIO, errno.EIO]

    def read(file: Path) -> str:
        if faults:
            raise OSError(faults.pop(), "Input/output error")
        return sha256_of(file)

    monkeypatch.setattr("holdfast.training.manifest.sha256_of", read)
    assert store.newest() == path
    faults += [errno.EIO] * 9
    assert listed(verify(path)).startswith("'state/rng-0.json' cannot be read: Input/output error; ")


@pytest.mark.skipif(AS_ROOT, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    store.save(1, writer("the first"))
    (tmp_path / "run").chmod(0o555)
    try:
        for action in (lambda: store.preflight(1), lambda: store.save(2, writer("the new one"))):
            with pytest.raises(CheckpointError, match=r"cannot be written to '.*run': Permission denied"):
                action()
        with pytest.raises(CheckpointError, match="Permission denied"):
            RunLock(tmp_path / "run").acquire()
        assert said(store.newest()) == "the first"
    finally:
        (tmp_path / "run").chmod(0o755)


def test_a_file_system_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks, root too."""
    store = CheckpointStore(tmp_path / "run")
    store.save(1, writer("the first"))

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

    monkeypatch.setattr(os, "mkdir", refuse)
    for action in (lambda: store.preflight(1), lambda: store.save(2, writer("the new one"))):
        with pytest.raises(CheckpointError, match=r"cannot be written to '.*run': Read-only file system"):
            action()
    assert said(store.newest()) == "the first"


# ---- two processes, one folder

HOLD = """
import os, sys
from pathlib import Path
from holdfast.errors import FolderInUse
from holdfast.training.run_lock import RunLock
try:
    RunLock(Path(sys.argv[1])).acquire(wait=0)
except FolderInUse:
    print("in use", flush=True)
else:
    {child}
    print("held", flush=True)
sys.stdin.read()
"""
FORK = """child = os.fork()
    if child == 0:
        import time
        time.sleep(600)
    print(child, flush=True)"""


@contextmanager
def holder(folder: Path, child: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """A process that takes the folder and holds it until its input ends."""
    command = [sys.executable, "-c", HOLD.format(child=child), str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_second_run_is_told_of_the_first(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        assert line(first) == "held"
        with pytest.raises(FolderInUse, match=f"'{tmp_path}' is in use by process {first.pid} on host"):
            RunLock(tmp_path).acquire()
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / "run.lock").exists()
        with RunLock(tmp_path):
            pass
    assert visible(tmp_path) == []


def test_of_several_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as a, holder(tmp_path) as b, holder(tmp_path) as c, holder(tmp_path) as d:
        assert sorted(line(process) for process in (a, b, c, d)) == ["held", "in use", "in use", "in use"]


def test_a_child_that_outlives_the_holder_does_not_hold(tmp_path: Path) -> None:
    """As a data loader's process does: it inherits the open lock file."""
    with holder(tmp_path, FORK) as first:
        child = int(line(first))
        try:
            assert line(first) == "held"
            with pytest.raises(FolderInUse):
                RunLock(tmp_path).acquire(wait=0)
            first.send_signal(signal.SIGKILL)
            first.wait()
            os.kill(child, 0)  # it lives
            with RunLock(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
