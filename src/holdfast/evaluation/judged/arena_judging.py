"""The two games of each question: played with a judge, or read from a judgment file in either layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.judged.arena_hard import GAMES, Arena, Protocol, go_on, pair_messages
from holdfast.evaluation.judged.arena_questions import ArenaQuestion, question_id
from holdfast.evaluation.judged.assets import Row, field_of, read_table, text_of
from holdfast.evaluation.judged.judging import Judge, Judgment, Known, Replies, gather
from holdfast.evaluation.judged.judgment_files import (
    ASKED_WITH,
    ERROR,
    JUDGMENT_FOLDER,
    AskedWith,
    asked_with,
)
from holdfast.evaluation.judged.verdict_parsers import arena_label, arena_label_v01


@dataclass(frozen=True)
class Game:
    """One order of one question, judged.

    Attributes:
        label: as the protocol's parser read it; None where it found none.
        text: everything the judge said.
        prompt: its user message; None where a file does not keep it.
        system: its system message, empty for none; None where a file does not keep it.
        asked: how it was asked; None where a file does not say.
    """

    label: str | None
    text: str
    prompt: str | None
    system: str | None = None
    asked: AskedWith | None = None


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

    @property
    def count(self) -> int:
        """Of the games that are there."""
        return sum(game is not None for game in self.games)


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

    @property
    def place(self) -> tuple[str, int]:
        """Which game of which question."""
        return self.question.id, self.game


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
    heard = {call.request.key: [call.request] for call in calls if call.request.key in said.texts}
    # What a file has is all that the judge said there, its second attempt too.
    by_us = heard.keys() - said.imported
    open_calls = [call for call in calls if call.request.key in by_us]
    for attempt in range(2, arena.attempts + 1):
        open_calls = [
            call for call in open_calls if arena_label_v01(_joined(arena, said, heard[call.request.key]))[1]
        ]
        further = []
        for call in open_calls:
            key = call.request.key
            talk = go_on(call.messages, said.texts[heard[key][-1].key])
            request = judge.request(talk, call.question.id, call.game, attempt, key[3])
            further.append((replace(call, messages=talk), request))
        said.add(gather(judge, [request for _, request in further], folder))
        open_calls = []
        for call, request in further:
            if request.key in said.texts:
                heard[call.request.key].append(request)
                open_calls.append(call)
            else:
                # A judge that could not be asked to go on is no verdict yet: the next run asks it again.
                del heard[call.request.key]
    games: dict[str, dict[int, Game]] = {}
    for call in calls:
        requests = heard.get(call.request.key)
        if requests is not None:
            text = _joined(arena, said, requests)
            game = Game(
                read_label(arena.protocol, text),
                text,
                call.messages[-1]["content"],
                call.messages[0]["content"] if call.messages[0]["role"] == "system" else "",
                _asked_with(said, requests),
            )
            games.setdefault(call.question.id, {})[call.game] = game
    return [Judged(name, (found.get(1), found.get(2))) for name, found in games.items()], said


def _joined(arena: Arena, said: Replies, requests: Sequence[Request]) -> str:
    """A judge's replies as one text; the original v0.1 joins them with a line break before each."""
    texts = [said.texts[request.key] for request in requests]
    return "".join(f"\n{text}" for text in texts) if arena.protocol == "v0.1" else texts[0]


def _asked_with(said: Replies, requests: Sequence[Request]) -> AskedWith | None:
    told = [asked for request in requests if (asked := said.asked_with[request.key]) is not None]
    return replace(told[0], served=tuple(name for asked in told for name in asked.served)) if told else None


# --- files ---------------------------------------------------------------------------------------------


def judged_rows(
    arena: Arena, judged: Sequence[Judged], *, model: str, baseline: str, judge: str, old: bool = False
) -> list[Row]:
    """Rows for the questions with both games. A row of a file stays as it is, unless the layout changes; one that
    would lose a message of the judge by that, or be given one, is left out.

    Args:
        baseline, judge: where `judged` names none.
        old: in the layout before April 2025, else in the current one; a tool reads files of its own layout alone.
    """
    questions = {question.id: question for question in arena.questions}
    rows: list[Row] = []
    for one in judged:
        if None in one.games:
            continue
        if one.row is not None and is_old(one.row) == old:
            rows.append(one.row)
            continue
        question = questions.get(one.question)
        if question is None:
            continue
        system = arena.prompt_of(question).system
        if not all(game is not None and _can_change(game, system, old) for game in one.games):
            continue
        head: Row = {"question_id": one.question}
        if not old:
            head = {"uid": one.question, "category": question.category}
        head |= {"judge": one.judge or judge, "model": model, "baseline": one.baseline or baseline}
        rows.append(
            head | {"games": [_game_row(game, system, old) for game in one.games if game is not None]}
        )
    return rows


