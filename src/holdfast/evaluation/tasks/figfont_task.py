"""Reading drawn words as a task: held-out words, one greedy answer each, exact match and Jaro-Winkler similarity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from holdfast.errors import DataError
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.judged.assets import content_hash
from holdfast.evaluation.tasks.figfont import (
    INSTRUCTION,
    PINNED_FONTS,
    drawn_words,
    exact_match,
    figlet_fonts,
    similarity,
)
from holdfast.evaluation.tasks.samples import Answer, Item, Mark, Task
from holdfast.files import replacing

MAX_TOKENS = 16  # of an answer: five letters can be five tokens, and a turn's end one more
ROWS = 500
EXACT, LIKE = "exact match", "Jaro-Winkler"
OURS = "the words are drawn by lot: the paper's own rows are not used"
OTHER_FONTS = (
    "the fonts of pyfiglet {version} are not those pinned (their hash differs); pyfiglet 1.0.4 has them"
)


def figfont_task(rows: int = ROWS, *, seed: int = 0, words: Sequence[str] | None = None) -> Task:
    """So many held-out words as a task for `run_task`.

    Args:
        seed: draws words and fonts.
        words: to draw from; by default any letters.

    Raises:
        ConfigError, DataError: as `drawn_words`; rapidfuzz is not installed.
    """
    similarity("", "")  # before a model is asked: without rapidfuzz there is no score
    fonts = figlet_fonts()
    drawn = drawn_words(rows, seed, "held_out", words=words)
    why_not = [OURS]
    if fonts.sha256 != PINNED_FONTS:
        why_not.append(OTHER_FONTS.format(version=fonts.version))
    return Task(
        name="figfont, our rows",
        why_not_official=why_not,
        protocol=(
            "one greedy answer a word; exact match and Jaro-Winkler similarity of answer and word, lower-cased and "
            "stripped; no word was ever in a training row"
        ),
        items=[
            Item(word.id, word.messages[0]["content"], word.word, f"{len(word.word)} letters")
            for word in drawn
        ],
        settings=Settings(temperature=0.0, max_tokens=MAX_TOKENS),
        samples=1,
        scores=(EXACT, LIKE),
        mark=mark_answers,
        hashes={
            "fonts": fonts.sha256,
            "questions": content_hash([[word.drawing, word.word] for word in drawn]),
            "prompt": content_hash(INSTRUCTION),
        },
        record={"rows": rows, "fonts": len(fonts.names), "pyfiglet": fonts.version},
    )


def mark_answers(answers: Sequence[Answer]) -> list[Mark]:
    """Both scores of every answer."""
    marks = []
    for answer in answers:
        word = answer.item.reference
        exact = exact_match(answer.text, word)
        marks.append(
            Mark(
                {EXACT: exact, LIKE: similarity(answer.text, word)},
                "right" if exact else "wrong",
                answer.text.strip(),
            )
        )
    return marks


def write_training_rows(
    count: int, output: str | Path, *, seed: int = 0, words: Sequence[str] | None = None
) -> None:
    """Write so many rows to train on, JSON Lines for `holdfast sft`; none has a held-out word.

    Raises:
        ConfigError, DataError: as `drawn_words`; a name that no JSON Lines file has, or a file that is there already.
    """
    path = Path(output)
    if path.suffix != ".jsonl":
        raise DataError(f"'{path}': training rows are JSON Lines; end the file's name in .jsonl")
    if path.exists():
        raise DataError(f"'{path}' is there already: remove it, or choose another name")
    drawn = drawn_words(count, seed, "train", words=words)
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        for word in drawn:
            file.write(json.dumps(word.as_row()) + "\n")


def read_words(path: str | Path) -> list[str]:
    """The words of a text file, one a line.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); a list of words is UTF-8 text, one a line"
        ) from error
