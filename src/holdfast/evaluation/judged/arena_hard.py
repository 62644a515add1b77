"""Arena-Hard: its questions, its judge's configuration, answer files in both layouts, and what the judge is asked.

Two games a question: the baseline is A in the first, the model in the second. Two protocols: `v0.1`, the original,
whose judge is asked to go on where it gave no label; and `current`, since April 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.answers.client_settings import Settings
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
from holdfast.evaluation.judged.judge_prompts import PAIR_PROMPT
from holdfast.evaluation.judged.style_control import style_of

Protocol = Literal["v0.1", "current"]

JUDGE_V01, BASELINE_V01 = "gpt-4-1106-preview", "gpt-4-0314"
JUDGE_SETTINGS_V01 = Settings(temperature=0.0, max_tokens=4096)
ANSWER_TOKENS = 4096
GAMES = 2
ATTEMPTS = 2  # of a judge that gives no label, by the original v0.1
# What the original says to a judge that gave no label; as known, the design names the attempt and not its words.
GO_ON = "continue your judgment and finish by outputting a final verdict label"

# Of what counts of the official v0.1 files: see `load_arena`.
OFFICIAL_V01 = {
    "questions": "1a0a4b267e80c1ddb9d5cc2313314aac8f980ff5ba87535caed7ecdb314efd07",
    "prompts": "ef49425116eb3b99776e1d016a0d05c622f4d8ea824be3e6ee39614ffc2dfcde",
}
QUESTION_FILES = (
    "question.jsonl",
    "data/arena-hard-v0.1/question.jsonl",
    "data/arena-hard-v2.0/question.jsonl",
)
CONFIG_FILES = ("judge_config.yaml", "config/judge_config.yaml", "config/arena-hard-v2.0.yaml", "config.yaml")


@dataclass(frozen=True)
class ArenaQuestion:
    """A request; `category` is `arena-hard-v0.1` for the original's."""

    id: str
    category: str
    cluster: str
    prompt: str


