"""A judge's server that fails in every way: only replies are stored, and the score is a faultless server's."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import HoldfastError
from holdfast.evaluation.answers.client import Retries
from tests.faults.judging import judge_all, questions, score, verdicts
from tests.faults.scripted_server import (
    Act,
    ScriptedServer,
    completion,
    cut,
    judge,
    question_of,
    reset,
    send,
    verdict,
)

WHOLE = completion("[[10]] is no verdict of this judge")
# What passes when it is asked again. Each has a text in it that would change the score if it were taken.
PASSING: dict[str, Act] = {
    "429": send(WHOLE, 429),
    "429 with seconds": send(b"[[10]]", 429, Retry_After="0"),
    "429 with a date": send(b"[[10]]", 429, Retry_After=formatdate(0, usegmt=True)),
    "408": send(b"", 408),
    "500": send(b'{"error": {"message": "[[10]]"}}', 500),
    "502 with HTML": send(b"<html><h1>502 [[10]]</h1></html>", 502, Content_Type="text/html"),
    "reset": reset,
    "empty body": send(b""),
    "error object with 200": send(b'{"error": {"message": "[[10]] overloaded", "code": 529}}'),
    "error text with 200": send(b'{"error": "[[10]]"}'),
    "HTML with 200": send(b"<html>[[10]]</html>"),
    "invalid JSON": send(WHOLE + b"}"),
    "half of the JSON": send(WHOLE[:-30]),
    "not an object": send(b'"[[10]]"'),
    "nested without end": send(b"[" * 100_000),
    "no choices": send(b'{"choices": [], "text": "[[10]]"}'),
    "null content": send(completion(None, reasoning="[[10]]")),
    "a number as content": send(completion(10)),  # type: ignore[arg-type]
    "half a character": send(completion("[[10]] \ud83d")),
    "cut": cut(WHOLE),
    "no HTTP": lambda handler: handler.wfile.write(b"[[10]]\r\n\r\n") and None,
}
# What asking again does not mend.
LASTING: dict[str, Act] = {
    "400": send(b'{"error": {"message": "no such parameter"}}', 400),
    "404": send(WHOLE, 404),
    "redirect": send(WHOLE, 307, Location="http://127.0.0.1:9/elsewhere"),
    "error object of a refused request": send(b'{"error": {"message": "[[10]]", "code": 400}}'),
    "refusal": send(completion(None, refusal="I do not judge [[10]]")),
    "packed": send(WHOLE, Content_Encoding="gzip"),
    "wait for an hour": send(b"", 429, Retry_After="3600"),
}


class Failing:
    """A script by which every question meets a fault of its own first, `times` times, and then its verdict."""

    def __init__(self, faults: Mapping[str, Act], times: int = 1) -> None:
        self._faults = list(faults.values())
        self._times = times
        self._seen: Counter[str] = Counter()
        self._guard = threading.Lock()

    def __call__(self, body: Mapping[str, Any]) -> Act:
        question = question_of(body)
        with self._guard:
            self._seen[question] += 1
            seen = self._seen[question]
        if seen > self._times:
            return judge(body)
        return self._faults[int(question.split()[-1]) % len(self._faults)]


def faultless(count: int) -> dict[Any, str]:
    return {request.key: verdict(f"answer {request.key[0]}") for request in questions(count)}


def test_faults_that_pass_leave_no_trace(tmp_path: Path) -> None:
    count = 2 * len(PASSING)
    with ScriptedServer(Failing(PASSING, times=2)) as server:
        collected = judge_all(server.url, questions(count), tmp_path)
    assert collected.kept == count
    assert collected.failed == {}
    assert verdicts(tmp_path) == faultless(count)
    assert score(verdicts(tmp_path)) == score(faultless(count))
    assert len(server.asked) == 3 * count
    assert not (tmp_path / "failures.jsonl").exists()


def test_faults_that_last_are_asked_once_and_set_aside(tmp_path: Path) -> None:
    """And are asked again by the next run, which pays for nothing else."""
    count = 2 * len(LASTING)
    with ScriptedServer(
        lambda body: Failing(LASTING)(body) if int(question_of(body)[7:]) % 2 else judge(body)
    ) as bad:
        collected = judge_all(bad.url, questions(count), tmp_path)
    odd = {(number, "v1") for number in range(1, count, 2)}
    assert set(collected.failed) == odd
    assert len(bad.asked) == count
    assert verdicts(tmp_path).keys() == faultless(count).keys() - odd
    rows = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert {tuple(row["key"]) for row in rows} == odd
    assert all(row["reason"] and row["detail"] for row in rows)
    assert "[[10]]" not in (tmp_path / "replies.jsonl").read_text()

    with ScriptedServer(judge) as good:
        again = judge_all(good.url, questions(count), tmp_path)
    assert (again.found, again.kept, again.failed) == (count - len(odd), len(odd), {})
    assert len(good.asked) == len(odd)
    assert verdicts(tmp_path) == faultless(count)


def test_every_lasting_fault_names_itself(tmp_path: Path) -> None:
    with ScriptedServer(Failing(LASTING)) as server:
        collected = judge_all(server.url, questions(len(LASTING)), tmp_path)
    said = {name: collected.failed[number, "v1"] for number, name in enumerate(LASTING)}
    assert "no such parameter" in said["400"]
    assert "status 404" in said["404"]
    assert "elsewhere" in said["redirect"]
    assert "refuses" in said["refusal"]
    assert "packed" in said["packed"]
    assert "3600 seconds" in said["wait for an hour"]


def test_attempts_are_bounded(tmp_path: Path) -> None:
    with ScriptedServer(lambda body: send(b"down", 503)) as server:
        collected = judge_all(
            server.url, questions(3), tmp_path, retries=Retries(attempts=4, first_wait=0, longest_wait=0)
        )
    assert len(server.asked) == 12
    assert set(collected.failed) == {(0, "v1"), (1, "v1"), (2, "v1")}
    assert "(tried 4 times)" in collected.failed[0, "v1"]
    assert verdicts(tmp_path) == {}


def test_a_server_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    with ScriptedServer(judge) as gone:
        pass
    retries = Retries(attempts=2, first_wait=0, longest_wait=0)
    with pytest.raises(HoldfastError, match="5 requests in a row failed.*connection failed"):
        judge_all(gone.url, questions(100), tmp_path, retries=retries, give_up_after=5, concurrency=1)
    assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == 5


def test_no_more_calls_at_once_than_allowed(tmp_path: Path) -> None:
    with ScriptedServer(judge) as server:
        judge_all(server.url, questions(40), tmp_path, concurrency=3)
    assert server.most_at_once <= 3
    assert verdicts(tmp_path) == faultless(40)


@pytest.mark.parametrize("concurrency", [1, 32])
def test_workers_order_and_what_is_there_already_change_nothing(tmp_path: Path, concurrency: int) -> None:
    requests = questions(60)
    shuffled = [requests[(7 * n) % 60] for n in range(60)]
    with ScriptedServer(Failing(PASSING)) as server:
        judge_all(server.url, requests[:25], tmp_path, concurrency=4)
        paid = len(server.asked)
        collected = judge_all(server.url, shuffled, tmp_path, concurrency=concurrency)
        assert (collected.found, collected.kept) == (25, 35)
        assert len(server.asked) - paid == 70  # each once failed, once answered
        whole = len(server.asked)
        assert judge_all(server.url, requests, tmp_path, concurrency=concurrency).found == 60
        assert len(server.asked) == whole
    assert verdicts(tmp_path) == faultless(60)
