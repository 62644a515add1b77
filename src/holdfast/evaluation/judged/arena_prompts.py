"""What Arena-Hard's judge is asked: the configuration's prompt, its system message one for all or by category.

The current tool's configuration has a template alone; the system messages stand in the tool's code, and in every game
of its judgment files. They are that tool's data and no part of this package.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.judged.arena_config import JudgeConfig
from holdfast.evaluation.judged.arena_questions import ArenaQuestion
from holdfast.evaluation.judged.assets import JudgePrompt, content_hash, read_table
from holdfast.evaluation.judged.judge_prompts import PAIR_PROMPT


@dataclass(frozen=True)
class ArenaPrompts:
    """The judge's prompts.

    Attributes:
        prompt: of every question, but for the system message of those in `systems`.
        systems: the judge's system messages by category.
        own: it is this package's.
        sources: judgment files that `systems` was taken from.
        unknown: categories whose system message nobody says; none is sent.
    """

    prompt: JudgePrompt
    systems: Mapping[str, str]
    own: bool = False
    sources: tuple[Path, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Of what the judge is asked with."""
        return content_hash([dict(self.systems) or self.prompt.system, self.prompt.template])


def prompts_of(
    config: JudgeConfig, questions: Sequence[ArenaQuestion], judgments: Sequence[Path], *, asks: bool
) -> ArenaPrompts:
    """The prompts for these questions.

    Args:
        judgments: files in which to look for system messages that the configuration does not have, in this order.
        asks: a judge is to be asked; otherwise judgments are read, and a message may stay unknown.

    Raises:
        DataError: a system message is in no file and a judge is to be asked; or the files have several for a category.
    """
    if config.template is None:
        return ArenaPrompts(PAIR_PROMPT, {}, own=True)
    prompt = JudgePrompt("arena-hard", config.system or "", config.template)
    if config.system is not None:
        return ArenaPrompts(prompt, {})
    categories = dict.fromkeys(question.category for question in questions)
    lacking = [name for name in categories if name not in config.systems]
    found, sources = _in_files(judgments, prompt, questions, lacking) if lacking else ({}, ())
    unknown = tuple(name for name in lacking if name not in found)
    if unknown and asks:
        raise DataError(
            f"'{config.file}': has no 'system_prompt' for {', '.join(unknown)}, and no judgment file at hand says it. "
            "The current tool keeps it in its code (JUDGE_SETTINGS): write it into the file, 'system_prompt: TEXT', or "
            "one for each category, 'system_prompt: {"
            + ", ".join(f"{name}: TEXT" for name in categories)
            + "}' "
            "(an empty text for none). Without 'prompt_template' holdfast's own prompt is used"
        )
    return ArenaPrompts(prompt, {**config.systems, **found}, sources=sources, unknown=unknown)


def pair_values(question: ArenaQuestion, first: str, second: str) -> dict[str, str]:
    """What a template may name: the original's places, and the current tool's."""
    return {
        "question_1": question.prompt,
        "answer_1": first,
        "answer_2": second,
        "QUESTION": question.prompt,
        "ANSWER_A": first,
        "ANSWER_B": second,
    }


def _in_files(
    files: Sequence[Path], prompt: JudgePrompt, questions: Sequence[ArenaQuestion], lacking: Collection[str]
) -> tuple[dict[str, str], tuple[Path, ...]]:
    """(system messages by category, the files they are from): of games that this template asks about these questions.

    No further file is read when each category has one.
    """
    asked = {question.id: question for question in questions if question.category in lacking}
    found: dict[str, dict[str, str]] = {}
    sources: list[Path] = []
    for file in files:
        if len(found) == len(lacking):
            break
        before = len(found)
        for place, row in read_table(file, "judgment"):
            question = asked.get(str(row.get("uid", row.get("question_id"))))
            if question is None:
                continue
            for system, user in _asked_in(row):
                if _is_about(prompt, question, user):
                    found.setdefault(question.category, {}).setdefault(system, place)
        if len(found) > before:
            sources.append(file)
    for category, systems in found.items():
        if len(systems) > 1:
            raise DataError(
                f"the judge's system message for {category} is not in the configuration, and judgments have "
                f"{len(systems)} ({', '.join(systems.values())}): write the one that is meant into the configuration, "
                f"'system_prompt: {{{category}: TEXT}}'"
            )
    return {category: next(iter(systems)) for category, systems in found.items()}, tuple(sources)


def _asked_in(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(system message, user message) of each game of a row that keeps them; files of other tools may hold anything."""
    games = row.get("games")
    for game in games if isinstance(games, list) else []:
        messages = game.get("prompt") if isinstance(game, dict) else None
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            continue
        said = [(message.get("role"), message.get("content")) for message in messages]
        match said:
            case [("user", str(user))]:
                yield "", user
            case [("system", str(system)), ("user", str(user))]:
                yield system, user


def _is_about(prompt: JudgePrompt, question: ArenaQuestion, text: str) -> bool:
    """Whether a user message is this template's about this question, whatever the answers."""
    mark = "\0"
    parts = prompt.fill(pair_values(question, mark, mark)).split(mark)
    return re.fullmatch(".*".join(map(re.escape, parts)), text, re.DOTALL) is not None
