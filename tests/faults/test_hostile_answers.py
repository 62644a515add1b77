"""Answers that would compute for ever, take all memory, or bring the libraries down: each costs itself alone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from holdfast.evaluation.tasks import verifier
from holdfast.evaluation.tasks.verifier import ENDED, OUTCOMES, boxed_answer, check_answers

T = TypeVar("T")

SECONDS = 0.25  # of computing, for an answer; a good one takes some hundredths
MEMORY = 1 << 30

HOSTILE = {
    "a tower": "9^{9^{9^{9}}}",
    "a tower in Python's own words": "9**9**9**9",
    "a power": "7^{7^{7^{7}}} + 1",
    "a factorial": "(10^{9})!",
    "factorials of factorials": "((9!)!)!",
    "a nest of braces": "{" * 300 + "1" + "}" * 300,
    "a nest of brackets": "(" * 900 + "1" + ")" * 900,
    "a nest of roots": r"\sqrt{" * 200 + "2" + "}" * 200,
    "a continued fraction": r"\frac{1}{1+" * 150 + "1" + "}" * 150,
    "a number without end": "7" * 1900,
    "signs": "+-" * 900 + "1",
    "a sum without end": r"\sum_{k=1}^{10^{9}} \frac{1}{k^{k}}",
    "a product": r"\prod_{k=1}^{10^{9}} k",
    "a series of variables": "*".join(f"(x+{number})" for number in range(150)),
    "an integral": r"\int_0^1 e^{e^{e^{x^{x}}}} dx",
    "a limit": r"\lim_{x \to 0} \sin(\frac{1}{x})^{x^{x}}",
    "a binomial": r"\binom{10^{9}}{5 \cdot 10^{8}}",
    "not LaTeX": r"\frac{\frac{\frac",
    "code": "__import__('os').system('touch pwned')",
    "code as text": r"\text{__import__('os').abort()}",
    "control characters": "\x00\x1b[2J\x07",
    "a lone surrogate": "\ud800",
    "dollars": "$" * 500,
    "a power of a power": "10^{10^{10}}",
    "a shift": "2^{2^{40}}",
    "commas": "," * 900,
    "backslashes": "\\" * 901,
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of every hostile answer, each between two good ones; one check, as an evaluation makes it.

    The good ones stay right, this process grows by nothing, no file is made.
    """
    folder = tmp_path_factory.mktemp("hostile")
    before, size = Path.cwd(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.chdir(folder)
    try:
        pairs = [pair for answer in HOSTILE.values() for pair in [("2", "2"), ("17", answer)]]
        found = check_answers([*pairs, ("2", "2")], seconds=SECONDS, memory=MEMORY)
    finally:
        os.chdir(before)
    assert list(folder.iterdir()) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size < 100_000  # kilobytes
    assert set(found[::2]) == {"right"}
    return dict(zip(HOSTILE, found[1::2], strict=True))


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_answer_is_never_right_and_has_an_outcome(outcomes: dict[str, str], name: str):
    assert outcomes[name] in OUTCOMES
    assert outcomes[name] != "right"


@pytest.mark.parametrize("name", ["a tower", "a power", "a factorial"])
def test_what_computes_without_end_is_ended(outcomes: dict[str, str], name: str):
    assert outcomes[name] in ENDED


def test_the_process_is_told_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "verifier_process.py"
    program.write_text(
        "import os, sys\nprint('wrong' if 'JUDGE_KEY' in os.environ else 'right')\n", encoding="utf-8"
    )
    monkeypatch.setattr(verifier, "PROGRAM", program)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    assert check_answers([("1", "1")]) == ["right"]


def test_a_module_in_the_current_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "math_verify.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    (tmp_path / "statistics.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert check_answers([("1", "1")]) == ["right"]


@pytest.mark.parametrize("number", [1, 1000])
def test_boxes_in_boxes_take_linear_time(number: int):
    nest = r"\boxed{" * number * 100 + "1" + "}" * number * 100
    assert boxed_answer(nest) == "1"
    assert boxed_answer(r"\boxed{" + "{" * number * 1000) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found by /proc")
def test_an_answer_under_way_ends_when_everything_above_it_is_killed(tmp_path: Path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('["17", "9^{9^{9^{9}}}"]\n', encoding="utf-8")
    with asked.open(encoding="utf-8") as lines:
        process = subprocess.Popen(
            [sys.executable, "-P", str(verifier.PROGRAM), str(SECONDS), str(MEMORY)], stdin=lines
        )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    child = _until(lambda: children.read_text().split(), seconds=60)[0]
    process.kill()
    process.wait()
    _until(lambda: not _lives(child), seconds=60)


def _lives(process: str) -> bool:
    """Whether a process computes still; one that nobody has asked for its end is over, too."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(found: Callable[[], T], seconds: float) -> T:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value
