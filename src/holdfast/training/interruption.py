"""Signals that ask a run to end: SIGTERM (of a scheduler, a launcher) and SIGINT (Ctrl-C).

`Interruption`, while a trainer trains: the step in hand is finished and saved, then the run ends.
`Stopping`, around everything else: what is under way ends where it stands.

A second signal ends at once: whatever handled signals before gets it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from holdfast.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which signals are one request: a launcher passes on what its terminal or scheduler has sent to every
# process already.
BURST = 1.0


class Stopped(KeyboardInterrupt):
    """A signal ends what is under way. No `Exception`, so that nothing on the way takes it for a fault to mend."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class SignalWatch:
    """Handles `SIGNALS` while it is entered; the handlers of before are put back.

    Outside the main thread, where Python allows no handlers, it does nothing; a signal that the process was told to
    ignore (`nohup`) stays ignored.

    Attributes:
        received: the first signal's number.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._process = 0

    def __enter__(self) -> Self:
        self.received = None
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: a handler that Python cannot put back
                    self._before[number] = before
                    signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def first(self, number: int) -> None:
        """What the first signal does."""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker inherits the handler. Whether to go on is its parent's to say; being told to end is not.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
            self.first(number)
        elif now - self._since >= BURST:
            self._put_back()
            signal.raise_signal(number)

    def _put_back(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, before)
        self._before = {}


class Stopping(SignalWatch):
    """The first signal raises `Stopped` in the main thread, wherever that is."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()
        if error is None:
            self.check()

    def first(self, number: int) -> None:
        """End what is under way."""
        raise Stopped(number)

    def check(self) -> None:
        """Raise `Stopped` again: what Python raises inside a finalizer is lost.

        Raises:
            Stopped: a signal has come.
        """
        if self.received is not None:
            raise Stopped(self.received)


class Interruption(SignalWatch, TrainerCallback):
    """The first signal asks for a checkpoint after the step in hand, and then for the end of training.

    All processes agree, whichever of them were told: at the end of each step, and after each save and evaluation. What
    is being saved or evaluated is finished. `Interrupted` is raised from `on_save`, when the checkpoint is there; the
    closing of training, which would log and load the best model, is left out.

        with Interruption() as interruption:
            trainer.add_callback(interruption)  # the last one: those before it see the save too
            try:
                ...  # train
            finally:
                trainer.remove_callback(interruption)

    A signal that comes when the last step is done is sent again on leaving.

    Args:
        saves: whether checkpoints can be written; where not, training ends without one.
    """

    def __init__(self, saves: bool = True) -> None:
        super().__init__()
        self._saves = saves
        self._agreed: int | None = None
        self._speaks = False
        self._changed: list[tuple[TrainingArguments, str, Any]] = []

    def __enter__(self) -> Self:
        self._agreed = None
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._changed:
            setattr(*self._changed.pop())
        watched = bool(self._before)
        super().__exit__(kind, error, trace)
        number = self._agreed or self.received
        if error is None and number is not None and watched:
            signal.raise_signal(number)

    def first(self, number: int) -> None:
        """Say at once what will happen: a step can take minutes."""
        if self._speaks:
            then = (
                "a checkpoint is written after this step" if self._saves else "training ends after this step"
            )
            name = signal.Signals(number).name
            # not `print`: the signal may have come in the middle of one
            os.write(2, f"\n{name}: {then}; the same signal again ends at once\n".encode())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One process speaks for all."""
        self._speaks = state.is_world_process_zero

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for the checkpoint.

        Raises:
            Interrupted: where none can be written.
        """
        if not self._asked(args):
            return
        if not self._saves:
            raise self._interrupted(state, None)
        self._ask_to_save(args, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save after an evaluation in which the signal came: it belongs to the step in hand."""
        if self._asked(args) and self._saves and state.global_step > 0:
            self._ask_to_save(args, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End: the checkpoint is there. One of weights alone that was under way is not the last.

        Raises:
            Interrupted: with its path.
        """
        if self._asked(args) and not args.save_only_model:
            raise self._interrupted(state, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Agree once more: what comes after training ends in all processes or in none."""
        self._asked(args)

    def _asked(self, args: TrainingArguments) -> bool:
        """Whether any process was told to end. All of them must call this at the same moment."""
        if self._agreed is None:
            number = self.received or 0
            if distributed.is_available() and distributed.is_initialized():
                told = torch.tensor(number, device=args.device)
                distributed.all_reduce(told, distributed.ReduceOp.MAX)
                number = int(told)
            self._agreed = number or None
        return self._agreed is not None

    def _ask_to_save(self, args: TrainingArguments, control: TrainerControl) -> None:
        control.should_save = True
        if args.save_strategy == SaveStrategy.BEST:
            # The Trainer would ask the metric whether to save. It treats the two alike otherwise.
            self._set(args, "save_strategy", SaveStrategy.STEPS)
        self._set(args, "save_only_model", False)  # a run cannot go on from weights alone

    def _set(self, args: TrainingArguments, name: str, value: Any) -> None:
        """Change a setting until the end."""
        self._changed.append((args, name, getattr(args, name)))
        setattr(args, name, value)

    def _interrupted(self, state: TrainerState, checkpoint: Path | None) -> Interrupted:
        assert self._agreed is not None
        name = signal.Signals(self._agreed).name
        what = f"interrupted by {name} after step {state.global_step} of {state.max_steps}"
        if checkpoint is None:
            return Interrupted(what, "no checkpoint was written", number=self._agreed)
        return Interrupted(
            f"{what}; the checkpoint is '{checkpoint}'",
            "train(resume_from_checkpoint=True) goes on from it",
            number=self._agreed,
            checkpoint=checkpoint,
        )
