"""A judge asked about numbered questions, as a benchmark does it, and what came of it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.evaluation.answers.client import ChatClient, Deadlines, Retries, Settings
from holdfast.evaluation.answers.generation import Collected, Request, collect, open_replies
from holdfast.evaluation.answers.openai_backend import ServerGenerator

QUICK = Retries(attempts=6, first_wait=0.01, longest_wait=0.02)
PATIENT = Deadlines(connect=10, read=20, total=30)


def questions(count: int) -> list[Request]:
    """Requests for a verdict each."""
    settings = Settings(temperature=0, max_tokens=64)
    return [
        Request((number, "v1"), [{"role": "user", "content": f"answer {number}"}], settings)
        for number in range(count)
    ]


def judge_all(
    url: str,
    requests: Sequence[Request],
    folder: Path,
    *,
    concurrency: int = 8,
    retries: Retries = QUICK,
    deadlines: Deadlines = PATIENT,
    give_up_after: int = 1000,
    **options: Any,
) -> Collected:
    """Ask for what `folder` lacks."""
    with (
        ChatClient(
            url, "judge", concurrency=concurrency, retries=retries, deadlines=deadlines, **options
        ) as client,
        open_replies(folder / "replies.jsonl") as replies,
    ):
        return collect(
            ServerGenerator(client), requests, replies, folder / "failures.jsonl", give_up_after=give_up_after
        )


def verdicts(folder: Path) -> dict[Any, str]:
    """What the judge said, by question."""
    with open_replies(folder / "replies.jsonl") as replies:
        return {tuple(row["key"]): row["text"] for row in replies.rows()}


def score(said: dict[Any, str]) -> float:
    """The mean rating, which every verdict must have."""
    return statistics.mean(int(re.findall(r"\[\[(\d+)\]\]", text)[0]) for text in said.values())
