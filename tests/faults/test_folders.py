"""The run's folder: one run at a time, none lost, and named before anything is prepared where it cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.errors import CheckpointError, ConfigError, FolderInUse, Interrupted
from holdfast.experiments import pipeline, run_folder
from holdfast.training.run_lock import LOCK, RunLock
from tests.faults.whole_runs import ended, forked, quick, run


@pytest.fixture(scope="module")
def unfinished(place: Path) -> Path:
    """The folder of a run that was stopped in align."""
    config = quick(place, "unfinished")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "score_pairs", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(config)
    return place / "unfinished"


@pytest.fixture(scope="module")
def finished(unfinished: Path) -> Path:
    """A copy of it, finished."""
    folder = unfinished.with_name("finished")
    shutil.copytree(unfinished, folder)
    run(quick(unfinished.parent, folder.name), resume=True)
    return folder


@pytest.fixture
def no_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "read_run_rows", lambda *args: pytest.fail("rows were read"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("no_rows_are_read")
def test_a_run_that_is_there_is_refused(place: Path, unfinished: Path, finished: Path) -> None:
    for folder, words in (
        (unfinished, "holds a run that is not finished: go on with it with --resume"),
        (finished, "holds a finished run (with --resume there is nothing left to do)"),
    ):
        before = everything(folder)
        with pytest.raises(ConfigError) as refused:
            run(quick(place, folder.name))
        assert words in str(refused.value)
        assert str(refused.value).endswith(
            "choose another output_dir, or move what is there aside with --overwrite"
        )
        assert everything(folder) == before


@pytest.mark.usefixtures("no_rows_are_read")
def test_resume_and_overwrite_exclude_each_other(place: Path) -> None:
    with pytest.raises(ConfigError, match="give one of the two"):
        run(quick(place, "either"), resume=True, overwrite=True)
    assert not (place / "either").exists()


def test_overwrite_moves_aside(place: Path, unfinished: Path) -> None:
    folder = unfinished.with_name("overwritten")
    shutil.copytree(unfinished, folder)
    before, said = everything(folder), []
    run(quick(place, folder.name), overwrite=True, say=said.append)
    aside = folder.with_name("overwritten.before-1")
    assert f"moved the run that was there to {aside}" in said
    assert everything(aside) == before
    assert "finished" in json.loads((folder / "run.json").read_text())
    assert "resumed" not in json.loads((folder / "run.json").read_text())


def test_nothing_is_moved_for_a_run_that_is_refused_later(place: Path, unfinished: Path) -> None:
    config, before = quick(place, unfinished.name), everything(unfinished)
    config["data"] |= {"max_length": 16, "on_overflow": "error"}
    with pytest.raises(Exception, match="over_length|longer|max_length"):
        run(config, overwrite=True)
    assert everything(unfinished) == before


def test_a_finished_run_is_resumed_by_saying_so(place: Path, finished: Path) -> None:
    before, said = everything(finished), []
    run(quick(place, finished.name), resume=True, say=said.append)
    assert said == [f"'{finished}' holds this run, finished ({_finished(finished)}): nothing is left to do"]
    assert everything(finished) == before


def _finished(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["finished"])


def test_with_nothing_to_resume_a_run_begins(place: Path) -> None:
    said: list[str] = []
    folder = run(quick(place, "new", align=None), resume=True, say=said.append)
    assert said[0] == f"'{folder}' holds no run to go on with: a new one begins"
    assert _finished(folder)


class Damage(NamedTuple):
    """What is wrong with a folder that is to be resumed, and what is said of it."""

    file: str
    content: str | None
    message: str


@pytest.mark.parametrize(
    "damage",
    [
        Damage("run.json", "{", "run.json' cannot be read"),
        Damage("run.json", "[]", "run.json' is not the record of a run"),
        Damage("run.json", None, "holds metrics.jsonl, sft, align, but no run.json"),
        Damage("sft/final/config.json", "{}", "sft/final' is not what the run saved when sft was finished"),
        Damage("sft/final", None, "sft is finished, but its model '{}/sft/final' is gone"),
    ],
    ids=lambda damage: f"{damage.file} {damage.content}",
)
@pytest.mark.usefixtures("no_rows_are_read")
def test_what_is_damaged_is_named(damage: Damage, place: Path, unfinished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unfinished, folder)
    path = folder / damage.file
    if damage.content is not None:
        path.write_text(damage.content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        run(quick(place, "", output_dir=str(folder)), resume=True)
    assert damage.message.format(folder) in str(refused.value)


@pytest.fixture
def busy(place: Path, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder that another process holds, and the process."""
    folder = tmp_path / "busy"

    def hold() -> None:
        RunLock(folder).acquire()
        (folder / "ready").touch()
        time.sleep(600)

    process = forked(hold, tmp_path / "output")
    while not (folder / "ready").exists():
        time.sleep(0.01)
    yield folder, process
    os.kill(process, signal.SIGKILL)
    ended(process)


@pytest.mark.usefixtures("no_rows_are_read")
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_the_second_run_in_a_folder_names_the_first(
    options: dict[str, bool], busy: tuple[Path, int], place: Path
) -> None:
    folder, process = busy
    with pytest.raises(FolderInUse, match=f"in use by process {process} on host"):
        run(quick(place, "", output_dir=str(folder)), **options)
    assert sorted(path.name for path in folder.iterdir()) == ["ready", LOCK]


def test_a_dead_holder_is_none(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def die() -> None:
        RunLock(folder).acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(die, tmp_path / "output")) == -signal.SIGKILL
    assert (folder / LOCK).exists()
    run(quick(place, "", output_dir=str(folder), align=None))
    assert _finished(folder)
    assert not (folder / LOCK).exists()


@pytest.mark.usefixtures("no_rows_are_read")
def test_a_folder_that_cannot_be_made(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/run.*choose another output folder"):
        run(quick(place, "", output_dir=str(tmp_path / "file" / "run")))


@pytest.mark.usefixtures("no_rows_are_read")
def test_a_disk_that_is_too_small(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model: 35,040 weights, every one trained, four bytes each and eight of moments; two models."""
    usage = shutil.disk_usage(tmp_path)
    free = 35_040 * (12 + 2 * 4) - 1
    monkeypatch.setattr("holdfast.experiments.disk.shutil.disk_usage", lambda path: usage._replace(free=free))
    folder = tmp_path / "run"
    with pytest.raises(CheckpointError) as refused:
        run(quick(place, "", output_dir=str(folder)))
    for words in ("(about 420,480 bytes)", "(about 140,160)", "need 700,800 bytes, and 700,799 are free"):
        assert words in str(refused.value)
    assert not folder.exists()


def test_what_was_made_for_nothing_is_removed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pipeline, "read_run_rows", lambda *args: (_ for _ in ()).throw(ConfigError("no rows"))
    )
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match="no rows"):
        run(quick(place, "", output_dir=str(folder)))
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(ConfigError, match="no rows"):
        run(quick(place, "", output_dir=str(folder)))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_what_a_run_makes_is_known(finished: Path) -> None:
    """Nothing that would be lost goes unnoticed."""
    made = {path.name for path in finished.iterdir()}
    assert made - {*run_folder.OF_A_RUN} <= {run_folder.SCORES, run_folder.QUARANTINE}
