"""Arena-Hard's questions, in both layouts of the file, and MT-Bench's for pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import DataError
from holdfast.evaluation.judged.assets import Row, field_of, read_table, text_of

QUESTION_FILES = (
    "question.jsonl",
    "data/arena-hard-v0.1/question.jsonl",
    "data/arena-hard-v2.0/question.jsonl",
)


@dataclass(frozen=True)
class ArenaQuestion:
    """A request; `category` is `arena-hard-v0.1` for the original's."""

    id: str
    category: str
    cluster: str
    prompt: str


def read_questions(file: Path) -> list[ArenaQuestion]:
    """The questions of `question.jsonl`, in its order.

    Raises:
        DataError: a line that is no question, or one that is there twice; the file holds none.
    """
    found: dict[str, ArenaQuestion] = {}
    for place, row in read_table(file, "question"):
        name = question_id(place, row)
        if name in found:
            raise DataError(f"{place}: the question '{name}' is there twice; remove one")
        prompt = text_of(place, row, "prompt") if "prompt" in row else joined_turns(place, row, "turns")
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


def joined_turns(place: str, row: Row, *path: str | int) -> str:
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
