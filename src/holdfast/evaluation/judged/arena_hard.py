"""Arena-Hard: what it consists of, answer files in both layouts, and what the judge is asked.

Two games a question: the baseline is A in the first, the model in the second. Two protocols: `v0.1`, the original,
whose judge is asked to go on where it gave no label; and `current`, since April 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from holdfast.errors import ConfigError
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.judged.arena_config import ATTEMPTS, CONFIG_FILES, read_config
from holdfast.evaluation.judged.arena_prompts import pair_values, prompts_of
from holdfast.evaluation.judged.arena_questions import (
    QUESTION_FILES,
    ArenaQuestion,
    joined_turns,
    question_id,
    read_questions,
)
from holdfast.evaluation.judged.assets import (
    JudgePrompt,
    Keyed,
    Row,
    assets_folder,
    content_hash,
    field_of,
    find_file,
    keyed,
    read_table,
    require_file,
    text_of,
)
from holdfast.evaluation.judged.judgment_files import JUDGMENT_FOLDER
from holdfast.evaluation.judged.style_control import style_of

Protocol = Literal["v0.1", "current"]

BASELINE_V01 = "gpt-4-0314"
ANSWER_TOKENS = 4096
GAMES = 2
MOST_TOKENS = 10**9  # of an answer; a count beyond is none
# What the original says to a judge that gave no label.
GO_ON = "continue your judgment and finish by outputting a final verdict label"

# Of what counts of the official v0.1 files: see `load_arena`.
OFFICIAL_V01 = {
    "questions": "1a0a4b267e80c1ddb9d5cc2313314aac8f980ff5ba87535caed7ecdb314efd07",
    "prompts": "ef49425116eb3b99776e1d016a0d05c622f4d8ea824be3e6ee39614ffc2dfcde",
}


@dataclass(frozen=True)
class Arena:
    """What the benchmark consists of.

    Attributes:
        protocol: which tool's parser and score are the official ones.
        prompt: of the judge, but for what `systems` says.
        judge, settings: that the configuration names; the defaults of v0.1 where there is none.
        attempts: how often a judge without a label is asked.
        hashes: of the content of questions and prompt.
        departures: in what this is not the official v0.1.
        left_out: ids of its questions that a limit leaves out.
        systems: the judge's system messages by category, where it has several.
    """

    protocol: Protocol
    questions: tuple[ArenaQuestion, ...]
    prompt: JudgePrompt
    judge: str
    settings: Settings
    attempts: int
    hashes: Mapping[str, str]
    departures: tuple[str, ...]
    left_out: frozenset[str] = frozenset()
    systems: Mapping[str, str] = field(default_factory=dict)

    def prompt_of(self, question: ArenaQuestion) -> JudgePrompt:
        """What the judge is asked with about a question."""
        return replace(self.prompt, system=self.systems.get(question.category, self.prompt.system))


def load_arena(
    source: str | Path,
    *,
    limit: int | None = None,
    protocol: Protocol | None = None,
    own_prompt: bool = False,
    judgments: Sequence[Path] = (),
    asks: bool = True,
) -> Arena:
    """The benchmark in a folder, or a data set of the hub.

    `question.jsonl` and `judge_config.yaml` (without it, or without its `prompt_template`: this package's prompt).
    `system_prompt` is a text, or a mapping of categories to texts. The current tool's configuration has none: it is
    taken from games of `judgments`, else of the `model_judgment` beside the questions.

    Args:
        limit: of so many questions, evenly through the file, whose neighbours are of one topic.
        protocol: by default `current` where the configuration is of the tool since April 2025.
        own_prompt: take this package's judge prompt and settings, whatever the folder has.
        asks: a judge is to be asked, and every system message must be known.

    Raises:
        DataError: a file is missing, or of another layout; a system message is not known.
    """
    folder = assets_folder(source, ["question.jsonl", "judge_config.yaml", "config/*.yaml"])
    place = require_file(folder, QUESTION_FILES, "questions of Arena-Hard")
    questions = read_questions(place)
    config = read_config(None if own_prompt else find_file(folder, CONFIG_FILES))
    protocol = protocol or ("current" if config.current else "v0.1")
    beside = sorted((place.parent / JUDGMENT_FOLDER).glob("**/*.jsonl"))
    prompts = prompts_of(config, questions, [*judgments, *beside], asks=asks)
    hashes = {
        "questions": content_hash(sorted([q.id, q.prompt] for q in questions)),
        "prompts": prompts.hash,
    }
    departures = [
        f"{part} that are not the official v0.1 ones (their content differs)"
        for part, official in OFFICIAL_V01.items()
        if hashes[part] != official and not (part == "prompts" and prompts.own)
    ]
    if prompts.own:
        departures.append("a judge prompt of holdfast's own wording")
    if prompts.sources:
        files = ", ".join(f"'{file}'" for file in prompts.sources)
        departures.append(f"system messages of the judge as judgments have them ({files})")
    if prompts.unknown:
        departures.append(f"the judge's system message is not known: {', '.join(prompts.unknown)}")
    attempts = config.attempts if protocol == "v0.1" else 1
    if protocol == "v0.1" and attempts != ATTEMPTS:
        departures.append(f"{attempts} attempts of a judge that gives no label, not {ATTEMPTS}")
    if protocol == "current":
        departures.append("the current tool's parser and score, not those of v0.1")
    chosen = questions
    if limit is not None and limit < len(questions):
        if limit < 1:
            raise ConfigError("--limit counts questions, from 1")
        chosen = [questions[len(questions) * place // limit] for place in range(limit)]
        departures.append(f"{limit} of {len(questions)} questions")
    return Arena(
        protocol=protocol,
        questions=tuple(chosen),
        prompt=prompts.prompt,
        judge=config.judge,
        settings=config.settings,
        attempts=attempts,
        hashes=hashes,
        departures=tuple(departures),
        left_out=frozenset(question.id for question in questions) - {question.id for question in chosen},
        systems=prompts.systems,
    )


# --- answers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArenaAnswers:
    """A model's answers by question, and what is odd about the file they came in.

    Attributes:
        model: the name of the file, as the tool has it.
        lengths: tokens of an answer as its row says (`metadata.token_len`); questions without it are left out.
        left_out: the texts of questions that a limit leaves out.
    """

    model: str
    texts: Mapping[str, str]
    lengths: Mapping[str, int]
    oddities: Keyed
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Of all texts of the file: of a few questions it is the same file."""
        return content_hash(sorted([*self.texts.items(), *self.left_out.items()]))


def read_arena_answers(path: str | Path, arena: Arena, model: str | None = None) -> ArenaAnswers:
    """An answer file in either layout: `uid`, `messages[-1].content.answer`; before April 2025 `question_id`,
    `choices[0].turns[0].content`. The last row of a question counts.

    Raises:
        DataError: a line that is no such row.
    """
    rows = read_table(path, "answer")
    beyond = keyed(rows, question_id, sorted(arena.left_out)).rows
    asked = [(place, row) for place, row in rows if question_id(place, row) not in arena.left_out]
    found = keyed(asked, question_id, [question.id for question in arena.questions])
    texts = {name: answer_text(place, row) for name, (place, row) in found.rows.items()}
    lengths = {
        name: length
        for name, (_, row) in found.rows.items()
        if isinstance(row.get("metadata"), dict)
        and type(length := row["metadata"].get("token_len")) is int
        and 0 <= length <= MOST_TOKENS
    }
    left_out = {name: answer_text(place, row) for name, (place, row) in beyond.items()}
    return ArenaAnswers(model or Path(path).stem, texts, lengths, found, left_out)


def answer_text(place: str, row: Row) -> str:
    """An answer's text, in either layout."""
    if "choices" in row:
        return joined_turns(place, row, "choices", 0, "turns")
    content = field_of(place, row, "messages", -1, "content")
    return content if isinstance(content, str) else text_of(place, row, "messages", -1, "content", "answer")


def arena_answer_row(
    question: ArenaQuestion, model: str, text: str, tstamp: float, token_len: int | None
) -> Row:
    """A row of the current layout. `token_len` is left out where tokens were not counted."""
    style = style_of(text)
    counted = {} if token_len is None else {"token_len": token_len}
    return {
        "uid": question.id,
        "ans_id": content_hash([question.id, model, text])[:22],
        "model": model,
        "messages": [
            {"role": "user", "content": question.prompt},
            {"role": "assistant", "content": {"answer": text}},
        ],
        "tstamp": tstamp,
        "metadata": counted | style.as_record(),
    }


def pair_messages(arena: Arena, question: ArenaQuestion, first: str, second: str) -> list[dict[str, str]]:
    """What the judge is asked about two answers, A and B."""
    return arena.prompt_of(question).messages(pair_values(question, first, second))


def go_on(messages: Sequence[Mapping[str, str]], reply: str) -> list[dict[str, str]]:
    """The original's second attempt: the talk so far, and the request for a label."""
    return [
        *(dict(message) for message in messages),
        {"role": "assistant", "content": reply},
        {"role": "user", "content": GO_ON},
    ]
