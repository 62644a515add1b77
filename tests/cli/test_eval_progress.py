"""How far the calls of an evaluation are."""

from __future__ import annotations

import io
import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from holdfast.cli.eval_progress import Watched, watched
from holdfast.evaluation.answers.client import CallError, ChatClient, Reply, Settings
from holdfast.evaluation.answers.generation import Fail, Keep, Request
from holdfast.evaluation.answers.openai_backend import ServerGenerator

REQUESTS = [Request((number,), [{"role": "user", "content": "?"}], Settings()) for number in range(3)]


class Terminal(io.StringIO):
    """Tells when a text has come."""

    def __init__(self, text: str, *, terminal: bool) -> None:
        super().__init__()
        self.text = text
        self.terminal = terminal
        self.came = threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        written = super().write(text)
        if re.search(self.text, self.getvalue()):
            self.came.set()
        return written


class Waits:
    """Answers the first request, fails the second, and the third waits until the progress was seen."""

    model, identity = "m", "i"

    def __init__(self, seen: threading.Event | None) -> None:
        self.seen = seen

    def answer(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        keep(requests[0], Reply("a"))
        fail(requests[1], CallError("no", "no"))
        assert self.seen is None or self.seen.wait(20)
        keep(requests[2], Reply("c"))


def answered(generator: Watched) -> list[Any]:
    """What came, in order: a reply's text, or None."""
    found: list[Any] = []
    generator.answer(REQUESTS, lambda _, reply: found.append(reply.text), lambda *_: found.append(None))
    return found


def test_elsewhere_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "judgments: 2 of 3, 1 failed, 4 calls made again\n"
    stderr = Terminal(said, terminal=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    repeated = iter([5, *[9] * 10_000])  # five of an earlier round
    generator = Watched(Waits(stderr.came), "judgments", lambda: next(repeated), told=0.01)
    assert answered(generator) == ["a", None, "c"]
    assert (generator.model, generator.identity) == ("m", "i")


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal(r"answers: +67%.*2/3.*1 failed, 0 made again", terminal=True)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert answered(watched(Waits(stderr.came), "answers")) == ["a", None, "c"]


def test_what_is_quick_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal(".", terminal=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert answered(watched(Waits(None), "answers")) == ["a", None, "c"]
    assert stderr.getvalue() == ""


def test_a_stderr_that_is_closed_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Terminal):
        def write(self, text: str) -> int:
            self.came.set()
            raise BrokenPipeError

    stderr = Closed("", terminal=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert answered(Watched(Waits(stderr.came), "answers", int, told=0.01)) == ["a", None, "c"]


def test_an_error_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        watched(Waits(None), "answers").answer(REQUESTS, full, full)
    assert not [thread for thread in threading.enumerate() if thread.name == "holdfast-progress"]


def test_a_clients_calls_are_counted() -> None:
    with ChatClient("http://localhost:1", "judge") as client:
        seen = watched(ServerGenerator(client), "judgments")
        client.repeated = 3
        assert seen._repeated() == 3
    assert watched(Waits(None), "answers")._repeated() == 0
