"""What the system does to a comparison that goes wrong in each way."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest

from holdfast.evaluation.tasks import verifier_process
from holdfast.evaluation.tasks.verifier import OUTCOMES

ROOM = 1 << 50  # bytes: more than this process has, which is forked here


def loop() -> str:
    while True:
        pass


def recurse() -> str:
    return recurse()


def signalled(number: int) -> Callable[[], str]:
    def kill() -> str:
        os.kill(os.getpid(), number)
        return loop()

    return kill


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (lambda: "right", "right"),
        (lambda: "wrong", "wrong"),
        (lambda: "unreadable", "unreadable"),
        (loop, "over_time"),
        (lambda: str(bytearray(1 << 60)), "over_memory"),
        (recurse, "unreadable"),
        (lambda: sys.exit("right"), "unreadable"),
        (lambda: os._exit(0), "crashed"),
        (signalled(signal.SIGSYS), "crashed"),
        (signalled(signal.SIGKILL), "crashed"),
    ],
)
def test_every_end_has_its_outcome(monkeypatch: pytest.MonkeyPatch, work: Callable[[], str], outcome: str):
    monkeypatch.setattr(verifier_process, "compare", lambda reference, answer: work())
    assert verifier_process.outcome_of("1", "1", 1.0, ROOM) == outcome


def test_memory_is_refused_beyond_the_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verifier_process, "compare", lambda reference, answer: str(len(bytearray(1 << 30))))
    assert verifier_process.outcome_of("1", "1", 5.0, 1 << 28) == "over_memory"


def test_a_limit_holds_where_the_process_above_ignores_its_signal(monkeypatch: pytest.MonkeyPatch):
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    try:
        monkeypatch.setattr(verifier_process, "compare", lambda reference, answer: loop())
        assert verifier_process.outcome_of("1", "1", 0.2, ROOM) == "over_time"
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
        signal.signal(signal.SIGPROF, before)


def test_without_limits_nothing_is_checked(monkeypatch: pytest.MonkeyPatch):
    def refuse(seconds: float, memory: int) -> None:
        raise OSError("not here")

    monkeypatch.setattr(verifier_process, "_limit", refuse)
    with pytest.raises(SystemExit, match="does not let a process limit"):
        verifier_process.outcome_of("1", "1", 1.0, ROOM)


def test_the_outcomes_are_the_verifier_s():
    assert {*verifier_process.OUTCOMES.values(), "over_time", "crashed"} == set(OUTCOMES)
