"""A judge's server that never ends: deadlines and sizes hold, and the other calls go on."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from holdfast.evaluation.answers.client import Deadlines, Retries
from tests.faults.judging import judge_all, questions, score, verdicts
from tests.faults.scripted_server import Act, ScriptedServer, drip, hang, judge, pour, question_of, verdict

HEAD = b"HTTP/1.1 200 said\r\n"
GIGABYTE = 1 << 30
LARGEST = 1 << 20
CHUNK = b"Transfer-Encoding: chunked\r\n\r\n"
# What it does, and what that is called.
HOSTILE: list[tuple[Act, str]] = [
    (hang, "deadline"),
    (drip(HEAD + b"Content-Length: 100000\r\n\r\n", b" ", 0.1), "deadline"),
    (drip(HEAD + b"X-Slow: ", b"x", 0.1), "deadline"),  # the headers never end
    (drip(HEAD + CHUNK, b"1\r\n \r\n", 0.1), "deadline"),
    (pour(HEAD + CHUNK + b"40000000\r\n", GIGABYTE), "too large"),
    (pour(HEAD + b"Content-Length: %d\r\n\r\n" % GIGABYTE, GIGABYTE), "too large"),
    (pour(HEAD + b"Connection: close\r\n\r\n", None), "too large"),  # an endless stream
]
SHORT = Deadlines(connect=10, read=2.0, total=3.0)


def test_deadlines_and_sizes_hold(tmp_path: Path) -> None:
    """Seven calls that never end, side by side with thirty others: those are all answered."""
    count = 37
    hostile = {f"answer {5 * n}": act for n, (act, _) in enumerate(HOSTILE)}
    with ScriptedServer(lambda body: hostile.get(question_of(body)) or judge(body)) as server:
        collected = judge_all(
            server.url,
            questions(count),
            tmp_path,
            concurrency=4,
            deadlines=SHORT,
            retries=Retries(attempts=2, first_wait=0, longest_wait=0),
            largest=LARGEST,
        )
        sent = server.sent
    expected = {(5 * n, "v1"): reason for n, (_, reason) in enumerate(HOSTILE)}
    rows = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert {tuple(row["key"]): row["reason"] for row in rows} == expected
    assert set(collected.failed) == set(expected)
    honest = {
        request.key: verdict(f"answer {request.key[0]}")
        for request in questions(count)
        if request.key not in expected
    }
    assert verdicts(tmp_path) == honest
    assert score(verdicts(tmp_path)) == score(honest)
    # What a socket's buffers hold goes out unread; of gigabytes, hardly anything does.
    assert sent < GIGABYTE // 8


def test_a_connection_that_nobody_accepts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        collected = judge_all(
            url, questions(1), tmp_path, deadlines=Deadlines(0.3, 0.3, 0.5), retries=Retries(attempts=1)
        )
    assert list(collected.failed) == [(0, "v1")]
    assert json.loads((tmp_path / "failures.jsonl").read_text())["reason"] == "deadline"
