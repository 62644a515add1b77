"""The client against a server of this machine: addresses, keys, and what is asked. Its faults: tests/faults."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError
from holdfast.evaluation.answers.client import CallError, ChatClient, Reply, Retries, Settings, Usage
from tests.faults.judging import judge_all, questions
from tests.faults.scripted_server import ScriptedServer, completion, send

KEY = "sk-abc/123+456=7890"
ONCE = Retries(attempts=1)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")
    return KEY


def test_what_is_asked_and_what_comes_back() -> None:
    with (
        ScriptedServer(lambda body: send(completion("hi"))) as server,
        ChatClient(server.url, "judge") as client,
    ):
        reply = client.ask(HELLO, Settings(temperature=0.7, max_tokens=9, seed=4))
    assert reply == Reply("hi", "judge-0613", Usage(3, 5), "stop")
    assert server.asked == [
        {"model": "judge", "messages": HELLO, "temperature": 0.7, "max_tokens": 9, "seed": 4}
    ]
    assert server.keys == [None]


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
        ("https://api.example.com/v1/", "https://api.example.com/v1/chat/completions"),
        (
            "https://a.example.com/openai/v1/chat/completions",
            "https://a.example.com/openai/v1/chat/completions",
        ),
        ("http://[::1]:80/v1", "http://[::1]:80/v1/chat/completions"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    with ChatClient(given, "judge") as client:
        assert client.url == url


@pytest.mark.parametrize(
    "wrong",
    [
        "https://me:pa55word@api.example.com/v1",
        "https://pa55word@api.example.com",
        "me:pa55word@api.example.com/v1",
        "https://api.example.com/v1?key=pa55word",
        "https://api.example.com/v1#pa55word",
        "https://api.example.com:pa55word/v1",
        "ftp://api.example.com",
        "api.example.com/v1",
        "https://",
        "http://[pa55word",
        "",
    ],
)
def test_addresses_that_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="the server's address") as caught:
        ChatClient(wrong, "judge")
    assert "pa55word" not in str(caught.value)


def test_the_key_comes_from_the_environment(key: str) -> None:
    with (
        ScriptedServer(lambda body: send(completion("hi"))) as server,
        ChatClient(server.url, "judge", api_key_env="JUDGE_KEY") as client,
    ):
        client.ask(HELLO, Settings())
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("value", ["", "  ", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ConfigError, match="JUDGE_KEY") as caught:
        ChatClient("http://localhost", "judge", api_key_env="JUDGE_KEY")
    assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize("mistaken", [KEY, "k" * 50, "a key", ""])
def test_a_key_in_place_of_its_name_is_not_repeated(mistaken: str) -> None:
    with pytest.raises(ConfigError, match="name of the environment variable") as caught:
        ChatClient("http://localhost", "judge", api_key_env=mistaken)
    assert not mistaken or mistaken not in str(caught.value)


def test_the_key_stands_in_no_message_record_or_log(
    key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the server says it back in every way it can."""
    said = [
        send(f"Incorrect API key: {KEY}".encode(), 401),
        send(("x" * 190 + KEY).encode(), 400),
        send(json.dumps({"error": {"message": KEY}}).encode()),
        send(KEY.encode()),
        send(completion(f"it is {KEY}").replace(b"/", b"\\/")),
        send(completion(f"your key is {KEY}")),
        send(completion(None, refusal=KEY)),
        send(KEY.encode(), 500),
    ]
    with (
        caplog.at_level(logging.DEBUG),
        ScriptedServer(lambda body: said[len(server.asked) % len(said)]) as server,
    ):
        collected = judge_all(
            server.url,
            questions(len(said)),
            tmp_path,
            api_key_env="JUDGE_KEY",
            concurrency=1,
            retries=Retries(attempts=2, first_wait=0, longest_wait=0),
        )
        with ChatClient(server.url, "judge", api_key_env="JUDGE_KEY") as client:
            assert KEY not in repr(client) + repr(vars(client).get("_http"))
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert len(collected.failed) > 3
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "[key]" in written
    for text in (written, caplog.text, repr(collected)):
        assert KEY not in text


@pytest.mark.parametrize("short", ["7", "e", '"', "content", "[[7]]"])
def test_a_key_of_a_few_characters_spoils_no_reply(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in answers by chance, and an answer is paid for."""
    monkeypatch.setenv("JUDGE_KEY", short)
    with (
        ScriptedServer(lambda body: send(completion('Rating: [[7]], the content is "even"'))) as server,
        ChatClient(server.url, "judge", api_key_env="JUDGE_KEY", retries=ONCE) as client,
    ):
        reply = client.ask(HELLO, Settings())
    assert reply == Reply('Rating: [[7]], the content is "even"', "judge-0613", Usage(3, 5), "stop")


def test_a_key_that_looks_like_json_is_blanked_after_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", '"message":')
    with (
        ScriptedServer(lambda body: send(completion('"message": [[7]]').replace(b'": ', b'":'))) as server,
        ChatClient(server.url, "judge", api_key_env="JUDGE_KEY", retries=ONCE) as client,
    ):
        assert client.ask(HELLO, Settings()).text == "[key][[7]]"


def test_a_refused_key_is_named_by_its_variable(key: str) -> None:
    with (
        ScriptedServer(lambda body: send(b"no", 401)) as server,
        ChatClient(server.url, "judge", api_key_env="JUDGE_KEY") as client,
        pytest.raises(
            CallError, match="status 401: no .it was sent the key in the environment variable JUDGE_KEY"
        ),
    ):
        client.ask(HELLO, Settings())
    assert len(server.asked) == 1


def test_a_key_over_plain_http_is_warned_about(key: str, caplog: pytest.LogCaptureFixture) -> None:
    ChatClient("http://judge.example.com", "judge", api_key_env="JUDGE_KEY").close()
    assert "judge.example.com unencrypted" in caplog.text
    caplog.clear()
    ChatClient("https://judge.example.com", "judge", api_key_env="JUDGE_KEY").close()
    ChatClient("http://localhost:1", "judge", api_key_env="JUDGE_KEY").close()
    assert caplog.text == ""


def test_a_wait_is_as_long_as_the_server_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float, *rest: Any) -> None:
        waited.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    acts = [send(b"", 429, Retry_After="11"), send(b"", 503), send(completion("hi"))]
    with (
        ScriptedServer(lambda body: acts[len(server.asked) - 1]) as server,
        ChatClient(server.url, "judge", retries=Retries(first_wait=2, longest_wait=100)) as client,
    ):
        client.ask(HELLO, Settings())
    waited = [seconds for seconds in waited if seconds > 0]
    assert len(waited) == 2
    assert 11 <= waited[0] <= 13
    assert 2 <= waited[1] <= 4


@pytest.mark.parametrize("concurrency", [0, -1, 257])
def test_calls_at_once_are_bounded(concurrency: int) -> None:
    with pytest.raises(ConfigError, match="concurrency must be 1 to 256"):
        ChatClient("http://localhost", "judge", concurrency=concurrency)


def test_a_closed_client_says_so() -> None:
    client = ChatClient("http://localhost", "judge")
    client.close()
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.ask(HELLO, Settings())
