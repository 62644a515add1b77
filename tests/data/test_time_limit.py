"""Computing is ended when its time is up; waiting, and what is short, is not."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from holdfast.data.time_limit import OverTime, time_limit


def compute(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_what_computes_too_long_is_ended() -> None:
    start = time.process_time()
    with pytest.raises(OverTime), time_limit(0.1):
        compute(60)
    assert time.process_time() - start < 30


def test_what_ends_in_time_is_left_alone() -> None:
    with time_limit(5):
        compute(0.05)
    with time_limit(0.05):
        time.sleep(0.3)  # the machine is busy with something else
    compute(0.2)  # the limit is over


def test_handler_and_timer_are_given_back() -> None:
    def own(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGVTALRM, own)
    try:
        with time_limit(5):
            assert signal.getsignal(signal.SIGVTALRM) is not own
        assert signal.getsignal(signal.SIGVTALRM) is own
        assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGVTALRM, before)


def test_other_threads_have_no_limit() -> None:
    done = []

    def work() -> None:
        with time_limit(0.05):
            compute(0.2)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