@dataclass(frozen=True)
class Arena:
    """What the benchmark consists of.

    Attributes:
        protocol: which tool's parser and score are the official ones.
        prompt: of the judge.
        judge, settings: that the configuration names; the defaults of v0.1 where there is none.
        attempts: how often a judge without a label is asked.
        hashes: of the content of questions and prompt.
        departures: in what this is not the official v0.1.
        left_out: ids of its questions that a limit leaves out.
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


def load_arena(
    source: str | Path,
    *,
    limit: int | None = None,
    protocol: Protocol | None = None,
    own_prompt: bool = False,
) -> Arena:
    """The benchmark in a folder, or a data set of the hub.

    `question.jsonl` and `judge_config.yaml` (without it, or without its `system_prompt`: this package's prompt).

    Args:
        limit: of so many questions, evenly through the file, whose neighbours are of one topic.
        protocol: by default `current` where the configuration has `regex_patterns`, as since April 2025.
        own_prompt: take this package's judge prompt and settings, whatever the folder has.

    Raises:
        DataError: a file is missing, or of another layout.
    """
    folder = assets_folder(source, ["question.jsonl", "judge_config.yaml", "config/*.yaml"])
    questions = _questions(require_file(folder, QUESTION_FILES, "questions of Arena-Hard"))
    file = None if own_prompt else find_file(folder, CONFIG_FILES)
    config = {} if file is None else _config(file)
    protocol = protocol or ("current" if "regex_patterns" in config else "v0.1")
    prompt, own = _prompt(file, config)
    hashes = {
        "questions": content_hash(sorted([q.id, q.prompt] for q in questions)),
        "prompts": content_hash([prompt.system, prompt.template]),
    }
    departures = [
        f"{part} that are not the official v0.1 ones (their content differs)"
        for part, official in OFFICIAL_V01.items()
        if hashes[part] != official and not (part == "prompts" and own)
    ]
    if own:
        departures.append("a judge prompt of holdfast's own wording")
    attempts = _whole(file, config, "number_of_judgment_attempts", ATTEMPTS) if protocol == "v0.1" else 1
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
        prompt=prompt,
        judge=str(config.get("judge_model", JUDGE_V01)),
        settings=_settings(file, config),
        attempts=attempts,
        hashes=hashes,
        departures=tuple(departures),
        left_out=frozenset(question.id for question in questions) - {question.id for question in chosen},
    )


def _questions(file: Path) -> list[ArenaQuestion]:
    found: dict[str, ArenaQuestion] = {}
    for place, row in read_table(file, "question"):
        name = question_id(place, row)
        if name in found:
            raise DataError(f"{place}: the question '{name}' is there twice; remove one")
        prompt = text_of(place, row, "prompt") if "prompt" in row else _joined(place, row, "turns")
        found[name] = ArenaQuestion(
            name, str(row.get("category", "arena-hard-v0.1")), str(row.get("cluster", "")), prompt
        )
    if not found:
        raise DataError(f"'{file}': holds no question")
    return list(found.values())


def question_id(place: str, row: Row) -> str:
    """`uid`, or `question_id` in files from before April 2025 and of MT-Bench, whose numbers become texts."""
    name = field_of(place, row, "uid" if "uid" in row else "question_id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(f"{place}: a question's id is a text or a number, not {name!r}")
    return str(name)


def _config(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"'{file}': cannot be read as YAML ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"'{file}': must be a mapping of settings")
    return found


def _prompt(file: Path | None, config: Mapping[str, Any]) -> tuple[JudgePrompt, bool]:
    """(the prompt, whether it is this package's)."""
    template = config.get("prompt_template")
    if isinstance(template, list) and len(template) == 1:
        template = template[0]
    system = config.get("system_prompt")
    if not system or template is None:
        return PAIR_PROMPT, True
    if not isinstance(system, str) or not isinstance(template, str):
        raise DataError(f"'{file}': 'system_prompt' must be a text, and 'prompt_template' one text")
    return JudgePrompt("arena-hard", system, template), False


def _settings(file: Path | None, config: Mapping[str, Any]) -> Settings:
    temperature = config.get("temperature", JUDGE_SETTINGS_V01.temperature)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise DataError(f"'{file}': 'temperature' must be a number, not {temperature!r}")
    tokens = _whole(file, config, "max_tokens", JUDGE_SETTINGS_V01.max_tokens)
    return Settings(temperature=float(temperature), max_tokens=tokens)


def _whole(file: Path | None, config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
        raise DataError(f"'{file}': '{key}' must be a whole number from 1, not {value!r}")
    return value


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
        if isinstance(row.get("metadata"), dict) and type(length := row["metadata"].get("token_len")) is int
    }
    left_out = {name: answer_text(place, row) for name, (place, row) in beyond.items()}
    return ArenaAnswers(model or Path(path).stem, texts, lengths, found, left_out)


def answer_text(place: str, row: Row) -> str:
    """An answer's text, in either layout."""
    if "choices" in row:
        return _joined(place, row, "choices", 0, "turns")
    content = field_of(place, row, "messages", -1, "content")
    return content if isinstance(content, str) else text_of(place, row, "messages", -1, "content", "answer")


def _joined(place: str, row: Row, *path: str | int) -> str:
    """Turns as one text: `{"content": ...}` as in Arena-Hard's files before April 2025, or texts as in MT-Bench's.

    Several are numbered. They can be judged as a whole so, in pairs; MT-Bench's own protocol judges turn by turn.
    """
    turns = field_of(place, row, *path)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{place}: '{'.'.join(map(str, path))}' must be a list of turns")
    texts = [
        turn if isinstance(turn, str) else text_of(place, row, *path, at, "content")
        for at, turn in enumerate(turns)
    ]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[turn {number}]\n{text}" for number, text in enumerate(texts, start=1))


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


def pair_messages(arena: Arena, question: ArenaQuestion, first: str, second: str) -> list[dict[str, str]]:
    """What the judge is asked about two answers, A and B."""
    return arena.prompt.messages(pair_values(question, first, second))


def go_on(messages: Sequence[Mapping[str, str]], reply: str) -> list[dict[str, str]]:
    """The original's second attempt: the talk so far, and the request for a label."""
    return [
        *(dict(message) for message in messages),
        {"role": "assistant", "content": reply},
        {"role": "user", "content": GO_ON},
    ]
