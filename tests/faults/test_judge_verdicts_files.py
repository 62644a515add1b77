"""Files exchanged with the original tools both ways; missing, extra and duplicate rows are listed, and scored as
there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.judged.arena_hard import load_arena
from holdfast.evaluation.judged.arena_run import run_arena
from holdfast.evaluation.judged.arena_scores import model_points
from holdfast.evaluation.judged.judging import Judge
from holdfast.evaluation.judged.mt_bench import JUDGE_SETTINGS, load_mt_bench
from holdfast.evaluation.judged.mt_bench_run import run_mt_bench
from holdfast.evaluation.judged.run import Run
from holdfast.evaluation.judged.verdict_parsers import fastchat_rating
from holdfast.evaluation.results import Results
from tests.evaluation.scripted import Scripted
from tests.evaluation.small_benchmarks import (
    ARENA_IDS,
    arena_answer,
    arena_answers,
    arena_assets,
    talk_answer,
    talk_answers,
    talk_assets,
    write_rows,
)

pandas = pytest.importorskip("pandas")


def judgment(number: int, turn: int, text: str, model: str = "m") -> dict[str, Any]:
    """A row as FastChat writes it."""
    return {
        "question_id": number,
        "model": model,
        "judge": ["gpt-4", "single-v1" if turn == 1 else "single-v1-multi-turn"],
        "user_prompt": "?",
        "judgment": text,
        "score": fastchat_rating(text),
        "turn": turn,
        "tstamp": 1.5,
    }


def fastchat_shows(file: Path, model: str) -> tuple[float, float, float]:
    """(first turn, second turn, average), by the steps of FastChat's `show_result.py`."""
    df = pandas.read_json(file, lines=True)[["model", "score", "turn"]]
    df = df[df["score"] != -1]
    first, second = (
        df[df["turn"] == turn].groupby(["model", "turn"]).mean().loc[(model, turn), "score"]
        for turn in (1, 2)
    )
    return first, second, df[["model", "score"]].groupby(["model"]).mean().loc[model, "score"]


def ratings(results: Results) -> tuple[float | None, ...]:
    by_name = {score.name: score.value for score in results.scores}
    return by_name["turn 1"], by_name["turn 2"], results.scores[0].value


def rescored(tmp_path: Path, file: Path, answers: Path | None = None) -> Results:
    bench = load_mt_bench(talk_assets(tmp_path / "mt"))
    run = Run(
        tmp_path / "out",
        "m",
        Judge("gpt-4", JUDGE_SETTINGS),
        answers=answers,
        judgments=file,
        missing_limit=1,
    )
    return run_mt_bench(bench, run)


def test_a_judgment_file_with_everything_odd_scores_as_there(tmp_path: Path) -> None:
    rows = [
        judgment(1, 1, "[[3]]"),
        judgment(1, 1, "[[9]]"),  # twice
        judgment(1, 2, "no rating"),  # -1
        judgment(2, 1, "[[7.5]]"),
        judgment(2, 2, "[[2]] or [[10]]"),
        judgment(99, 1, "[[10]]"),  # no such question
        judgment(3, 2, "[[6]]", model="another"),
        judgment(4, 2, "[[5]]") | {"score": 8},  # a stored score that its text does not give
    ]
    file = write_rows(tmp_path / "gpt-4_single.jsonl", rows)
    found = rescored(tmp_path, file)
    assert ratings(found) == fastchat_shows(file, "m")
    assert found.missing["judgments_twice"] == ["1, turn 1"]
    assert found.missing["judgments_extra"] == ["99, turn 1"]
    assert found.missing["judgments_missing"] == ["3, turn 1", "4, turn 1", "3, turn 2"]
    assert found.missing["unread_by_the_official_parser"] == ["1, turn 2"]
    assert found.missing["unread_by_the_strict_parser"] == {
        "1, turn 2": "no rating in double brackets",
        "2, turn 2": "2 ratings that differ",
    }
    assert found.missing["stored_score_differs"] == ["4, turn 2"]
    assert found.missing["rate"] == 0.5


def test_our_files_score_there_as_here(tmp_path: Path) -> None:
    def script(request: Any) -> str:
        return f"[[{int(request.key[0])}.{3 * int(request.key[1])}]]" if request.key[0] != 3 else "?"

    bench = load_mt_bench(talk_assets(tmp_path / "mt"))
    judge = Judge("gpt-4", JUDGE_SETTINGS, Scripted(script))
    run = Run(tmp_path / "out", "m", judge, answers=talk_answers(tmp_path / "m.jsonl"), missing_limit=1)
    found = run_mt_bench(bench, run)
    file = tmp_path / "out/model_judgment/gpt-4_single.jsonl"
    assert ratings(found) == pytest.approx(fastchat_shows(file, "m"), abs=1e-12)
    back = rescored(tmp_path / "back", file, tmp_path / "m.jsonl")
    assert back.scores == found.scores
    assert back.missing["other_prompt_or_answer"] == []


def test_odd_answer_files_are_listed_and_the_last_row_counts(tmp_path: Path) -> None:
    rows = [
        talk_answer(1, "m", "first"),
        talk_answer(1, "m", "last"),
        talk_answer(77, "m"),
        talk_answer(2, "m"),
    ]
    bench = load_mt_bench(talk_assets(tmp_path / "mt"))
    asked: list[str] = []

    def script(request: Any) -> str:
        asked.append(request.messages[-1]["content"])
        return "[[5]]"

    judge = Judge("gpt-4", JUDGE_SETTINGS, Scripted(script))
    answers = write_rows(tmp_path / "m.jsonl", rows)
    found = run_mt_bench(bench, Run(tmp_path / "out", "m", judge, answers=answers, missing_limit=1))
    assert found.missing["answers"] == {"twice": [1], "extra": [77], "missing": [3, 4]}
    assert "Q first 1? A last 1.1 by m" in asked
    assert len(asked) == 4
    assert "2 questions without an answer" in found.why_not_official


