"""MT-Bench as FastChat's `llm_judge` has it: its questions, references and judge prompts, and its answer files.

80 questions of two turns in eight categories. Questions of `math`, `reasoning` and `coding` are judged beside a
reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.answers.generation_turns import Question
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
from holdfast.evaluation.judged.judge_prompts import RATING_PROMPTS
from holdfast.evaluation.judged.names import stem_of

TURNS = 2
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # 0 for the rest
WITH_REFERENCE = ("math", "reasoning", "coding")
ANSWER_TOKENS = 1024
JUDGE_SETTINGS = Settings(temperature=0.0, max_tokens=2048)
JUDGE = "gpt-4"  # whose references and whose scores are the published ones
OFFICIAL_JUDGES = ("gpt-4", "gpt-4-0314", "gpt-4-0613")

# Of what counts of the official files: see `load_mt_bench`.
OFFICIAL = {
    "questions": "820ac087e9eeeea36fe459058d2f55906e98e36d90eae9361d4f1a461ba08660",
    "references": "26cb9da3491275038e61c27b67a1b58160f325c121766147ee7c8dc14d95e237",
    "prompts": "e381945e6d27977179d740fecdb4f7581d4db7759a526418041f6594635e9fde",
}
QUESTION_FILES = ("question.jsonl", "data/mt_bench/question.jsonl", "mt_bench/question.jsonl")
PROMPT_FILES = ("judge_prompts.jsonl", "data/judge_prompts.jsonl", "../judge_prompts.jsonl")


@dataclass(frozen=True)
class TalkQuestion:
    """A question of two turns."""

    id: int | str
    category: str
    turns: tuple[str, str]


@dataclass(frozen=True)
class MTBench:
    """What the benchmark consists of.

    Attributes:
        references: the two turns of a right answer, by question.
        prompts: by FastChat's names, such as `single-math-v1-multi-turn`.
        hashes: of the content of all three.
        departures: in what this is not the official benchmark.
        left_out: ids of its questions that a limit leaves out.
    """

    questions: tuple[TalkQuestion, ...]
    references: Mapping[int | str, tuple[str, str]]
    prompts: Mapping[str, JudgePrompt]
    hashes: Mapping[str, str]
    departures: tuple[str, ...]
    left_out: frozenset[int | str] = frozenset()

    def id_of(self, name: Any) -> Any:
        """A question's id as the benchmark spells it, where a file has its number as a text."""
        return self._spelled.get(name, name) if isinstance(name, str) else name

    def question_of(self, place: str, row: Row) -> int | str:
        """The question of a row of a file, as the benchmark spells it.

        Raises:
            DataError: the row names none.
        """
        name = self.id_of(field_of(place, row, "question_id"))
        if isinstance(name, int | str):
            return name
        raise DataError(f"{place}: 'question_id' must be a number or a text, not {name!r}")

    @cached_property
    def _spelled(self) -> dict[str, int | str]:
        ids = [*(question.id for question in self.questions), *self.left_out]
        return {str(name): name for name in sorted(ids, key=lambda name: isinstance(name, str))}

    def prompt_of(self, question: TalkQuestion, turn: int) -> JudgePrompt:
        """The prompt that a turn of a question is judged with."""
        with_reference = question.category in WITH_REFERENCE and question.id in self.references
        name = "single-math-v1" if with_reference else "single-v1"
        return self.prompts[name if turn == 1 else f"{name}-multi-turn"]


def load_mt_bench(source: str | Path, judge: str = JUDGE, *, limit: int | None = None) -> MTBench:
    """The benchmark in a folder, or a data set of the hub, laid out as `data/mt_bench` of FastChat.

    `question.jsonl`, `judge_prompts.jsonl` (without it: prompts of this package), `reference_answer/JUDGE.jsonl` (for a
    judge that has none: gpt-4's).

    Args:
        limit: of so many questions, spread over the categories.

    Raises:
        DataError: a file is missing, or a row is of another layout.
    """
    folder = assets_folder(source, ["question.jsonl", "judge_prompts.jsonl", "reference_answer/*.jsonl"])
    file = require_file(folder, QUESTION_FILES, "questions of MT-Bench")
    questions = _questions(file)
    references = _references(file.parent / "reference_answer", judge, questions)
    prompts, own = _prompts(folder)
    hashes = {
        "questions": content_hash(
            [[q.id, q.category, q.turns] for q in sorted(questions, key=lambda q: str(q.id))]
        ),
        "references": content_hash(sorted([str(name), *turns] for name, turns in references.items())),
        "prompts": content_hash(sorted([name, p.system, p.template] for name, p in prompts.items())),
    }
    departures = [
        f"{part} that are not the official ones (their content differs)"
        for part, official in OFFICIAL.items()
        if hashes[part] != official and not (part == "prompts" and own)
    ]
    if own:
        departures.append(
            "judge prompts of holdfast's own wording (no judge_prompts.jsonl beside the questions)"
        )
    chosen = questions
    if limit is not None and limit < len(questions):
        chosen = _spread(questions, limit)
        departures.append(f"{limit} of {len(questions)} questions")
    left_out = frozenset(question.id for question in questions) - {question.id for question in chosen}
    return MTBench(tuple(chosen), references, prompts, hashes, tuple(departures), left_out)


