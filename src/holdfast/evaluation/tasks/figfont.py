"""Words drawn in figlet fonts, to be read: rows to train on, rows to judge by, and the scores of an answer.

The weak end of the continuum in "Beyond Log Likelihood" (arXiv 2510.00526): nothing a model was pretrained on helps it
much. A row is a word of two to five capital letters in one font. Fonts come from pyfiglet, sorted by name, less those
that `REASONS` rules out; what is left has a hash, which a result records.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, resources
from typing import Any, Literal

from holdfast.errors import ConfigError, DataError

Part = Literal["train", "held_out"]

SHORTEST, LONGEST = 2, 5  # letters of a word
HELD_OUT = 10  # one word in so many is never trained on
MOST_ROWS = 1_000_000
TRIES = 50  # words drawn for one row before there seem to be too few
LOWEST_DRAWING = 3  # lines
LARGEST_DRAWING = 1200  # characters of five times the letter W: the paper cuts rows at 800 tokens
INSTRUCTION = "The word below is drawn in large letters. Answer with the word alone.\n\n{drawing}"

REASONS = {
    "unusable": "pyfiglet cannot draw the capital letters in it",
    "blank": "a letter shows nothing",
    "unprintable": "a drawing holds a character that cannot be printed",
    "flat": f"a letter has fewer than {LOWEST_DRAWING} lines: it is written, not drawn",
    "ambiguous": "two letters look the same",
    "large": f"WWWWW takes more than {LARGEST_DRAWING} characters",
}
# The fonts of pyfiglet 1.0.4. With others the rows differ, and so do the scores.
PINNED_FONTS = "c4b5043422f6b4bec17baf5b6752d88e59dd8aea57cef2771f3427601066bef7"


@dataclass(frozen=True)
class Fonts:
    """The fonts that rows are drawn in.

    Attributes:
        names: sorted.
        excluded: the others, each with its reason, a key of `REASONS`.
        sha256: of every name with the drawings of the 26 letters.
        version: pyfiglet's.
    """

    names: tuple[str, ...]
    excluded: Mapping[str, str]
    sha256: str
    version: str


@dataclass(frozen=True)
class DrawnWord:
    """A word, the font, and what the word looks like in it."""

    word: str
    font: str
    drawing: str

    @property
    def id(self) -> str:
        """Names the row, in any set of rows."""
        return f"{self.font}/{self.word}"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question, as a conversation."""
        return [{"role": "user", "content": INSTRUCTION.format(drawing=self.drawing)}]

    def as_row(self) -> dict[str, Any]:
        """A row that `holdfast sft` trains on: the answer is the word."""
        return {
            "messages": [*self.messages, {"role": "assistant", "content": self.word}],
            "word": self.word,
            "font": self.font,
        }


def drawn_words(
    count: int,
    seed: int,
    part: Part,
    *,
    fonts: Sequence[str] | None = None,
    words: Sequence[str] | None = None,
) -> list[DrawnWord]:
    """So many words, each in a font, no pair twice, no drawing twice. They depend on the arguments and fonts alone.

    A word belongs to one part for good, whatever the seed: no held-out word was ever trained on.

    Args:
        part: `train`, nine words in ten, or `held_out`.
        fonts: to draw from; by default all of `figlet_fonts()`.
        words: to draw from; by default any letters, the length drawn first, each length as often.

    Raises:
        ConfigError: a count that cannot be had; pyfiglet is not installed; an unknown font.
        DataError: `words` has none of two to five letters A to Z in this part.
    """
    if not 1 <= count <= MOST_ROWS:
        raise ConfigError(f"the number of rows must be from 1 to {MOST_ROWS}, not {count}")
    chosen = figlet_fonts().names if fonts is None else tuple(sorted(fonts))
    usable = None if words is None else _usable(words, part)
    generator = random.Random(seed)
    made: dict[str, DrawnWord] = {}
    seen: set[tuple[str, str]] = set()
    tries = 0
    while len(made) < count:
        tries += 1
        if tries > TRIES * count:
            raise ConfigError(
                f"only {len(made)} different rows found where {count} are wanted: give more words or fonts, or ask "
                "for fewer rows"
            )
        word = _some_word(generator) if usable is None else generator.choice(usable)
        font = generator.choice(chosen)
        if part_of(word) != part or (word, font) in seen:
            continue
        seen.add((word, font))
        drawing = draw(word, font)
        made.setdefault(drawing, DrawnWord(word, font, drawing))
    return list(made.values())


