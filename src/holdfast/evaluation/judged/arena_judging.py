"""The two games of each question: played with a judge, or read from a judgment file in either layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.judged.arena_hard import (
    GAMES,
    Arena,
    ArenaQuestion,
    Protocol,
    go_on,
    pair_messages,
    question_id,
)
from holdfast.evaluation.judged.assets import Row, field_of, read_table, text_of
from holdfast.evaluation.judged.judging import Judge, Known, Replies, gather
from holdfast.evaluation.judged.judgment_files import ERROR
from holdfast.evaluation.judged.verdict_parsers import arena_label, arena_label_v01


@dataclass(frozen=True)
class Game:
    """One order of one question, judged.

    Attributes:
        label: as the protocol's parser read it; None where it found none.
        text: everything the judge said.
        prompt: its user message; None where a file does not keep it.
        system: its system message, empty for none; None where a file does not keep it.
    """

    label: str | None
    text: str
    prompt: str | None
    system: str | None = None

    def answers(self, messages: Sequence[Mapping[str, str]]) -> bool:
        """Whether it is the judgment of exactly these messages, as far as is known."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        return self.prompt == messages[-1]["content"] and self.system in (None, system)


@dataclass(frozen=True)
class Judged:
    """Both games of a question: the baseline is A in the first, B in the second. None: a game that is not there.

    Attributes:
        judge, baseline: as a file names them; None where it does not, or there is no file.
        row: of the file.
    """

    question: str
    games: tuple[Game | None, Game | None]
    judge: str | None = None
    baseline: str | None = None
    row: Row | None = field(default=None, compare=False, repr=False)

    @property
    def labels(self) -> tuple[str | None, str | None]:
        """Of the two games."""
        first, second = (None if game is None else game.label for game in self.games)
        return first, second


def read_label(protocol: Protocol, text: str) -> str | None:
    """The label that the protocol's own parser reads."""
    return arena_label(text) if protocol == "current" else arena_label_v01(text)[0]


# --- playing -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GameCall:
    """A game to be judged; `game` is 1 or 2."""

    question: ArenaQuestion
    game: int
    messages: list[dict[str, str]]
    request: Request


def game_calls(
    arena: Arena, judge: Judge, baseline: Mapping[str, str], model: Mapping[str, str], judging: int = 1
) -> list[GameCall]:
    """Two calls for each question that both sides answered; `judging` counts the times that the same is asked."""
    calls = []
    for question in arena.questions:
        if question.id not in baseline or question.id not in model:
            continue
        sides = (baseline[question.id], model[question.id])
        for game, (first, second) in enumerate((sides, sides[::-1]), start=1):
            messages = pair_messages(arena, question, first, second)
            request = judge.request(messages, question.id, game, 1, judging)
            calls.append(GameCall(question, game, messages, request))
    return calls


def play(
    arena: Arena, judge: Judge, calls: Sequence[GameCall], folder: Path, known: Sequence[Known] = ()
) -> tuple[list[Judged], Replies]:
    """Have every game judged; by the original protocol a judge without a label is asked to go on.

    Args:
        known: replies to first attempts that judgment files hold (see `gather`).

    Returns:
        what came of the questions with at least one game, in their order, and all replies.

    Raises:
        HoldfastError: as `gather`.
    """
    said = gather(judge, [call.request for call in calls], folder, known)
    texts = {
        call.request.key: said.texts[call.request.key] for call in calls if call.request.key in said.texts
    }
    # The original joins a judge's replies with a line break before each.
    heard = {key: f"\n{text}" if arena.protocol == "v0.1" else text for key, text in texts.items()}
    open_calls = [call for call in calls if call.request.key in heard]
    for attempt in range(2, arena.attempts + 1):
        open_calls = [call for call in open_calls if arena_label_v01(heard[call.request.key])[1]]
        further = {}
        for call in open_calls:
            talk = go_on(call.messages, texts[call.request.key])
            judging = call.request.key[3]
            request = judge.request(talk, call.question.id, call.game, attempt, judging)
            further[call.request.key] = replace(call, messages=talk, request=request)
        more = gather(judge, [call.request for call in further.values()], folder)
        _add(said, more)
        for key, call in further.items():
            if call.request.key in more.texts:
                texts[key] = more.texts[call.request.key]
                heard[key] += f"\n{texts[key]}"
        # A judge that could not be asked to go on is no verdict yet: the game is asked again by the next run.
        open_calls = [
            replace(call, messages=further[call.request.key].messages)
            for call in open_calls
            if further[call.request.key].request.key in more.texts
        ]
    games: dict[str, dict[int, Game]] = {}
    for call in calls:
        if call.request.key in heard:
            text = heard[call.request.key]
            game = Game(read_label(arena.protocol, text), text, call.messages[-1]["content"])
            games.setdefault(call.question.id, {})[call.game] = game
    return [Judged(name, (found.get(1), found.get(2))) for name, found in games.items()], said


