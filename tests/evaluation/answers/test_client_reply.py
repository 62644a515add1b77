"""What a server answers, and how long to wait when it does not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from holdfast.errors import ConfigError
from holdfast.evaluation.answers.client_reply import (
    CallError,
    Reply,
    Usage,
    parse_reply,
    require_success,
    wait_asked,
)
from holdfast.evaluation.answers.client_settings import Deadlines, Retries, Settings

FILTERED = {"message": {"content": "ha"}, "finish_reason": "content_filter"}
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def body(**changes: Any) -> bytes:
    whole = {
        "model": "judge-0613",
        "choices": [{"message": {"role": "assistant", "content": "so"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }
    return json.dumps(whole | changes).encode()


def message(**keys: Any) -> bytes:
    return body(choices=[{"message": keys}])


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        (body(), Reply("so", "judge-0613", Usage(7, 2), "stop")),
        (message(content=""), Reply("", "judge-0613", Usage(7, 2), None)),
        (
            body(choices=[{"message": {"content": None}, "finish_reason": "length"}]),
            Reply("", "judge-0613", Usage(7, 2), "length"),
        ),
        (body(model=None, usage=None, error=None), Reply("so", None, None, "stop")),
        (body(usage={"prompt_tokens": 7}), Reply("so", "judge-0613", None, "stop")),
        (
            body(usage={"prompt_tokens": -1, "completion_tokens": True}),
            Reply("so", "judge-0613", None, "stop"),
        ),
        (
            message(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            Reply("ab", "judge-0613", Usage(7, 2)),
        ),
        (body(model="\x1b[2Jjudge"), Reply("so", "\\x1b[2Jjudge", Usage(7, 2), "stop")),
        (body(model="j" * 200), Reply("so", "j" * 200, Usage(7, 2), "stop")),
        (body(model="j" * 300_000), Reply("so", "j" * 197 + "...", Usage(7, 2), "stop")),
        (body(model="\x1b" * 90), Reply("so", ("\\x1b" * 90)[:197] + "...", Usage(7, 2), "stop")),
        (b"\n" + body() + b"\n", Reply("so", "judge-0613", Usage(7, 2), "stop")),
    ],
)
def test_replies(content: bytes, reply: Reply) -> None:
    assert parse_reply(content) == reply


@pytest.mark.parametrize(
    ("content", "reason", "passing", "of_request"),
    [
        (b" \n", "empty body", True, False),
        (b"<html>", "not JSON", True, False),
        (b"\xff\xfe", "not JSON", True, False),
        (b"9" * 5000, "not JSON", True, False),
        (b"[]", "unusable", True, False),
        (b'{"choices": [{}]}', "unusable", True, False),
        (b'{"choices": [null]}', "unusable", True, False),
        (b'{"error": {"message": "busy", "code": 429}}', "error object", True, False),
        (b'{"error": {"message": "busy", "code": "overloaded"}}', "error object", True, False),
        (b'{"error": {"message": "no model", "code": 404}}', "error object", False, False),
        (b'{"error": "busy"}', "error object", True, False),
        (message(content=None), "no text", True, False),
        (message(), "no text", True, False),
        (message(content="\ud83d"), "no text", True, False),
        (message(content=[{"type": "image"}]), "unusable", True, False),
        (message(content=["text"]), "unusable", True, False),
        (message(content=None, refusal="no"), "refusal", False, True),
        (body(choices=[FILTERED]), "content_filter", False, True),
        (body(choices=[{"message": {"content": "ha"}, "finish_reason": "error"}]), "error", True, False),
    ],
)
def test_what_is_no_reply(content: bytes, reason: str, passing: bool, of_request: bool) -> None:
    with pytest.raises(CallError) as caught:
        parse_reply(content)
    assert (caught.value.reason, caught.value.passing, caught.value.of_request) == (
        reason,
        passing,
        of_request,
    )


def test_a_servers_words_are_short_and_printable() -> None:
    with pytest.raises(CallError) as caught:
        require_success(500, {}, b"\x1b[31mred" + b"!" * 10_000)
    assert len(str(caught.value)) < 300
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "passing"),
    [(status, True) for status in (408, 409, 429, 500, 503, 529)]
    + [(status, False) for status in (100, 302, 400, 401, 403, 404, 413, 422)],
)
def test_which_statuses_pass(status: int, passing: bool) -> None:
    with pytest.raises(CallError) as caught:
        require_success(status, {"retry-after": "5"}, b"words")
    assert caught.value.passing is passing
    assert caught.value.wait == (5 if passing else None)
    require_success(200, {}, b"")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 1.5 ", 1.5),
        ("Fri, 01 May 2026 12:00:30 GMT", 30),
        ("Fri, 01 May 2026 14:00:30 +0200", 30),
        ("Fri, 01 May 2026 12:00:30 -0000", 30),
        ("Fri, 01 May 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("nan", None),
        ("1e9", None),
        ("9" * 400, None),
        ("Fri, 99 May 99999 99:99:99 GMT", None),
    ],
)
def test_retry_after_in_both_forms(value: str, seconds: float | None) -> None:
    assert wait_asked({"retry-after": value}, NOON) == seconds


def test_a_date_is_read_by_the_servers_clock() -> None:
    headers = {"retry-after": "Fri, 01 May 2026 12:00:30 GMT", "date": "Fri, 01 May 2026 12:00:10 GMT"}
    assert wait_asked(headers, datetime(2030, 1, 1, tzinfo=UTC)) == 20
    assert wait_asked({}, NOON) is None


def test_waits_double_up_to_the_longest() -> None:
    retries = Retries(first_wait=1, longest_wait=6)
    assert [retries.wait(n, None, 1.0) for n in (1, 2, 3, 4, 90)] == [1, 2, 4, 6, 6]
    assert [retries.wait(n, None, 0.0) for n in (1, 2, 3, 4)] == [0.5, 1, 2, 3]
    assert retries.wait(1, None, 0.5) == 0.75


def test_a_wait_that_was_asked_for_is_kept_in_full() -> None:
    retries = Retries(first_wait=1, longest_wait=6)
    assert retries.wait(3, 20, 0.0) == 20
    assert retries.wait(3, 20, 1.0) == 21


def test_settings_as_a_body() -> None:
    assert Settings().body() == {"temperature": 0.0, "max_tokens": 1024}
    full = Settings(0.7, 10, 0.9, 3, ("END",), {"max_tokens": None, "max_completion_tokens": 10})
    assert full.body() == {
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["END"],
        "max_completion_tokens": 10,
    }
    json.dumps(full.as_dict())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Settings(temperature=-0.1),
        lambda: Settings(temperature=float("nan")),
        lambda: Settings(max_tokens=0),
        lambda: Settings(top_p=0),
        lambda: Settings(top_p=1.1),
        lambda: Settings(stop="END"),  # type: ignore[arg-type]
        lambda: Settings(stop=("",)),
        lambda: Settings(extra={"messages": []}),
        lambda: Settings(extra={"max_completion_tokens": "abc"}),
        lambda: Settings(extra={"max_completion_tokens": 0}),
        lambda: Settings(extra={"max_tokens": True}),
        lambda: Settings(extra={"max_tokens": 9.5}),
        lambda: Settings(extra={"temperature": "hot"}),
        lambda: Settings(extra={"top_k": float("nan")}),
        lambda: Settings(extra={"tools": [{1, 2}]}),
        lambda: Deadlines(read=0),
        lambda: Deadlines(total=float("inf")),
        lambda: Retries(attempts=0),
        lambda: Retries(attempts=101),
        lambda: Retries(first_wait=-1),
    ],
)
def test_settings_that_are_none(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()
