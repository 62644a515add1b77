"""A real process that trains and is killed: at moments of its saves, and at any time. What is then resumed unattended
is the run it would have been.

`HOLDFAST_KILLS` says how often it is killed at a random time (5), `HOLDFAST_SOAK_SEED` which moments of a save are
drawn, and `HOLDFAST_MOMENTS=all` takes every one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from holdfast.training.manifest import verify
from tests.faults.moments import Moments
from tests.faults.runs import Picture, run, trainer_of

pytestmark = pytest.mark.usefixtures("little_garbage")

KILLS = int(os.environ.get("HOLDFAST_KILLS", "5"))
SEED = int(os.environ.get("HOLDFAST_SOAK_SEED", "0"))
EVERY_MOMENT = os.environ.get("HOLDFAST_MOMENTS") == "all"
SETTINGS = {"save_steps": 2, "save_total_limit": 1}


def train(folder: Path) -> Picture:
    """What an unattended run does each time that it is started."""
    return run(trainer_of("slime", folder, lora=True, **SETTINGS), "auto")


def fine_tune(folder: Path) -> Picture:
    """Likewise, of a supervised run that trains every weight."""
    return run(trainer_of("sft", folder, lora=False, **SETTINGS), "auto")


def in_a_process(work: Callable[[], object]) -> int:
    """Start `work` in a process of its own: this one's copy, which has imported everything already."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            torch.set_num_threads(1)
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def ended_by(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Picture:
    """The run that nothing disturbs."""
    return train(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The moments that a run passes, from its start to its end."""
    folder = tmp_path_factory.mktemp("moments")

    def count() -> None:
        watched = Moments(lambda number, kind: None)
        watched.watch()
        train(folder / "run")
        passed = "\n".join(watched.passed)
        os.write(os.open(folder / "passed", os.O_WRONLY | os.O_CREAT), passed.encode())

    assert ended_by(in_a_process(count)) == 0
    return (folder / "passed").read_text().splitlines()


def train_and_be_killed(folder: Path, moment: int) -> None:
    def kill(number: int, kind: str) -> None:
        if number == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    Moments(kill).watch()
    train(folder)


def require_sound(folder: Path) -> None:
    """Every folder with a checkpoint's name is one."""
    for checkpoint in folder.glob("checkpoint-*"):
        assert verify(checkpoint) == []


def test_killed_at_moments_of_its_saves(tmp_path: Path, whole: Picture, moments: list[str]) -> None:
    """Each kind of moment once, spread over the run; each time another process goes on."""
    assert len(moments) > 150
    assert {"mkdir", "rename", "replace", "unlink", "rmdir", "before fsync", "after fsync"} <= set(moments)
    draw = random.Random(SEED)
    chosen = [
        draw.choice([at for at, passed in enumerate(moments, start=1) if passed == kind])
        for kind in sorted(set(moments))
    ]
    for moment in range(1, len(moments) + 1) if EVERY_MOMENT else chosen:
        folder = tmp_path / f"at-{moment}" / "run"
        assert ended_by(in_a_process(lambda: train_and_be_killed(folder, moment))) == -signal.SIGKILL  # noqa: B023
        require_sound(folder)
        train(folder).require_same(whole)
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_killed_at_any_time(tmp_path: Path) -> None:
    whole = fine_tune(tmp_path / "whole" / "run")
    started = time.monotonic()
    assert ended_by(in_a_process(lambda: fine_tune(tmp_path / "timed" / "run"))) == 0
    longest = time.monotonic() - started
    draw = random.Random()  # another time each time
    for kill in range(KILLS):
        folder = tmp_path / str(kill) / "run"
        child = in_a_process(lambda: fine_tune(folder))  # noqa: B023
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        assert ended_by(child) in (-signal.SIGKILL, 0)
        require_sound(folder)
        fine_tune(folder).require_same(whole)
