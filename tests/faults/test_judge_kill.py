"""A process that has a judge's replies paid for, and is killed: every reply is kept, and only missing ones are paid.

`HOLDFAST_KILLS` says how often it is killed (5).
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.faults.judging import judge_all, questions, score, verdicts
from tests.faults.scripted_server import Act, ScriptedServer, judge, verdict

KILLS = int(os.environ.get("HOLDFAST_KILLS", "5"))
COUNT = 60
CONCURRENCY = 4
LONGEST = 60.0  # seconds that a judging process may take


def in_a_process(work: Callable[[], object]) -> int:
    """Start `work` in a copy of this process."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def ended_by(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_while_judging(tmp_path: Path) -> None:
    draw = random.Random()  # another moment each time
    requests = questions(COUNT)
    replies = tmp_path / "replies.jsonl"
    kept: dict[object, str] = {}
    killed = 0
    with ScriptedServer(judge) as server:
        for kill in range(KILLS):
            asked = len(server.asked)
            child = in_a_process(lambda: judge_all(server.url, requests, tmp_path, concurrency=CONCURRENCY))
            target = asked + draw.randint(1, max(1, 2 * COUNT // KILLS))
            deadline = time.monotonic() + LONGEST
            while len(server.asked) < min(target, asked + COUNT - len(kept)) and time.monotonic() < deadline:
                time.sleep(0.0005)
            os.kill(child, signal.SIGKILL)
            killed += ended_by(child) == -signal.SIGKILL
            if kill == 0:  # a line that the kill has cut, which is seldom
                with replies.open("ab") as file:
                    file.write(b'{"key": [59, "v1"], "request": "12')
            now = verdicts(tmp_path)
            assert kept.items() <= now.items()
            kept = dict(now)
        judge_all(server.url, requests, tmp_path, concurrency=CONCURRENCY)
        paid = len(server.asked)
    assert killed > 0
    assert verdicts(tmp_path) == {r.key: verdict(f"answer {r.key[0]}") for r in requests}
    assert score(verdicts(tmp_path)) == score({r.key: verdict(f"answer {r.key[0]}") for r in requests})
    # Lost is at most what was under way at a kill: one call a worker.
    assert paid <= COUNT + KILLS * CONCURRENCY
    assert b'{"key": [59, "v1"], "request": "12\n' in (tmp_path / "replies.jsonl.torn").read_bytes()


def test_interrupted_while_judging(tmp_path: Path) -> None:
    """Ctrl-C: what is under way is waited for and kept, and nothing more is asked."""
    interrupted = threading.Event()
    seen, told = os.pipe()

    def script(body: Mapping[str, Any]) -> Act:
        interrupted.wait(LONGEST)
        return judge(body)

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            os.write(told, b"x")

    def work() -> None:
        logging.getLogger("holdfast.evaluation.answers.openai_backend").addHandler(Told())
        try:
            judge_all(server.url, questions(COUNT), tmp_path, concurrency=CONCURRENCY)
        except KeyboardInterrupt:
            os._exit(130)

    with ScriptedServer(script) as server:
        child = in_a_process(work)
        deadline = time.monotonic() + LONGEST
        while len(server.asked) < CONCURRENCY and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(child, signal.SIGINT)
        assert os.read(seen, 1)  # a reply before that would let it ask one more
        interrupted.set()
        assert ended_by(child) == 130
    os.close(seen)
    os.close(told)
    assert len(server.asked) == CONCURRENCY
    assert verdicts(tmp_path) == {(n, "v1"): verdict(f"answer {n}") for n in range(CONCURRENCY)}
