"""Judged games held against Arena-Hard's questions: what is there, twice, missing, unread, or not what was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.evaluation.judged.arena_hard import Arena
from holdfast.evaluation.judged.arena_judging import GameCall, Judged, judgments_of, read_label
from holdfast.evaluation.judged.arena_scores import model_points
from holdfast.evaluation.judged.judging import is_of


@dataclass(frozen=True)
class Read:
    """Judged games held against the benchmark.

    Attributes:
        rows: all, in the order of the file, those of no known question too.
        last: the last row of each question of the benchmark.
        twice, extra, missing: questions with several rows, rows of no question, questions without both games.
        unread: questions with a game that has no label.
        other_score: games whose stored label is not what the protocol's parser reads.
        other_prompt: games whose prompt is not what this benchmark asks about these answers.
    """

    rows: Sequence[Judged]
    last: Mapping[str, Judged]
    twice: Sequence[str]
    extra: Sequence[str]
    missing: Sequence[str]
    unread: Sequence[str]
    other_score: Sequence[str]
    other_prompt: Sequence[str]


def look_at(arena: Arena, rows: Sequence[Judged], calls: Sequence[GameCall]) -> Read:
    """Rows held against the benchmark, and against what it would ask (`calls`; of answers that are there)."""
    names = [question.id for question in arena.questions]
    last = {one.question: one for one in rows}
    known = {name: last[name] for name in names if name in last}
    asked = {call.place: call.messages for call in calls}
    games = [
        (f"{name}, game {number}", game)
        for name, one in known.items()
        for number, game in enumerate(one.games, start=1)
        if game is not None
    ]
    other_prompt = [
        f"{one.place[0]}, game {one.place[1]}"
        for one in judgments_of(arena, list(known.values()))
        # kept prompts alone can be held against anything; the original files have them all
        if one.prompt is not None and one.place in asked and not is_of(one, asked[one.place])
    ]
    return Read(
        rows=rows,
        last=known,
        twice=[name for name, times in Counter(one.question for one in rows).items() if times > 1],
        extra=[name for name in last if name not in known],
        missing=[name for name in names if name not in known or None in known[name].games],
        unread=[
            name for name, one in known.items() if None not in one.games and model_points(one.labels) is None
        ],
        other_score=[place for place, game in games if read_label(arena.protocol, game.text) != game.label],
        other_prompt=other_prompt,
    )
