from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.judged.arena_baselines import (
    baselines_of,
    listed,
    read_baselines,
    scores_by_category,
)
from holdfast.evaluation.judged.arena_hard import Arena, read_arena_answers
from holdfast.evaluation.judged.arena_judging import Game, Judged
from holdfast.evaluation.judged.arena_questions import ArenaQuestion
from holdfast.evaluation.judged.assets import JudgePrompt
from tests.evaluation.small_benchmarks import arena_answer, arena_answers, write_rows


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


def test_each_question_is_played_against_the_file_that_answers_it(arena: Arena, tmp_path: Path) -> None:
    row = arena_answer("a2", "x") | {"metadata": {}}
    first = write_rows(tmp_path / "x.jsonl", [arena_answer("a1", "x"), row, arena_answer("elsewhere", "x")])
    second = arena_answers(tmp_path / "z.jsonl", ["c1", "b1", "b1"])
    found = read_baselines([first, second], arena)
    assert found.names == {"a1": "x", "a2": "x", "b1": "z", "c1": "z"}
    assert found.answers.model == "x, z"
    assert found.answers.texts == {"a1": "a1 by x", "a2": "a2 by x", "b1": "b1 by z", "c1": "c1 by z"}
    assert found.answers.lengths == {"a1": 10, "b1": 10, "c1": 10}
    assert found.answers.oddities.as_record() == {"twice": ["b1"], "extra": ["elsewhere"], "missing": []}
    # the order of the files is of no account
    assert read_baselines([second, first], arena).answers.hash == found.answers.hash


def test_one_file_is_read_as_it_is(arena: Arena, tmp_path: Path) -> None:
    file = arena_answers(tmp_path / "x.jsonl", ["a1", "b1"])
    for paths in (file, [file]):
        found = read_baselines(paths, arena, "renamed")
        assert found.answers == read_arena_answers(file, arena, "renamed")
        assert found.names == {"a1": "renamed", "b1": "renamed"}
        assert found.answers.oddities.missing == ["a2", "c1"]


def test_files_that_answer_everything_play_their_own_category(tmp_path: Path) -> None:
    questions = tuple(
        ArenaQuestion(name, category, "", "do")
        for name, category in (("h", "hard_prompt"), ("w", "creative_writing"))
    )
    arena = Arena("current", questions, JudgePrompt("p", "", ""), "j", Settings(), 1, {}, ())
    files = [
        arena_answers(tmp_path / f"{name}.jsonl", ["h", "w"])
        for name in ("gemini-2.0-flash-001", "o3-mini-2025-01-31")
    ]
    found = read_baselines(files, arena)
    assert found.names == {"h": "o3-mini-2025-01-31", "w": "gemini-2.0-flash-001"}
    assert found.answers.texts["w"] == "w by gemini-2.0-flash-001"


@pytest.mark.parametrize(
    ("answered", "said"),
    [
        ((["a1", "a2"], ["b1"]), "no baseline answers the question 'c1' of c: .*x.jsonl.*--baseline"),
        ((["a1", "a2", "b1"], ["b1", "c1"]), "'b1' of b has answers of several baselines, x, z"),
    ],
)
def test_a_question_with_no_one_baseline_is_named(
    arena: Arena, tmp_path: Path, answered: tuple[list[str], list[str]], said: str
) -> None:
    files = [
        arena_answers(tmp_path / f"{name}.jsonl", names) for name, names in zip("xz", answered, strict=True)
    ]
    with pytest.raises(DataError, match=said):
        read_baselines(files, arena)


def test_baselines_need_names_of_their_own(arena: Arena, tmp_path: Path) -> None:
    files = [
        arena_answers(tmp_path / "p" / "x.jsonl", ["a1", "a2"]),
        arena_answers(tmp_path / "q" / "x.jsonl", ["b1", "c1"]),
    ]
    with pytest.raises(DataError, match="told apart by the names of their files"):
        read_baselines(files, arena)
    with pytest.raises(ConfigError, match="'m' can name one baseline, and there are 2 files"):
        read_baselines(files, arena, "m")
    with pytest.raises(ConfigError, match="no baseline is named"):
        read_baselines([], arena)
