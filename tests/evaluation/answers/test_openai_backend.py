"""A real server, `transformers serve`, with a tiny model: what it answers is what the model answers here."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from holdfast.evaluation.answers.client import CallError, ChatClient, Reply, Retries, Settings
from holdfast.evaluation.answers.generation import Generator
from holdfast.evaluation.answers.generation_turns import Question, generate
from holdfast.evaluation.answers.openai_backend import ServerGenerator
from holdfast.evaluation.answers.transformers_backend import TransformersGenerator
from tests.evaluation.conftest import TEXT

pytest.importorskip("fastapi", reason="pip install 'transformers[serving]'")
pytest.importorskip("uvicorn", reason="pip install 'transformers[serving]'")
pytest.importorskip("openai", reason="pip install 'transformers[serving]'")

PATIENCE = 60.0  # seconds until the server answers
ONCE = Retries(attempts=1)


@pytest.fixture(scope="module")
def url(answering_folder: Path) -> Iterator[str]:
    from transformers.cli.serve import Serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server: Any = Serve(
        force_model=str(answering_folder), device="cpu", host="127.0.0.1", port=port, non_blocking=True
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).raise_for_status()
                break
            except httpx2.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill_server()


TALK = [
    Question(n, (TEXT[7 * n : 9 * n + 9], "and out again"), Settings(max_tokens=10), system="be kind")
    for n in range(5)
]


def said(generator: Generator, folder: Path) -> dict[Any, list[tuple[Any, ...]]]:
    made = generate(generator, TALK, folder)
    assert made.failed == {}
    return {
        name: [(r.text, r.finish_reason, r.usage) for sample in samples for r in sample or ()]
        for name, samples in made.answers.items()
    }


def test_a_server_answers_as_the_model_does_here(url: str, answering_folder: Path, tmp_path: Path) -> None:
    """Text, tokens counted and why it ended, over two turns, at temperature 0."""
    here = TransformersGenerator.load(str(answering_folder), device="cpu", batch_size=4)
    with ChatClient(url, str(answering_folder), concurrency=3, retries=ONCE) as client:
        there = ServerGenerator(client)
        assert there.model == str(answering_folder)
        answers = said(there, tmp_path / "there")
    assert answers == said(here, tmp_path / "here")
    assert len({turns[0][0] for turns in answers.values()}) > 2


def test_the_servers_own_errors_are_read(url: str, answering_folder: Path) -> None:
    hello = [{"role": "user", "content": "hello"}]
    with (
        ChatClient(url, "another-model", retries=ONCE) as client,
        pytest.raises(CallError, match="pinned") as caught,
    ):
        client.ask(hello, Settings())
    assert caught.value.reason == "status 400"
    with ChatClient(url, str(answering_folder), retries=ONCE) as client:
        with pytest.raises(CallError, match=r"status 422.*no_such_key"):
            client.ask(hello, Settings(extra={"no_such_key": 1}))
        reply = client.ask(hello, Settings(extra={"max_tokens": None, "max_completion_tokens": 3}))
    assert isinstance(reply, Reply)
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 3
    assert reply.model is not None
    assert str(answering_folder) in reply.model
