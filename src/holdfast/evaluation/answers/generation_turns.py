"""Questions of one turn or more -> conversations, in which each turn sees the model's own answers before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.answers.client import Reply, Settings
from holdfast.evaluation.answers.generation import (
    GIVE_UP_AFTER,
    Generator,
    Request,
    collect,
    open_replies,
    reply_of,
)

Thinking = Literal["keep", "strip"]

ANSWERS, FAILURES = "answers.jsonl", "failures.jsonl"
MOST_SAMPLES = 1024
OPENED, CLOSED = "<think>", "</think>"


@dataclass(frozen=True)
class Question:
    """What a user says, turn by turn.

    Attributes:
        id: tells it from all others.
        settings: a seed here goes to every turn as it is; without one, each turn of each sample has its own.
        system: what stands before the first turn.
    """

    id: str | int
    turns: tuple[str, ...]
    settings: Settings
    system: str | None = None


@dataclass(frozen=True)
class Generated:
    """Answers to questions.

    Attributes:
        answers: by question, its samples in order, each a reply a turn; None for a sample of which a turn failed.
        failed: why, in words, by question, sample and turn, both counted from 0.
    """

    answers: dict[str | int, list[tuple[Reply, ...] | None]]
    failed: dict[tuple[str | int, ...], str]


def generate(
    generator: Generator,
    questions: Sequence[Question],
    folder: str | Path,
    *,
    samples: int = 1,
    seed: int = 0,
    thinking: Thinking = "keep",
    give_up_after: int = GIVE_UP_AFTER,
) -> Generated:
    """Have questions answered, all first turns and then all second ones; what `folder` holds is not asked again.

    `answers.jsonl` in it keeps each reply as it came, `failures.jsonl` what failed.

    Args:
        samples: answers a question, 1 to 1024.
        seed: of all draws. Each turn of each sample of each question has a seed of its own made of it, so that what
            one question is answered depends neither on the others nor on their order.
        thinking: "strip" takes what stands in `<think>` out of the answers, and of what later turns see.
        give_up_after: see `collect`.

    Raises:
        ConfigError: samples that would all be alike, or too many.
        DataError: two questions share an id, one has no turn, or the folder answers other questions.
        HoldfastError: too many failures in a row.
    """
    _require_sound(questions, samples)
    folder = Path(folder)
    told: dict[tuple[str | int, int], list[Reply]] = {
        (question.id, sample): [] for question in questions for sample in range(samples)
    }
    failed: dict[tuple[str | int, ...], str] = {}
    with open_replies(folder / ANSWERS) as replies:
        for turn in range(max((len(question.turns) for question in questions), default=0)):
            requests = [
                _request(question, sample, told[question.id, sample], seed)
                for question in questions
                for sample in range(samples)
                # one that failed a turn is not asked further
                if turn < len(question.turns) and len(told[question.id, sample]) == turn
            ]
            collected = collect(generator, requests, replies, folder / FAILURES, give_up_after=give_up_after)
            for request in requests:
                if row := replies.get(request.key):
                    told[request.key[0], int(request.key[1])].append(_answer(reply_of(row), thinking))
                else:
                    failed[request.key] = collected.failed[request.key]
    return Generated(
        {q.id: [_whole(q, told[q.id, sample]) for sample in range(samples)] for q in questions}, failed
    )


def without_thinking(text: str) -> str:
    """An answer without the thoughts before it.

    Where a chat template opens the block itself, the text has its end alone. A block that never ends was cut off in
    the middle of a thought, and there is no answer.
    """
    if text.lstrip().startswith(OPENED):
        return text.partition(CLOSED)[2].lstrip()
    before, closed, after = text.partition(CLOSED)
    return after.lstrip() if closed and OPENED not in before else text


def _require_sound(questions: Sequence[Question], samples: int) -> None:
    if not 1 <= samples <= MOST_SAMPLES:
        raise ConfigError(f"samples must be 1 to {MOST_SAMPLES}, not {samples}")
    seen: set[str | int] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"two questions have the id {question.id!r}")
        seen.add(question.id)
        if not question.turns:
            raise DataError(f"the question {question.id!r} has no turn")
        fixed = question.settings.seed is not None or question.settings.temperature == 0
        if samples > 1 and fixed:
            raise ConfigError(
                f"{samples} samples of the question {question.id!r} would all be alike: at temperature 0, or with a "
                "seed of its own, one is enough"
            )


def _request(question: Question, sample: int, told: Sequence[Reply], seed: int) -> Request:
    """The next turn of a conversation."""
    turn = len(told)
    messages: list[dict[str, Any]] = []
    if question.system is not None:
        messages.append({"role": "system", "content": question.system})
    for said, reply in zip(
        question.turns, told, strict=False
    ):  # told is as long as the turns before this one
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": reply.text}]
    messages.append({"role": "user", "content": question.turns[turn]})
    settings = question.settings
    if settings.seed is None and settings.temperature > 0:
        settings = replace(settings, seed=_seed_of(seed, question.id, sample, turn))
    return Request((question.id, sample, turn), messages, settings)


def _seed_of(*parts: str | int) -> int:
    """31 bits, which every server takes."""
    text = "/".join(map(repr, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest()) >> 1


def _answer(reply: Reply, thinking: Thinking) -> Reply:
    return replace(reply, text=without_thinking(reply.text)) if thinking == "strip" else reply


def _whole(question: Question, told: Sequence[Reply]) -> tuple[Reply, ...] | None:
    return tuple(told) if len(told) == len(question.turns) else None
