"""A run that is stopped or killed at any time and resumed is, bit for bit, the run that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import Interrupted
from holdfast.experiments import pipeline
from tests.faults.whole_runs import ended, forked, outcome, require_same, run, settings

KILLS = int(os.environ.get("HOLDFAST_KILLS", "4"))
SEED = int(os.environ.get("HOLDFAST_SOAK_SEED", "0"))


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    """What a run that nothing stops comes to, and how long it takes."""
    began = time.monotonic()
    folder = run(settings(place, "whole"))
    return outcome(folder) | {"seconds": time.monotonic() - began}


def signal_at(steps: dict[str, int], number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal when a stage's step is done."""

    class Sender(pipeline.MetricsFile):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if steps.get(self.stage) == state.global_step:
                del steps[self.stage]
                os.kill(os.getpid(), number)

    monkeypatch.setattr(pipeline, "MetricsFile", Sender)


def test_stopped_in_both_stages(
    place: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config, folder, scored = settings(place, "stopped"), place / "stopped", []
    score = pipeline.score_pairs

    def watched(trainer: Any, dataset: Any, description: str) -> Any:
        scored.append(description)
        return score(trainer, dataset, description)

    monkeypatch.setattr(pipeline, "score_pairs", watched)
    # sft: at an epoch's end, which brings an evaluation; align: in the middle of an epoch
    for number, name, steps, code in (
        (signal.SIGTERM, "SIGTERM", {"sft": 3}, 143),
        (signal.SIGINT, "SIGINT", {"align": 1}, 130),
    ):
        (stage, step), resume = *steps.items(), (folder / "run.json").exists()
        before = signal.getsignal(number)
        signal_at(steps, number, monkeypatch)
        with pytest.raises(Interrupted) as stopped:
            run(config, resume=resume)
        assert stopped.value.exit_code == code
        assert stopped.value.checkpoint == folder / stage / f"checkpoint-{step}"
        assert str(stopped.value) == (
            f"{stage}: interrupted by {name} after step {step} of 6; the checkpoint is "
            f"'{stopped.value.checkpoint}'; go on with the same command and --resume"
        )
        assert stopped.value.checkpoint.is_dir()
        assert signal.getsignal(number) == before
        assert not (folder / "run.lock").exists()
        assert f"{name}: a checkpoint is written after this step" in capfd.readouterr().err
    run(config, resume=True)
    require_same(folder, whole)
    assert scored == ["held-out pairs before", "held-out pairs after"], "what was measured is kept"


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def saved(record: dict[str, Any], stage: str) -> bool:
    return "saved" in record["stages"].get(stage, {})


# Moments around the writing of run.json: (before or after it, what it is about to say, or has just said).
MOMENTS: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
    ("before", lambda record: True),  # the folder is there, and nothing in it
    ("before", lambda record: "sft" in record["stages"]),  # trained and measured
    ("before", lambda record: saved(record, "sft")),  # the model has its name already
    ("before", lambda record: "held_out_before" in record),  # the scores have theirs
    ("after", lambda record: "held_out_before" in record),  # and nothing is trained yet
    ("before", lambda record: saved(record, "align")),
    ("before", lambda record: "finished" in record),
]


def test_killed_around_each_change_of_the_record(
    place: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, killed at one moment after the other: each start goes on from what the one before has left."""
    folder, output = place / "moments", place / "moments.log"
    write = pipeline.write_record

    def watched(when: str, what: Callable[[dict[str, Any]], bool]) -> Callable[[dict[str, Any], Path], None]:
        def write_or_die(record: dict[str, Any], path: Path) -> None:
            if when == "before" and what(record):
                kill()
            write(record, path)
            if what(record):
                kill()

        return write_or_die

    for when, what in MOMENTS:
        monkeypatch.setattr(pipeline, "write_record", watched(when, what))
        process = forked(lambda: run(settings(place, "moments"), resume=True), output)
        assert ended(process) == -signal.SIGKILL, output.read_text()
    monkeypatch.setattr(pipeline, "write_record", write)
    run(settings(place, "moments"), resume=True)
    require_same(folder, whole)


def test_killed_when_steps_are_logged_and_none_is_saved(
    place: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each stage, which then begins anew: its lines in metrics.jsonl too."""
    folder, output = place / "unsaved", place / "unsaved.log"

    class Kill(pipeline.MetricsFile):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2 and self.stage == stage:
                kill()

    for stage in ("sft", "align"):
        with monkeypatch.context() as patched:
            patched.setattr(pipeline, "MetricsFile", Kill)
            process = forked(lambda: run(settings(place, "unsaved"), resume=True), output)
            assert ended(process) == -signal.SIGKILL, output.read_text()
        assert f'{{"stage": "{stage}", "step": 1,' in (folder / "metrics.jsonl").read_text()
        assert not list((folder / stage).glob("checkpoint-*"))
    run(settings(place, "unsaved"), resume=True)
    require_same(folder, whole)


@pytest.mark.soak
def test_killed_at_random_times(place: Path, whole: dict[str, Any]) -> None:
    folder, output = place / "random", place / "random.log"
    rng = random.Random(SEED)
    for _ in range(KILLS):
        process = forked(lambda: run(settings(place, "random"), resume=True), output)
        time.sleep(rng.uniform(0, whole["seconds"]))
        os.kill(process, signal.SIGKILL)
        if ended(process) == 0:  # it was faster
            break
    run(settings(place, "random"), resume=True)
    require_same(folder, whole)
