"""SIGTERM and SIGINT at any time of a run: it ends soon, says what is there, and leaves nothing half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast.cli.main import main
from holdfast.errors import Interrupted
from holdfast.experiments import pipeline
from holdfast.models import export
from tests.faults.whole_runs import ended, forked, outcome, quick, run


def tell(number: int) -> Any:
    """A function that is called instead of another: the signal comes while it is under way."""

    def told(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(10)  # interrupted by the signal: what is under way does not get further
        pytest.fail("the signal was passed over")

    return told


# What is under way when which signal comes, what the message says of it, and what is there.
PHASES = {
    "read_run_rows": (
        signal.SIGTERM,
        "while the rows were prepared; nothing was changed; start it again",
        [],
    ),
    "prepare_stages": (
        signal.SIGINT,
        "while the rows were prepared; '{0}' holds no checkpoint yet; go on with the same command and --resume",
        ["run.json"],
    ),
    "SFTTrainer": (
        signal.SIGTERM,
        "while the model was made ready for sft; '{0}' holds no checkpoint yet; go on with",
        ["run.json"],
    ),
    "save_final": (
        signal.SIGINT,
        "while the model of sft was saved; '{0}' holds the checkpoint '{0}/sft/checkpoint-2'; go on with",
        ["metrics.jsonl", "run.json", "sft"],
    ),
    "score_pairs": (
        signal.SIGTERM,
        "while held-out pairs were scored before align; '{0}' holds the finished stage sft; go on with",
        ["align", "metrics.jsonl", "run.json", "sft"],
    ),
}


@pytest.mark.parametrize("function", PHASES)
def test_between_steps(function: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, message, there = PHASES[function]
    config = quick(place, "run", output_dir=str(tmp_path / "run"))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(pipeline, function, tell(number))
    with pytest.raises(Interrupted) as stopped:
        run(config)
    folder = tmp_path / "run"
    assert f"interrupted by {signal.Signals(number).name} {message.format(folder)}" in str(stopped.value)
    assert stopped.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (sorted(path.name for path in folder.iterdir()) if folder.exists() else []) == there


@pytest.mark.soak
def test_in_the_middle_of_saving_the_model(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are written already, under another name than the final one; a resumed run saves the model that it was."""
    config = quick(place, "run", output_dir=str(tmp_path / "run"))
    whole = outcome(run(quick(place, "run", output_dir=str(tmp_path / "whole"))))
    with monkeypatch.context() as patched:
        patched.setattr(export, "_require_same", tell(signal.SIGTERM))
        with pytest.raises(Interrupted, match="while the model of sft was saved"):
            run(config)
    folder = tmp_path / "run"
    assert (folder / "sft" / "final.partial" / "model.safetensors").is_file()
    assert not (folder / "sft" / "final").exists()
    run(config, resume=True)
    found = outcome(folder)
    assert {part: found[part] == whole[part] for part in found} == dict.fromkeys(found, True)
    assert not (folder / "sft" / "final.partial").exists()


def test_during_an_evaluation(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is finished, for it belongs to the step; then the step is saved, though no checkpoint was asked for."""
    config = quick(place, "run", output_dir=str(tmp_path / "run"), align=None)
    config["sft"] |= {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    evaluate = pipeline.SFTTrainer.prediction_step

    def told(self: Any, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(pipeline.SFTTrainer, "prediction_step", evaluate)
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *args, **options)

    monkeypatch.setattr(pipeline.SFTTrainer, "prediction_step", told)
    with pytest.raises(Interrupted, match="after step 2 of 4"):
        run(config)
    checkpoint = tmp_path / "run" / "sft" / "checkpoint-2"
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2]


def test_during_a_save(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save is finished, and is the last thing that is done."""
    config = quick(place, "run", output_dir=str(tmp_path / "run"), align=None)
    config["sft"] |= {"max_steps": 4, "save_steps": 1}
    from holdfast.training import saving

    write = saving.write_weights

    def told(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*args)

    monkeypatch.setattr(saving, "write_weights", told)
    with pytest.raises(Interrupted, match="after step 1 of 4"):
        run(config)
    assert [path.name for path in (tmp_path / "run" / "sft").glob("*checkpoint*")] == ["checkpoint-1"]


def test_a_second_signal_ends_at_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two at once are one request, as launchers pass signals on; one that comes later does not wait for the step."""
    config = quick(place, "run", output_dir=str(tmp_path / "run"), align=None)
    clock = [0.0]
    monkeypatch.setattr("holdfast.training.interruption.time.monotonic", lambda: clock[0])

    class Impatient(pipeline.MetricsFile):
        def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
            for later in (0.0, 0.1, 5.0):
                clock[0] += later
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pipeline, "MetricsFile", Impatient)
    with pytest.raises(Interrupted) as stopped:
        run(config)
    assert stopped.value.exit_code == 143
    assert "interrupted by SIGTERM in sft; " in str(stopped.value)  # not after a step
    assert not list((tmp_path / "run" / "sft").glob("*checkpoint*"))
    assert capfd.readouterr().err.count("SIGTERM: a checkpoint is written after this step") == 1


def test_a_run_in_another_thread_leaves_signals_alone(place: Path, tmp_path: Path) -> None:
    """Python takes handlers in the main thread alone."""
    config = quick(place, "run", output_dir=str(tmp_path / "run"), align=None)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            run(config)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
    assert (tmp_path / "run" / "final").is_dir()


def as_command(folder: Path, config: dict[str, Any], *options: str) -> list[str]:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return ["holdfast", "run", str(file), *options]


def wait_for_step(folder: Path, output: Path) -> None:
    """Wait until a step of the run is logged."""
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)


def test_the_command_line(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit codes and messages as a shell sees them: SIGTERM from outside, Ctrl-C, and --resume to the end."""
    folder, output = tmp_path / "run", tmp_path / "output"
    config = quick(place, "run", output_dir=str(folder), align=None)
    config["sft"] |= {"max_steps": 60, "per_device_train_batch_size": 1, "save_strategy": "no"}
    command = as_command(tmp_path, config, "--resume")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", command)
        process = forked(main, output)
        wait_for_step(folder, output)
        os.kill(process, number)
        assert ended(process) == code, output.read_text()
        said = output.read_text()
        assert f"error: sft: interrupted by {signal.Signals(number).name} after step " in said
        assert "go on with the same command and --resume" in said
        assert "Traceback" not in said
    for _ in range(2):
        assert ended(forked(main, output)) == 0, output.read_text()
    assert "finished" in json.loads((folder / "run.json").read_text())
    assert "nothing is left to do" in output.read_text()


@pytest.mark.soak
def test_a_process_of_its_own(place: Path, tmp_path: Path) -> None:
    """Once without a fork: a real interpreter, stopped while it trains."""
    folder, output = tmp_path / "run", tmp_path / "output"
    config = quick(place, "run", output_dir=str(folder), align=None)
    config["sft"] |= {"max_steps": 2000, "per_device_train_batch_size": 1, "save_strategy": "no"}
    command = as_command(tmp_path, config)
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=file, stderr=file)
    try:
        wait_for_step(folder, output)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143, output.read_text()
    finally:
        process.kill()
    assert "the checkpoint is" in output.read_text()
    assert len(list((folder / "sft").glob("checkpoint-*"))) == 1