def arena_row(name: str, labels: tuple[str | None, str | None], *, old: bool) -> dict[str, Any]:
    texts = ["\nI say " + (f"[[{label}]]" if label else "nothing") for label in labels]
    if old:
        games = [
            {"user_prompt": "?", "judgment": text, "score": label}
            for text, label in zip(texts, labels, strict=True)
        ]
        return {"question_id": name, "model": "m", "judge": "j", "games": games}
    games = [
        {"score": label, "judgment": {"answer": text}, "prompt": [{"role": "user", "content": "?"}]}
        for text, label in zip(texts, labels, strict=True)
    ]
    head = {"uid": name, "category": "arena-hard-v0.1", "judge": "j", "model": "m", "baseline": "base"}
    return head | {"games": games}


@pytest.mark.parametrize("old", [False, True])
def test_arena_files_with_everything_odd(tmp_path: Path, old: bool) -> None:
    labels: list[tuple[str, tuple[str | None, str | None]]] = [
        ("q0", ("A>B", "A>>B")),
        ("q0", ("B>A", "A>B")),  # twice
        ("q1", (None, "A>B")),
        ("zz", ("A>>B", "B>>A")),  # no such question
        ("q2", ("A=B", "B>A")),
        ("q4", ("B>>A", "A=B")),
    ]
    file = write_rows(tmp_path / "m.jsonl", (arena_row(name, pair, old=old) for name, pair in labels))
    arena = load_arena(arena_assets(tmp_path / "arena"))
    run = Run(tmp_path / "out", "m", Judge("j", arena.settings), judgments=file, missing_limit=1)
    found = run_arena(arena, run, None)
    assert found.missing["questions_twice"] == ["q0"]
    assert found.missing["questions_extra"] == ["zz"]
    assert found.missing["questions_missing"] == ["q3", "q5"]
    assert found.missing["unread_by_the_official_parser"] == ["q1"]
    assert found.missing["rate"] == 0.5
    by_name = {score.name: score for score in found.scores}
    rows = [points for _, pair in labels for points in model_points(pair) or []]
    assert by_name["current tool"].n == len(rows) == 18
    assert by_name["original v0.1 tool"].n == 19  # the one game of q1 counts there
    assert by_name["clustered by question"].value == pytest.approx(100 * sum(rows) / len(rows))


def test_our_arena_rows_are_read_by_the_tools_own_steps(tmp_path: Path) -> None:
    arena = load_arena(arena_assets(tmp_path / "arena"))
    judge = Judge(
        "j", arena.settings, Scripted(lambda r: "[[A>>B]]" if r.key[0] in ("q0", "q1") else "[[B>A]]")
    )
    run = Run(tmp_path / "out", "m", judge, answers=arena_answers(tmp_path / "m.jsonl"))
    found = run_arena(arena, run, arena_answers(tmp_path / "base.jsonl"))
    data = pandas.read_json(tmp_path / "out/model_judgment/j/m.jsonl", lines=True)
    points = {"A>>B": [1] * 3, "B>A": [0]}
    scores = data.games.map(
        lambda games: points[games[1]["score"]] + [1 - point for point in points[games[0]["score"]]]
    )
    (clustered,) = [score for score in found.scores if score.name == "clustered by question"]
    assert clustered.value == pytest.approx(100 * scores.explode().astype(float).mean())
    assert list(data.uid) == ARENA_IDS


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"question_id": 1', r":2: not JSON"),
        ("[1]", r":2: a judgment is an object|:2: "),
        (json.dumps(judgment(1, 3, "x")), r":2: 'turn' must be 1 or 2"),
        (json.dumps(judgment(1, 1, "x") | {"score": None}), r":2: 'score' must be a number"),
        (
            json.dumps(judgment(1, 1, "x") | {"judgment": 3}),
            r":2: 'judgment' must be a text",
        ),
        (json.dumps(judgment(1, 1, "x") | {"judge": "gpt-4"}), r":2: 'judge' must be a list"),
        (json.dumps(judgment(1, 1, "x") | {"tstamp": float("nan")}), r":2: holds NaN or Infinity"),
        (json.dumps({"model": "m"}), r":2: has no 'judge'"),
    ],
)
def test_a_line_of_another_layout_is_named(tmp_path: Path, row: str, said: str) -> None:
    file = tmp_path / "j.jsonl"
    file.write_text(json.dumps(judgment(1, 1, "[[5]]")) + "\n" + row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=said):
        rescored(tmp_path, file)


def test_judgments_of_nobody_here_are_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "j.jsonl", [judgment(1, 1, "[[5]]", model="n")])
    with pytest.raises(DataError, match="no judgments of 'm'; it has those of n"):
        rescored(tmp_path, file)


def test_arena_answers_of_both_layouts_and_odd_rows(tmp_path: Path) -> None:
    rows = [arena_answer("q0", "old"), arena_answer("q0", "m"), arena_answer("nope", "m")]
    arena = load_arena(arena_assets(tmp_path / "arena"))
    judge = Judge("j", arena.settings, Scripted(lambda r: "[[A=B]]"))
    run = Run(tmp_path / "out", "m", judge, answers=write_rows(tmp_path / "m.jsonl", rows), missing_limit=1)
    found = run_arena(arena, run, arena_answers(tmp_path / "base.jsonl"))
    assert found.missing["answers"] == {
        "twice": ["q0"],
        "extra": ["nope"],
        "missing": ["q1", "q2", "q3", "q4", "q5"],
    }
    assert found.missing["questions_missing"] == ["q1", "q2", "q3", "q4", "q5"]
