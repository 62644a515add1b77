"""Files whole or absent; what the system refuses, and when it is asked again."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from holdfast import files
from holdfast.files import (
    errno_of,
    making,
    refusal,
    replacing,
    retried,
    sha256_of,
    sync,
)


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "file"
    seen = []

    def record(synced: Path) -> None:
        seen.append((synced.is_dir(), path.exists()))

    monkeypatch.setattr(files, "sync", record)
    with replacing(path) as beside:
        beside.write_text("whole")
    assert seen == [(False, False), (True, True)]
    assert [inside.name for inside in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_was_there_stays_if_the_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail_halfway() -> None:
        with replacing(path) as beside:
            beside.write_text("half")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_may_sync_its_folders_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 10**6)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_what_the_system_said(tmp_path: Path) -> None:
    assert errno_of(OSError(errno.ENOSPC, "full")) == errno.ENOSPC
    assert errno_of(ValueError("full")) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(SafetensorError) as caught:
        save_file({"a": torch.zeros(1)}, tmp_path / "file" / "below")
    assert errno_of(caught.value) == errno.ENOTDIR


@pytest.mark.parametrize(
    ("faults", "calls"),
    [
        ([], 1),
        ([errno.EIO], 2),
        ([errno.ESTALE, errno.EIO], 3),
        ([errno.EIO] * 3, 3),
        ([errno.ENOSPC], 1),
        ([errno.EIO, errno.EACCES], 2),
    ],
)
def test_what_may_pass_is_tried_three_times(
    monkeypatch: pytest.MonkeyPatch, faults: list[int], calls: int
) -> None:
    monkeypatch.setattr(files, "PAUSE", 0)
    left, made = list(faults), []

    def action() -> str:
        made.append(1)
        if left:
            raise OSError(left.pop(0), "refused")
        return "done"

    if len(faults) < calls:
        assert retried(action) == "done"
    else:
        with pytest.raises(OSError, match="refused") as caught:
            retried(action)
        assert caught.value.errno == faults[calls - 1]
    assert len(made) == calls


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (".a.x1.partial", ".a.x2.partial", ".b.x3.partial"))
    for path in (old, new, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (1, 1))
    with replacing(tmp_path / "a") as beside:
        beside.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.x2.partial", ".b.x3.partial", "a"]


def test_a_folder_half_made_goes_after_a_day(tmp_path: Path) -> None:
    left = tmp_path / ".a.x1.making"
    (left / "inner").mkdir(parents=True)
    os.utime(left, (1, 1))
    with making(tmp_path / "a") as beside:
        (beside / "file").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_told_in_a_sentence() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/a/metrics.jsonl")
    assert str(refusal(full)).startswith("'/runs/a/metrics.jsonl' cannot be written: No space left on device")
    assert "a file cannot be written" in str(refusal(SafetensorError("... (os error 28)")))
    assert refusal(OSError(errno.ENOENT, "No such file")) is None
    assert refusal(ValueError("x")) is None