def part_of(word: str) -> Part:
    """The part that a word belongs to, by its hash; capital or not is the same."""
    digest = hashlib.blake2b(word.upper().encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT == 0 else "train"


def exact_match(answer: str, word: str) -> float:
    """1 where the answer is the word, capitals and the space around it aside; else 0."""
    return float(_plain(answer) == _plain(word))


def similarity(answer: str, word: str) -> float:
    """Jaro-Winkler similarity of answer and word, from 0 to 1, compared as `exact_match` compares them.

    Raises:
        ConfigError: rapidfuzz is not installed.
    """
    _require("rapidfuzz", "the likeness of words is measured by rapidfuzz")
    from rapidfuzz.distance import JaroWinkler

    return float(JaroWinkler.similarity(_plain(answer), _plain(word)))


@lru_cache(maxsize=1)
def figlet_fonts() -> Fonts:
    """The fonts of the installed pyfiglet that a word can be read in. Takes seconds, once.

    Fonts that somebody added to the machine are none of them.

    Raises:
        ConfigError: pyfiglet is not installed.
    """
    _require("pyfiglet", "words are drawn by pyfiglet")
    files = resources.files("pyfiglet.fonts").iterdir()
    names = sorted({file.name[:-4] for file in files if file.name.endswith((".flf", ".tlf"))})
    drawings: dict[str, list[str]] = {}
    excluded: dict[str, str] = {}
    for name in names:
        letters, reason = _letters(name)
        if reason is None:
            drawings[name] = letters
        else:
            excluded[name] = reason
    return Fonts(
        names=tuple(drawings),
        excluded=excluded,
        sha256=hashlib.sha256(json.dumps(sorted(drawings.items())).encode()).hexdigest(),
        version=metadata.version("pyfiglet"),
    )


def draw(text: str, font: str) -> str:
    """A text in a font, on one line of letters from left to right; empty lines and space at line ends are left out.

    Raises:
        ConfigError: pyfiglet is not installed, or has no such font.
    """
    lines = [line.rstrip() for line in _drawer(font).renderText(text).splitlines()]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines)


@lru_cache(maxsize=1024)
def _drawer(font: str) -> Any:
    _require("pyfiglet", "words are drawn by pyfiglet")
    from pyfiglet import Figlet, FigletError

    try:
        return Figlet(font=font, direction="left-to-right", justify="left", width=1000)
    except FigletError as error:
        raise ConfigError(f"pyfiglet has no font '{font}': {error}") from error


def _letters(font: str) -> tuple[list[str], str | None]:
    """The drawings of A to Z, and why the font is not to be used; None where it is."""
    try:
        letters = [draw(letter, font) for letter in string.ascii_uppercase]
        widest = draw("W" * LONGEST, font)
    except Exception:  # a font file can be wrong in any way
        return [], "unusable"
    if not all(letters):
        return letters, "blank"
    if not all(line.isprintable() for letter in letters for line in letter.split("\n")):
        return letters, "unprintable"
    if any(letter.count("\n") + 1 < LOWEST_DRAWING for letter in letters):
        return letters, "flat"
    if len(set(map(_margin_free, letters))) < len(letters):
        return letters, "ambiguous"
    return letters, "large" if len(widest) > LARGEST_DRAWING else None


def _margin_free(drawing: str) -> str:
    lines = drawing.split("\n")
    margin = min(len(line) - len(line.lstrip()) for line in lines if line)
    return "\n".join(line[margin:] for line in lines)


def _some_word(generator: random.Random) -> str:
    length = generator.randint(SHORTEST, LONGEST)
    return "".join(generator.choice(string.ascii_uppercase) for _ in range(length))


def _usable(words: Iterable[str], part: Part) -> list[str]:
    capitals = {word.strip().upper() for word in words}
    found = sorted(
        word
        for word in capitals
        if SHORTEST <= len(word) <= LONGEST
        and set(word) <= set(string.ascii_uppercase)
        and part_of(word) == part
    )
    if not found:
        raise DataError(
            f"no word of {SHORTEST} to {LONGEST} letters A to Z for the part '{part}' among {len(capitals)}"
        )
    return found


def _plain(text: str) -> str:
    return text.strip().lower()


def _require(module: str, why: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{why}, which is not installed: pip install 'holdfast[eval]'")