def _can_change(game: Game, system: str, old: bool) -> bool:
    """Whether the other layout can say what the judge was asked; games of ours say it in both."""
    said = game.asked is not None or not (game.system if old else game.system is None and system)
    return game.prompt is not None and said


def _game_row(game: Game, system: str, old: bool) -> Row:
    """A game as a file has it; `system` is asked with where the game does not say."""
    if old:  # which has no place for the system message
        asked = {} if game.asked is None else {ASKED_WITH: replace(game.asked, system=game.system).as_row()}
        return {"user_prompt": game.prompt, "judgment": game.text, "score": game.label} | asked
    asked = {} if game.asked is None else {ASKED_WITH: replace(game.asked, system=None).as_row()}
    system = system if game.system is None else game.system
    return {
        "score": game.label,
        "judgment": {"answer": game.text},
        "prompt": [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": game.prompt},
        ],
    } | asked


def read_judged(path: str | Path, model: str | None = None, *, required: bool = True) -> list[Judged]:
    """A judgment file in either layout, row by row, several of one question too.

    Args:
        model: whose rows; None: the file must be of one model.

    Raises:
        DataError: a line is of another layout; no row of the model where one is required, or rows of several.
    """
    found, models = [], set()
    folder_judge = _judge_of_folder(Path(path))
    for place, row in read_table(path, "judgment"):
        name = text_of(place, row, "model")
        models.add(name)
        # other models' too: what is written beside them must tell them apart
        question = question_id(place, row)
        if model is not None and name != model:
            continue
        games = field_of(place, row, "games")
        if not isinstance(games, list) or len(games) != GAMES:
            raise DataError(f"{place}: 'games' must be {GAMES}, one in each order")
        first, second = (_read_game(place, game) for game in games)
        judge = text_of(place, row, "judge") if "judge" in row else folder_judge
        baseline = text_of(place, row, "baseline") if "baseline" in row else None
        found.append(Judged(question, (first, second), judge, baseline, row))
    if required and not found:
        raise DataError(
            f"'{path}': no judgments of '{model}'; it has those of {', '.join(sorted(models)) or 'nobody'}"
        )
    if model is None and len(models) > 1:
        raise DataError(f"'{path}': has judgments of {', '.join(sorted(models))}; say whose with --model-id")
    return found


def _judge_of_folder(path: Path) -> str | None:
    """Who judged, where rows do not say so, as those of the early v0.1: the folder within `model_judgment`."""
    folders = path.absolute().parent.parts
    if JUDGMENT_FOLDER not in folders:
        return None
    at = len(folders) - folders[::-1].index(JUDGMENT_FOLDER)
    return "/".join(folders[at:]) or None


def is_old(row: Row) -> bool:
    """Whether a row is of the layout before April 2025."""
    return "uid" not in row


def judgments_of(arena: Arena, judged: Sequence[Judged]) -> list[Judgment]:
    """The games that are there. Of two attempts the whole text counts as one reply."""
    return [
        Judgment(
            place=(one.question, number),
            judge=one.judge,
            prompt=game.prompt,
            system=game.system,
            # the line break before each reply is the original's, and put there again
            text=game.text.removeprefix("\n") if arena.protocol == "v0.1" else game.text,
            asked=game.asked,
        )
        for one in judged
        for number, game in enumerate(one.games, start=1)
        if game is not None
    ]


def models_of(path: str | Path) -> list[str]:
    """The models whose judgments a file holds, in the order of its rows."""
    return list(dict.fromkeys(text_of(place, row, "model") for place, row in read_table(path, "judgment")))


def said_by(place: str, row: Row) -> list[tuple[int, Game] | None]:
    """What a judgment row says game by game, and to what; None for a game that is not there."""
    games = field_of(place, row, "games")
    read = [_read_game(place, game) for game in (games if isinstance(games, list) else [])]
    # the line break before each reply is the original's, and in no reply
    return [
        None if game is None else (number, replace(game, text=game.text.removeprefix("\n"), asked=None))
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
    asked = asked_with(place, game)
    if "user_prompt" in game:
        system = None if asked is None else asked.system
        return Game(label, text, text_of(place, game, "user_prompt"), system, asked)
    if "prompt" not in game:
        return Game(label, text, None, asked=asked)
    first = text_of(place, game, "prompt", 0, "role")
    system = text_of(place, game, "prompt", 0, "content") if first == "system" else ""
    return Game(label, text, text_of(place, game, "prompt", -1, "content"), system, asked)
