"""A store of checkpoints: whole and verified, or not there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.errors import CheckpointError, ConfigError
from holdfast.training.checkpoint import CheckpointStore
from holdfast.training.manifest import MANIFEST, read_manifest, verify
from holdfast.training.run_lock import RunLock
from holdfast.training.state_files import load_state, save_state


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run")


def writer(text: str = "text") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "a.json").write_text(text)
        (folder / "inner" / "b.txt").write_text(text * 2)

    return write


def fill(store: CheckpointStore, *steps: int) -> list[Path]:
    return [store.save(step, writer(str(step))) for step in steps]


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def spoil(path: Path) -> None:
    with (path / "a.json").open("r+b") as file:
        file.write(b"X")


# ---- writing


def test_a_checkpoint_is_what_was_written_and_a_manifest(store: CheckpointStore) -> None:
    path = store.save(30, writer())
    assert path == store.folder / "checkpoint-30"
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == [
        "a.json",
        "inner/b.txt",
        MANIFEST,
    ]
    assert (read_manifest(path).step, read_manifest(path).bytes) == (30, 4 + 8)
    assert verify(path) == []
    assert store.newest() == path
    assert names(store) == ["checkpoint-30"]


def test_nothing_looks_like_a_checkpoint_before_it_is_one(store: CheckpointStore) -> None:
    beside = store.begin(30)
    writer()(beside)
    assert beside.name.startswith(".checkpoint-30.")
    assert beside.name.endswith(".partial")
    assert store.newest() is None
    assert store.checkpoints() == []
    assert store.commit(30).name == "checkpoint-30"
    assert names(store) == ["checkpoint-30"]


def test_state_of_a_training_goes_in_and_comes_out(store: CheckpointStore) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    path = store.save(1, lambda folder: save_state(optimizer.state_dict(), folder / "optimizer"))
    loaded = load_state(path / "optimizer")
    assert torch.equal(loaded["state"][0]["exp_avg"], optimizer.state[weight]["exp_avg"])
    assert loaded["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_step_written_again_replaces_the_first(store: CheckpointStore) -> None:
    fill(store, 10, 20)
    path = store.save(20, writer("again"))
    assert (path / "a.json").read_text() == "again"
    assert verify(path) == []
    assert names(store) == ["checkpoint-10", "checkpoint-20"]


def test_the_name_is_synced_when_it_is_given(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def record(path: Path) -> None:
        synced.append((path, names(store)))

    monkeypatch.setattr("holdfast.training.checkpoint.sync", record)
    store.save(10, writer())
    assert synced == [(store.folder, ["checkpoint-10"])]


def test_begun_twice_is_written_once(store: CheckpointStore) -> None:
    (store.begin(10) / "half").write_text("half")
    writer()(store.begin(10))
    assert not (store.commit(10) / "half").exists()
    assert names(store) == ["checkpoint-10"]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), ConfigError("a setting")])
def test_what_the_writer_raises_passes_and_leaves_nothing(
    store: CheckpointStore, error: BaseException
) -> None:
    fill(store, 10)

    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        store.save(20, write)
    assert caught.value is error
    assert names(store) == ["checkpoint-10"]


def test_a_part_that_failed_elsewhere_is_abandoned(store: CheckpointStore) -> None:
    fill(store, 10)
    writer()(store.begin(20))
    store.abandon(20)
    store.abandon(20)
    assert names(store) == ["checkpoint-10"]


@pytest.mark.parametrize("save", [True, False])
def test_a_pickle_is_never_published(store: CheckpointStore, save: bool) -> None:
    def write(folder: Path) -> None:
        torch.save({"a": 1}, folder / "training_args.bin")

    def in_two_phases() -> None:
        write(store.begin(10))
        store.commit(10)

    publish = partial(store.save, 10, write) if save else in_two_phases
    with pytest.raises(CheckpointError, match=r"'training_args\.bin' is of a kind that may run code"):
        publish()
    assert names(store) == []


# ---- finding


def test_the_newest_is_the_one_of_the_highest_step(store: CheckpointStore) -> None:
    fill(store, 100, 9, 20)
    assert [path.name for path in store.checkpoints()] == [
        "checkpoint-9",
        "checkpoint-20",
        "checkpoint-100",
    ]
    assert store.newest() == store.folder / "checkpoint-100"


def test_other_names_are_no_checkpoints(store: CheckpointStore) -> None:
    fill(store, 10)
    for name in ("checkpoint-", "checkpoint-011", "checkpoint-11.before-1", "xcheckpoint-12", "final"):
        (store.folder / name).mkdir()
    assert store.newest() == store.folder / "checkpoint-10"


def test_where_there_is_none(store: CheckpointStore) -> None:
    assert store.newest() is None
    store.folder.mkdir()
    assert store.newest() is None


def test_a_damaged_one_is_passed_over_with_a_warning(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    paths = fill(store, 10, 20, 30)
    spoil(paths[2])
    (paths[1] / "inner" / "b.txt").unlink()
    assert CheckpointStore(store.folder).newest() == paths[0]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert f"'{paths[2]}' is not used: 'a.json' is damaged" in caplog.messages[0]
    assert f"'{paths[1]}' is not used: 'inner/b.txt' is missing" in caplog.messages[1]


def test_one_that_another_program_wrote_in_place_is_passed_over(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    (good,) = fill(store, 10)
    (store.folder / "checkpoint-20").mkdir()
    (store.folder / "checkpoint-20" / "model.safetensors").write_text("half")
    assert store.newest() == good
    assert "'manifest.json' is missing" in caplog.text


def test_none_that_verifies_is_an_error_not_a_fresh_start(store: CheckpointStore) -> None:
    for path in fill(store, 10, 20):
        spoil(path)
    with pytest.raises(CheckpointError) as caught:
        store.newest()
    assert "checkpoint-20: 'a.json' is damaged" in str(caught.value)
    assert "checkpoint-10: 'a.json' is damaged" in str(caught.value)


def test_a_change_after_it_was_verified_is_seen(store: CheckpointStore) -> None:
    paths = fill(store, 10, 20)
    assert store.newest() == paths[1]
    spoil(paths[1])
    assert store.newest() == paths[0]


def test_a_run_that_goes_on_from_an_earlier_one_leaves_the_later_behind(store: CheckpointStore) -> None:
    fill(store, 10, 20, 30)
    assert [path.name for path in store.move_aside_after(10)] == [
        "checkpoint-20.before-1",
        "checkpoint-30.before-1",
    ]
    assert store.newest() == store.folder / "checkpoint-10"
    fill(store, 20)
    assert [path.name for path in store.move_aside_after(15)] == ["checkpoint-20.before-2"]
    assert store.move_aside_after(15) == []
    assert (store.folder / "checkpoint-20.before-1" / "a.json").read_text() == "20"


# ---- rotating


def steps(store: CheckpointStore) -> list[int]:
    assert all(path.name.startswith("checkpoint-") for path in store.folder.iterdir())
    return [int(path.name.split("-")[1]) for path in store.checkpoints()]


@pytest.mark.parametrize(
    ("keep", "protect", "spoilt", "left"),
    [
        (None, [], [], [10, 20, 30, 40]),
        (9, [], [], [10, 20, 30, 40]),
        (2, [], [], [30, 40]),
        (1, [], [], [40]),
        (1, [10], [], [10, 40]),
        (2, [10], [], [10, 40]),
        (3, [10], [], [10, 30, 40]),
        (1, [40], [], [40]),
        (2, [40], [], [30, 40]),
        (1, [99], [], [40]),
        (1, [], [40], [30, 40]),  # the new one does not verify: the last good one stays
        (2, [], [30], [20, 30, 40]),  # a damaged one is not counted
        (2, [], [10], [30, 40]),
        (1, [10], [10, 40], [10, 30, 40]),  # a damaged one is no reason to let the last good one go
        (1, [40], [40], [30, 40]),
        (1, [], [10, 20, 30, 40], [10, 20, 30, 40]),
    ],
)
def test_what_stays(
    store: CheckpointStore, keep: int | None, protect: list[int], spoilt: list[int], left: list[int]
) -> None:
    fill(store, 10, 20, 30, 40)
    for step in spoilt:
        spoil(store.folder / f"checkpoint-{step}")
    store.rotate(keep, [store.folder / f"checkpoint-{step}" for step in protect])
    assert steps(store) == left
    store.rotate(keep, [store.folder / f"checkpoint-{step}" for step in protect])
    assert steps(store) == left


def test_damage_after_it_was_verified_is_seen_by_the_rotation(store: CheckpointStore) -> None:
    paths = fill(store, 10, 20, 30)
    store.rotate(3)
    spoil(paths[2])
    store.rotate(1)
    assert steps(store) == [20, 30]


def test_none_is_kept_of_none(store: CheckpointStore) -> None:
    store.rotate(1)
    with pytest.raises(ValueError, match="at least one"):
        store.rotate(0)


def test_what_has_been_verified_is_not_read_again_at_every_save(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def record(path: Path) -> Any:
        read.append(path.name)
        return verify(path)

    monkeypatch.setattr("holdfast.training.checkpoint.verify", record)
    for step in (10, 20, 30, 40):
        fill(store, step)
        store.rotate(2)
    assert read == ["checkpoint-10", "checkpoint-20", "checkpoint-30", "checkpoint-40"]


def test_what_cannot_be_deleted_is_a_warning(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = fill(store, 10, 20)

    def refuse(path: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    store.rotate(1)
    assert "cannot be deleted: [Errno 13] Permission denied" in caplog.text
    assert store.newest() == paths[1]
    assert steps(store) == [10, 20]


# ---- what a killed process left


def test_leftovers_are_put_right(store: CheckpointStore) -> None:
    fill(store, 10, 20, 30)
    folder = store.folder
    # It gave way to a new one, which never came.
    (folder / "checkpoint-20").rename(folder / ".checkpoint-20.00000000.replaced")
    store.save(30, writer("new"))
    (folder / ".checkpoint-40.00000000.partial").mkdir()
    (folder / ".checkpoint-40.00000000.partial" / "half").write_text("half")
    (folder / ".checkpoint-5.00000000.removed").mkdir()
    (folder / ".checkpoint-6.00000000.replaced").mkdir()  # not a checkpoint at all
    (folder / ".hidden").mkdir()
    (folder / "notes.partial").write_text("the user's")
    own = store.begin(50)
    with RunLock(folder) as lock:
        store.recover(lock)
    assert names(store) == sorted(
        [".hidden", own.name, "checkpoint-10", "checkpoint-20", "checkpoint-30", "notes.partial"]
    )
    assert (folder / "checkpoint-20" / "a.json").read_text() == "20"


def test_one_that_was_replaced_stays_replaced(store: CheckpointStore) -> None:
    fill(store, 10)
    (store.folder / "checkpoint-10").rename(store.folder / ".checkpoint-10.00000000.replaced")
    store.save(10, writer("new"))
    with RunLock(store.folder) as lock:
        store.recover(lock)
    assert names(store) == ["checkpoint-10"]
    assert (store.folder / "checkpoint-10" / "a.json").read_text() == "new"


def test_leftovers_are_another_runs_unless_the_folder_is_held(store: CheckpointStore, tmp_path: Path) -> None:
    begun = store.begin(10)
    other = CheckpointStore(store.folder)
    with pytest.raises(ValueError, match="does not hold"):
        other.recover(RunLock(store.folder))
    with RunLock(tmp_path / "elsewhere") as lock, pytest.raises(ValueError, match="does not hold"):
        other.recover(lock)
    assert begun.is_dir()
    with RunLock(tmp_path) as lock:  # a lock on the run's folder holds its stages' folders
        other.recover(lock)
    assert not begun.exists()


def test_nothing_to_recover(store: CheckpointStore, tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        store.recover(lock)
    assert not store.folder.exists()


# ---- before anything is trained


def test_a_folder_that_can_be_written_to(store: CheckpointStore) -> None:
    store.preflight(1)
    assert names(store) == []


def test_not_one_checkpoint_fits(store: CheckpointStore) -> None:
    with pytest.raises(
        CheckpointError, match=r"it needs about 1,000,000,000,000,000,000 bytes, and [\d,]+ are free"
    ):
        store.preflight(10**18)
    assert names(store) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"a checkpoint cannot be written to '.*file/run': Not a directory"
    ):
        CheckpointStore(tmp_path / "file" / "run").preflight(1)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-10 cannot be written to '.*file/run': Not a directory"
    ):
        CheckpointStore(tmp_path / "file" / "run").begin(10)