def _questions(file: Path) -> list[TalkQuestion]:
    found: dict[int | str, TalkQuestion] = {}
    for place, row in read_table(file, "question"):
        turns = field_of(place, row, "turns")
        if not isinstance(turns, list) or len(turns) != TURNS or not all(isinstance(t, str) for t in turns):
            raise DataError(f"{place}: 'turns' must be {TURNS} texts")
        name = field_of(place, row, "question_id")
        if not isinstance(name, int | str) or name in found:
            raise DataError(f"{place}: 'question_id' must be a number or text of its own, not {name!r}")
        found[name] = TalkQuestion(name, text_of(place, row, "category"), (turns[0], turns[1]))
    if not found:
        raise DataError(f"'{file}': holds no question")
    return list(found.values())


def _references(
    folder: Path, judge: str, questions: Sequence[TalkQuestion]
) -> dict[int | str, tuple[str, str]]:
    file = find_file(folder, (f"{stem_of(judge)}.jsonl", f"{JUDGE}.jsonl"))
    if file is None:
        return {}
    wanted = [question.id for question in questions if question.category in WITH_REFERENCE]
    rows = keyed(read_table(file), lambda place, row: field_of(place, row, "question_id"), wanted).rows
    return {name: _turns(place, row) for name, (place, row) in rows.items()}


def _prompts(folder: Path) -> tuple[dict[str, JudgePrompt], bool]:
    """(prompts by name, whether they are this package's)."""
    file = find_file(folder, PROMPT_FILES)
    if file is None:
        return dict(RATING_PROMPTS), True
    found = {
        text_of(place, row, "name"): JudgePrompt(
            text_of(place, row, "name"),
            text_of(place, row, "system_prompt"),
            text_of(place, row, "prompt_template"),
        )
        for place, row in read_table(file)
    }
    absent = [name for name in RATING_PROMPTS if name not in found]
    if absent:
        raise DataError(f"'{file}': has no prompt '{absent[0]}'")
    return {name: found[name] for name in RATING_PROMPTS}, False


def _spread(questions: Sequence[TalkQuestion], limit: int) -> list[TalkQuestion]:
    """`limit` questions, the categories' first ones before their second ones; in the file's order."""
    if limit < 1:
        raise ConfigError("--limit counts questions, from 1")
    place: dict[str, int] = {}
    rank = {}
    for question in questions:
        rank[question.id] = place[question.category] = place.get(question.category, -1) + 1
    taken = {question.id for question in sorted(questions, key=lambda q: rank[q.id])[:limit]}
    return [question for question in questions if question.id in taken]


# --- answers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TalkAnswers:
    """A model's answers by question, and what is odd about the file they came in.

    Attributes:
        model: the name of the file, as FastChat has it.
        oddities: ids of rows that are there twice, of no question, or not there.
    """

    model: str
    turns: Mapping[int | str, tuple[str, str]]
    oddities: Keyed

    @property
    def hash(self) -> str:
        """Of the texts."""
        return content_hash(sorted([str(name), *turns] for name, turns in self.turns.items()))


def read_talk_answers(path: str | Path, bench: MTBench, model: str | None = None) -> TalkAnswers:
    """An answer file of FastChat: `question_id`, `choices[0].turns`. The last row of a question counts.

    A number that is there as a text is the number. Rows of questions that a limit leaves out are passed over.

    Args:
        model: its name, where the file's is not.

    Raises:
        DataError: a line that is no such row.
    """
    names = [question.id for question in bench.questions]
    rows = [
        (place, row)
        for place, row in read_table(path, "answer")
        if bench.question_of(place, row) not in bench.left_out
    ]
    found = keyed(rows, bench.question_of, names)
    turns = {name: _turns(place, row) for name, (place, row) in found.rows.items()}
    return TalkAnswers(model or Path(path).stem, turns, found)


def _turns(place: str, row: Row) -> tuple[str, str]:
    if not isinstance(field_of(place, row, "choices", 0, "turns"), list):
        raise DataError(f"{place}: 'choices.0.turns' must be a list of {TURNS} texts")
    first, second = (text_of(place, row, "choices", 0, "turns", turn) for turn in range(TURNS))
    return first, second


def answer_row(question: TalkQuestion, model: str, turns: Sequence[str], tstamp: float) -> Row:
    """A row of FastChat's answer file. The id is made from the texts: a file written twice is the same."""
    return {
        "question_id": question.id,
        "answer_id": content_hash([str(question.id), model, list(turns)])[:22],
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": tstamp,
    }


def generation_questions(bench: MTBench, max_tokens: int = ANSWER_TOKENS) -> list[Question]:
    """The questions as a generator takes them, each with its category's temperature."""
    return [
        Question(
            question.id,
            question.turns,
            Settings(temperature=TEMPERATURES.get(question.category, 0.0), max_tokens=max_tokens),
        )
        for question in bench.questions
    ]
