"""What a signal does to a trainer that trains, and to whatever else is under way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from holdfast.errors import Interrupted
from holdfast.training import interruption
from holdfast.training.config import SFTConfig
from holdfast.training.interruption import SIGNALS, Interruption, Stopped, Stopping
from holdfast.training.sft_trainer import SFTTrainer
from tests.training.conftest import rows


@pytest.fixture(autouse=True)
def handlers_of_before() -> Iterator[None]:
    """Each test leaves the handlers as it found them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, to be set."""
    now = [100.0]
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


# ---- Stopping


def stopped_by(work: Callable[[], object], stopping: Stopping | None = None) -> None:
    with stopping or Stopping():
        work()


@pytest.mark.parametrize("number", SIGNALS)
def test_stopping_ends_what_is_under_way(number: int) -> None:
    reached = []

    def work() -> None:
        reached.append("before")
        send(number)
        reached.append("after")

    with pytest.raises(Stopped) as stopped:
        stopped_by(work)
    assert reached == ["before"]
    assert stopped.value.number == number
    assert str(stopped.value) == signal.Signals(number).name
    assert isinstance(stopped.value, KeyboardInterrupt)


def test_what_a_finalizer_swallows_is_raised_at_the_end() -> None:
    stopping = Stopping()

    def work() -> None:
        with suppress(Stopped):
            send()
        with pytest.raises(Stopped):
            stopping.check()

    with pytest.raises(Stopped):
        stopped_by(work, stopping)


def test_one_that_fails_fails_with_its_own_error() -> None:
    def work() -> None:
        with suppress(Stopped):
            send()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        stopped_by(work)


def test_the_second_signal_is_for_who_was_there_before(clock: list[float]) -> None:
    heard: list[int] = []

    def work() -> None:
        with suppress(Stopped):
            send()
        for later, times in ((0.9, 0), (0.2, 1)):  # a burst is one request
            clock[0] += later
            send()
            assert len(heard) == times

    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(Stopped):
            stopped_by(work)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_the_process_was_told_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping():
            send(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_somebody_else_sets_stays() -> None:
    def other(number: int, frame: Any) -> None:
        """Not ours."""

    before = signal.getsignal(signal.SIGTERM)
    with Stopping():
        signal.signal(signal.SIGTERM, other)
    assert signal.getsignal(signal.SIGTERM) is other
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("watch", [Stopping, Interruption])
def test_another_thread_sets_no_handlers(watch: Callable[[], Any]) -> None:
    seen = []

    def work() -> None:
        with watch():
            seen.append({number: signal.getsignal(number) for number in SIGNALS})

    before = {number: signal.getsignal(number) for number in SIGNALS}
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_forked_worker_leaves_ctrl_c_to_its_parent(number: int, ends: bool) -> None:
    with Stopping():
        child = os.fork()
        if not child:
            send(number)
            os._exit(7)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (-number if ends else 7)


# ---- Interruption, by a trainer


class At(TrainerCallback):
    """Sends a signal to this process at an event of a step, and notes what is called."""

    def __init__(self, event: str, step: int, number: int = signal.SIGTERM) -> None:
        self.event, self.step, self.number = event, step, number
        self.ended = False
        for name in ("on_step_end", "on_epoch_end", "on_evaluate", "on_save", "on_substep_end"):
            setattr(self, name, lambda args, state, control, _name=name, **kwargs: self._at(_name, state))

    def _at(self, event: str, state: Any) -> None:
        if event == self.event and state.global_step == self.step:
            self.step = -1
            send(self.number)


def trainer(model_of: Any, tokenizer: Any, arguments: dict[str, Any], at: At, **changes: Any) -> SFTTrainer:
    """Two epochs of three steps."""
    options = {"per_device_train_batch_size": 2, "num_train_epochs": 2, **changes}
    return SFTTrainer(
        model=model_of(),
        args=SFTConfig(**(arguments | options)),
        train_dataset=rows(6),
        eval_dataset=rows(2),
        processing_class=tokenizer,
        callbacks=[at],
    )


def checkpoints(arguments: dict[str, Any]) -> set[str]:
    return {path.name for path in Path(arguments["output_dir"]).glob("*checkpoint*")}


CASES: dict[str, tuple[At, int, dict[str, Any]]] = {
    "no checkpoints asked for": (At("on_step_end", 2), 2, {}),
    "ctrl-c": (At("on_step_end", 2, signal.SIGINT), 2, {}),
    "in the middle of a step": (At("on_substep_end", 0), 1, {"gradient_accumulation_steps": 2}),
    "while a checkpoint is saved": (At("on_save", 2), 2, {"save_strategy": "steps", "save_steps": 2}),
    "while evaluated": (At("on_evaluate", 2), 2, {"eval_strategy": "steps", "eval_steps": 2}),
    "an epoch's end": (At("on_step_end", 3), 3, {}),
    "an epoch's end with an evaluation": (At("on_step_end", 3), 3, {"eval_strategy": "epoch"}),
    "saved by steps before the epoch's evaluation": (
        At("on_step_end", 3),
        3,
        {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 3},
    ),
    "while evaluated at an epoch's end": (At("on_evaluate", 3), 3, {"eval_strategy": "epoch"}),
    "the best alone": (
        At("on_step_end", 2),
        2,
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "best",
            "metric_for_best_model": "loss",
            "greater_is_better": True,  # it falls: no step after the first is the best
        },
    ),
    "weights alone otherwise": (
        At("on_step_end", 2),
        2,
        {"save_strategy": "steps", "save_steps": 1, "save_only_model": True},
    ),
    "while weights alone are saved": (
        At("on_save", 2),
        3,
        {"save_strategy": "steps", "save_steps": 1, "save_only_model": True},
    ),
    "the last step": (At("on_step_end", 6), 6, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_training_ends_with_a_checkpoint(
    case: str, model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    at, step, changes = CASES[case]
    at = At(at.event, at.step, at.number)
    own = trainer(model_of, tokenizer, arguments, at, **changes)
    strategy, path = own.args.save_strategy, Path(arguments["output_dir"]) / f"checkpoint-{step}"
    with pytest.raises(Interrupted) as stopped:
        own.train()
    assert (stopped.value.exit_code, stopped.value.checkpoint) == (128 + at.number, path)
    assert str(stopped.value) == (
        f"interrupted by {signal.Signals(at.number).name} after step {step} of {own.state.max_steps}; the checkpoint "
        f"is '{path}'; train(resume_from_checkpoint=True) goes on from it"
    )
    assert path.name in checkpoints(arguments)
    assert (path / "optimizer.safetensors").is_file()
    assert own.args.save_strategy == strategy
    assert own.args.save_only_model == changes.get("save_only_model", False)
    assert not any(isinstance(callback, Interruption) for callback in own.callback_handler.callbacks)
    evaluated = [log["step"] for log in own.state.log_history if "eval_loss" in log]
    if own.args.eval_strategy != "no":
        assert evaluated[-1] == step, "what belongs to the step comes before its checkpoint"
    assert not any("train_runtime" in log for log in own.state.log_history)


def test_a_signal_after_the_last_step_is_sent_again(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    class AtTheEnd(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            send()

    own = trainer(model_of, tokenizer, arguments, At("", 0))
    own.add_callback(AtTheEnd())
    with pytest.raises(Stopped):
        stopped_by(own.train)
    assert own.state.global_step == 6


def test_without_checkpoints_training_ends_all_the_same() -> None:
    own = Interruption(saves=False)
    args: Any = SimpleNamespace(device="cpu", save_strategy=SaveStrategy.NO)
    state: Any = SimpleNamespace(global_step=4, max_steps=9, epoch=0.5, is_world_process_zero=True)
    control: Any = SimpleNamespace(should_save=False)
    with own:
        own.on_train_begin(args, state, control)
        own.on_step_end(args, state, control)
        send(signal.SIGINT)
        with pytest.raises(Interrupted, match="after step 4 of 9; no checkpoint was written") as stopped:
            own.on_step_end(args, state, control)
        own._agreed = own.received = None  # dealt with
    assert stopped.value.checkpoint is None
    assert stopped.value.exit_code == 130


def test_what_is_said_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """By the main process, while the step may still take minutes."""
    for main in (True, False):
        own = Interruption()
        state: Any = SimpleNamespace(is_world_process_zero=main)
        with own:
            own.on_train_begin(None, state, None)  # type: ignore[arg-type]
            send()
            said = capfd.readouterr().err
            own.received = None
        expected = "\nSIGTERM: a checkpoint is written after this step; the same signal again ends at once\n"
        assert said == (expected if main else "")