def _add(said: Replies, more: Replies) -> None:
    said.texts |= more.texts
    said.times |= more.times
    said.failed |= more.failed
    said.cut += more.cut
    said.asked += more.asked
    said.served = dict(Counter(said.served) + Counter(more.served))


# --- files ---------------------------------------------------------------------------------------------


def judged_rows(
    arena: Arena, judged: Sequence[Judged], *, model: str, baseline: str, judge: str
) -> list[Row]:
    """Rows of the current layout, for the questions with both games."""
    categories = {question.id: question.category for question in arena.questions}
    system = [{"role": "system", "content": arena.prompt.system}] if arena.prompt.system else []
    return [
        {
            "uid": one.question,
            "category": categories[one.question],
            "judge": judge,
            "model": model,
            "baseline": baseline,
            "games": [
                {
                    "score": game.label,
                    "judgment": {"answer": game.text},
                    "prompt": [*system, {"role": "user", "content": game.prompt}],
                }
                for game in one.games
                if game is not None
            ],
        }
        for one in judged
        if None not in one.games
    ]


def read_judged(path: str | Path, model: str | None = None, *, required: bool = True) -> list[Judged]:
    """A judgment file in either layout, row by row, several of one question too.

    Args:
        model: whose rows; None: the file must be of one model.

    Raises:
        DataError: a line is of another layout; no row of the model where one is required, or rows of several.
    """
    found, models = [], set()
    for place, row in read_table(path, "judgment"):
        name = text_of(place, row, "model")
        models.add(name)
        if model is not None and name != model:
            continue
        games = field_of(place, row, "games")
        if not isinstance(games, list) or len(games) != GAMES:
            raise DataError(f"{place}: 'games' must be {GAMES}, one in each order")
        first, second = (_read_game(place, game) for game in games)
        named = {key: text_of(place, row, key) for key in ("judge", "baseline") if key in row}
        found.append(Judged(question_id(place, row), (first, second), **named, row=row))
    if required and not found:
        raise DataError(
            f"'{path}': no judgments of '{model}'; it has those of {', '.join(sorted(models)) or 'nobody'}"
        )
    if model is None and len(models) > 1:
        raise DataError(f"'{path}': has judgments of {', '.join(sorted(models))}; say whose with --model-id")
    return found


def models_of(path: str | Path) -> list[str]:
    """The models whose judgments a file holds, in the order of its rows."""
    return list(dict.fromkeys(text_of(place, row, "model") for place, row in read_table(path, "judgment")))


def said_by(place: str, row: Row) -> list[tuple[int, str | None, str] | None]:
    """What a judgment row says game by game, and to which prompt; None for a game that is not there."""
    games = field_of(place, row, "games")
    read = [_read_game(place, game) for game in (games if isinstance(games, list) else [])]
    # the line break before each reply is the original's, and in no reply
    return [
        None if game is None else (number, game.prompt, game.text.removeprefix("\n"))
        for number, game in enumerate(read, start=1)
    ]


def _read_game(place: str, game: Any) -> Game | None:
    """A game; None where it is null, or the original tool's note that the judge gave no reply."""
    if game is None:
        return None
    label = field_of(place, game, "score")
    if label is not None and not isinstance(label, str):
        raise DataError(f"{place}: a game's 'score' must be a label or null, not {label!r}")
    judgment = field_of(place, game, "judgment")
    text = judgment if isinstance(judgment, str) else text_of(place, game, "judgment", "answer")
    if label is None and ERROR in text.splitlines():  # of two attempts, either may have failed
        return None
    if "user_prompt" in game:
        return Game(label, text, text_of(place, game, "user_prompt"))
    if "prompt" not in game:
        return Game(label, text, None)
    first = text_of(place, game, "prompt", 0, "role")
    system = text_of(place, game, "prompt", 0, "content") if first == "system" else ""
    return Game(label, text, text_of(place, game, "prompt", -1, "content"), system)
