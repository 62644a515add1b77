from __future__ import annotations

import pytest

from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.judged.arena_baselines import baselines_of, listed, scores_by_category
from holdfast.evaluation.judged.arena_hard import Arena, ArenaQuestion
from holdfast.evaluation.judged.arena_judging import Game, Judged
from holdfast.evaluation.judged.assets import JudgePrompt


@pytest.fixture
def arena() -> Arena:
    questions = tuple(ArenaQuestion(name, name[0], "", "do") for name in ("a1", "a2", "b1", "c1"))
    return Arena("current", questions, JudgePrompt("p", "", ""), "j", Settings(), 1, {}, ())


def judged(name: str, label: str, baseline: str | None) -> Judged:
    """The model's win (`B>A`) or a tie in the first game, and a tie in the second."""
    return Judged(name, (Game(label, "", None), Game("A=B", "", None)), "j", baseline)


def test_each_category_has_its_baselines_and_its_score(arena: Arena) -> None:
    rows = [judged("a1", "B>A", "x"), judged("a2", "A=B", None), judged("b1", "A=B", "z")]
    against = baselines_of(arena, {one.question: one for one in rows}, "x")
    assert against == {"a": {"x"}, "b": {"z"}, "c": set()}
    assert listed(against) == "a: x; b: z"
    a, b, c = scores_by_category(arena, rows, against, 42)
    assert (b.name, b.value, b.n) == ("current tool, b", 50, 2)
    assert b.note.endswith("; against z")
    assert a.value is not None
    assert 50 < a.value < 75  # of draws from 1, .5, .5, .5
    assert (c.value, c.note) == (None, "no game with a label")


def test_a_category_against_several_baselines_has_no_score(arena: Arena) -> None:
    rows = [judged("a1", "B>A", "y"), judged("a2", "A=B", "x")]
    against = baselines_of(arena, {one.question: one for one in rows}, "x")
    score = scores_by_category(arena, rows, against, 42)[0]
    assert (score.value, score.note) == (None, "several baselines: x, y")
