"""Standard output whose reader has left."""

from __future__ import annotations

import io
import os
import sys

import pytest
from rich.text import Text

from holdfast.cli.printing import drawn, say


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo")
    assert capsys.readouterr().out == "one\ntwo\n"
    assert drawn(lambda console: console.print(Text("[bold]as it is[/bold]"))) == "[bold]as it is[/bold]"


def test_a_reader_that_left_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with io.TextIOWrapper(os.fdopen(writing, "wb"), encoding="utf-8") as piped:
        monkeypatch.setattr(sys, "stdout", piped)
        say("x" * 200_000)
        print("what else there is to say", flush=True)  # as Python does when it ends
