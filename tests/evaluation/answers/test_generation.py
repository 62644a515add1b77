"""Requests answered once each: what is kept, what fails, and what a second run asks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.errors import ConfigError, DataError, HoldfastError
from holdfast.evaluation.answers.client import Reply, Settings, Usage
from holdfast.evaluation.answers.generation import (
    Collected,
    Request,
    collect,
    open_replies,
    reply_of,
    reply_row,
    request_digest,
)
from holdfast.evaluation.answers.journal import Journal, by
from tests.evaluation.scripted import Script, Scripted

SETTINGS = Settings(max_tokens=8)


def requests(count: int) -> list[Request]:
    return [Request((n, "v1"), [{"role": "user", "content": str(n)}], SETTINGS) for n in range(count)]


def gather(folder: Path, script: Script, asked: list[Request], **options: int) -> Collected:
    with open_replies(folder / "replies.jsonl") as replies:
        return collect(Scripted(script), asked, replies, folder / "failures.jsonl", **options)


def echo(request: Request) -> str:
    return f"said {request.messages[0]['content']}"


def test_replies_are_rows_and_come_back(tmp_path: Path) -> None:
    assert gather(tmp_path, echo, requests(2)) == Collected(found=0, kept=2, failed={})
    rows = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "key": [1, "v1"],
        "request": request_digest("scripted", requests(2)[1]),
        "text": "said 1",
        "model": "scripted",
        "usage": None,
        "finish_reason": "stop",
    }
    whole = Reply("so", "judge", Usage(3, 4), "length")
    assert reply_of(json.loads(json.dumps(reply_row(requests(1)[0], whole, "0")))) == whole


def test_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    first = gather(tmp_path, lambda r: None if r.key[0] in (1, 3) else echo(r), requests(5))
    assert (first.found, first.kept) == (0, 3)
    assert first.failed == {(1, "v1"): "the request was refused", (3, "v1"): "the request was refused"}
    asked: list[object] = []

    def script(request: Request) -> str:
        asked.append(request.key)
        return echo(request)

    assert gather(tmp_path, script, requests(6)) == Collected(found=3, kept=3, failed={})
    assert asked == [(1, "v1"), (3, "v1"), (5, "v1")]
    assert gather(tmp_path, script, requests(6)) == Collected(found=6, kept=0, failed={})


def test_failures_are_numbered_over_runs(tmp_path: Path) -> None:
    for _ in range(2):
        gather(tmp_path, lambda r: None, requests(2))
    rows = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(row["number"], row["key"], row["reason"]) for row in rows] == [
        (1, [0, "v1"], "refused"),
        (2, [1, "v1"], "refused"),
        (3, [0, "v1"], "refused"),
        (4, [1, "v1"], "refused"),
    ]


@pytest.mark.parametrize("change", ["model", "messages", "settings"])
def test_another_request_of_a_known_key_is_refused(tmp_path: Path, change: str) -> None:
    gather(tmp_path, echo, requests(1))
    request = requests(1)[0]
    if change == "messages":
        request = replace(request, messages=[{"role": "user", "content": "other"}])
    if change == "settings":
        request = replace(request, settings=replace(SETTINGS, temperature=0.5))
    generator = Scripted(echo)
    generator.identity = "other" if change == "model" else generator.identity
    with (
        open_replies(tmp_path / "replies.jsonl") as replies,
        pytest.raises(DataError, match=r"another request of the key \(0, 'v1'\).*have changed"),
    ):
        collect(generator, [request], replies, tmp_path / "failures.jsonl")
    assert generator.asked == 0


def test_rows_of_another_layout(tmp_path: Path) -> None:
    path = tmp_path / "judgment.jsonl"
    with Journal(path, by("question_id", "judge")) as journal:
        collect(
            Scripted(echo),
            requests(2),
            journal,
            tmp_path / "failures.jsonl",
            row_of=lambda request, reply, digest: {
                "question_id": request.key[0],
                "judge": request.key[1],
                "judgment": reply.text,
            },
        )
        assert journal.get((1, "v1")) == {"question_id": 1, "judge": "v1", "judgment": "said 1"}


def test_two_requests_of_one_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two requests share a key"):
        gather(tmp_path, echo, requests(2) + requests(1))
    with pytest.raises(ConfigError, match="give_up_after must be at least 1"):
        gather(tmp_path, echo, requests(1), give_up_after=0)


def test_refused_requests_in_a_row_are_no_broken_server(tmp_path: Path) -> None:
    """Those are counted whose fault is not their own; that a server is gone is tested in faults."""
    assert len(gather(tmp_path, lambda r: None, requests(9), give_up_after=2).failed) == 9


def test_what_cannot_be_kept_ends_it(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "rows.jsonl", by("same")) as journal,
        pytest.raises(HoldfastError, match="already"),
    ):
        collect(
            Scripted(echo),
            requests(3),
            journal,
            tmp_path / "failures.jsonl",
            row_of=lambda request, reply, digest: {"same": 1},
        )
