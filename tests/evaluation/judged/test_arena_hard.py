"""Arena-Hard: what the judge is asked, both layouts, both protocols, and pairs of one's own runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.judged.arena_hard import GO_ON, Arena, load_arena, read_arena_answers
from holdfast.evaluation.judged.arena_judging import game_calls, read_judged
from holdfast.evaluation.judged.arena_run import run_arena, run_pairwise
from holdfast.evaluation.judged.judging import Judge
from holdfast.evaluation.judged.run import Run
from holdfast.evaluation.results import Results, read_results
from tests.evaluation.scripted import Scripted
from tests.evaluation.small_benchmarks import ARENA_IDS, arena_answer, arena_answers, arena_assets, write_rows

JUDGE = "gpt-4-1106-preview"


def model_wins(request: Request) -> str:
    """The model is B in game 1, and A in game 2."""
    return "My verdict: " + ("[[B>A]]" if request.key[1] == 1 else "[[A>>B]]")


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    return load_arena(arena_assets(tmp_path / "arena"))


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    return arena_answers(tmp_path / "gpt-4-0314.jsonl")


def a_run(tmp_path: Path, judge: Scripted | None, **options: Any) -> Run:
    answers = options.pop("answers", None) or arena_answers(tmp_path / "m.jsonl")
    asks = Judge(options.pop("judge_name", JUDGE), load_arena(tmp_path / "arena").settings, judge)
    return Run(tmp_path / options.pop("out", "out"), "m", asks, answers=answers, **options)


def value(results: Results, name: str) -> float | None:
    return {score.name: score.value for score in results.scores}[name]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_baseline_is_a_and_then_the_model(arena: Arena, baseline: Path, tmp_path: Path) -> None:
    other = read_arena_answers(baseline, arena)
    answers = read_arena_answers(arena_answers(tmp_path / "m.jsonl"), arena)
    first, second = game_calls(arena, Judge(JUDGE, arena.settings), other.texts, answers.texts)[:2]
    assert first.messages == [
        {"role": "system", "content": "judge them"},
        {"role": "user", "content": "P do q0 A q0 by gpt-4-0314 B q0 by m"},
    ]
    assert second.messages[1]["content"] == "P do q0 A q0 by m B q0 by gpt-4-0314"


def test_scores_files_and_resumption(arena: Arena, baseline: Path, tmp_path: Path) -> None:
    judge = Scripted(model_wins)
    found = run_arena(arena, a_run(tmp_path, judge), baseline)
    assert found.scores[0].value == 100.0
    assert value(found, "win rate") == 100.0
    assert value(found, "clustered by question") == 100.0
    assert found.name == "Arena-Hard questions, custom"
    assert found.questions[0]["score"] == 1.0
    (row, *others) = rows_of(tmp_path / f"out/model_judgment/{JUDGE}/m.jsonl")
    assert len(others) == 5
    assert list(row) == "uid category judge model baseline games".split()
    assert [list(game) for game in row["games"]] == [["score", "judgment", "prompt", "asked_with"]] * 2
    assert (row["games"][1]["score"], row["baseline"]) == ("A>>B", "gpt-4-0314")
    assert row["games"][0]["judgment"]["answer"] == "\nMy verdict: [[B>A]]"  # as the original joins replies
    assert judge.asked == 12
    again = run_arena(arena, a_run(tmp_path, judge), baseline)
    assert judge.asked == 12
    offline = run_arena(arena, a_run(tmp_path, None), baseline)
    assert found.scores == again.scores == offline.scores
    assert read_results(tmp_path / "out") == offline


def test_a_judge_without_a_label_is_asked_to_go_on(arena: Arena, baseline: Path, tmp_path: Path) -> None:
    asked: list[Request] = []

    def hesitant(request: Request) -> str:
        asked.append(request)
        return model_wins(request) if request.key[2] == 2 or request.key[0] != "q1" else "Let me think."

    judge = Scripted(hesitant)
    found = run_arena(arena, a_run(tmp_path, judge), baseline)
    assert judge.asked == 14
    assert [message["content"] for message in asked[-1].messages][2:] == ["Let me think.", GO_ON]
    assert found.scores[0].value == 100.0
    row = rows_of(tmp_path / f"out/model_judgment/{JUDGE}/m.jsonl")[1]
    assert row["games"][0]["judgment"]["answer"] == "\nLet me think.\nMy verdict: [[B>A]]"
    run_arena(arena, a_run(tmp_path, judge), baseline)
    assert judge.asked == 14
    silent = Scripted(lambda r: "Hm.")
    none = run_arena(arena, a_run(tmp_path, silent, out="b"), baseline)
    assert silent.asked == 24  # once more each, and no further
    assert none.scores[0].value is None
    assert none.missing["rate"] == 1.0


def test_the_current_protocol_asks_once(tmp_path: Path, baseline: Path) -> None:
    folder = arena_assets(tmp_path / "arena")
    config = folder / "judge_config.yaml"
    config.write_text(config.read_text("utf-8") + "regex_patterns: []\n", encoding="utf-8")
    arena = load_arena(folder)
    assert arena.protocol == "current"
    judge = Scripted(lambda r: "final: [b>a]" if r.key[1] == 1 else "Hm." if r.key[0] == "q2" else "[[A=B]]")
    found = run_arena(arena, a_run(tmp_path, judge, missing_limit=0.2), baseline)
    assert judge.asked == 12
    assert found.missing["unread_by_the_official_parser"] == ["q2"]
    assert found.scores[0].n == 10  # the whole question is left out
    assert found.scores[0].note.startswith("current tool")
    assert rows_of(tmp_path / f"out/model_judgment/{JUDGE}/m.jsonl")[0]["games"][0]["score"] == "B>A"
    assert found.missing["unread_by_the_strict_parser"]["q0, game 1"] == "only a label written otherwise"


def test_a_question_is_strict_where_both_games_are_clear(tmp_path: Path, baseline: Path) -> None:
    judge = Scripted(lambda r: "[[A>B]] or [[B>A]]" if r.key[:2] == ("q0", 1) else "[[B>A]]")
    found = run_arena(load_arena(arena_assets(tmp_path / "arena")), a_run(tmp_path, judge), baseline)
    assert [question["strict"] for question in found.questions] == [None] + [0.5] * 5


def test_the_layout_before_april_2025_is_read(arena: Arena, baseline: Path, tmp_path: Path) -> None:
    run_arena(arena, a_run(tmp_path, Scripted(model_wins)), baseline)
    new = tmp_path / f"out/model_judgment/{JUDGE}/m.jsonl"
    old_rows = [
        {
            "question_id": row["uid"],
            "model": "m",
            "judge": JUDGE,
            "games": [
                {
                    "user_prompt": game["prompt"][-1]["content"],
                    "judgment": game["judgment"]["answer"],
                    "score": game["score"],
                }
                for game in row["games"]
            ],
        }
        for row in rows_of(new)
    ]
    old = write_rows(tmp_path / "old.jsonl", old_rows)
    found = [
        replace(
            one,
            baseline=None,
            games=tuple(replace(game, system=None, asked=None) for game in one.games if game),
        )
        for one in read_judged(new)
    ]
    # it keeps neither the name of the baseline, nor the system message, nor how it was asked
    assert read_judged(old) == found
    answers = [
        {
            "question_id": name,
            "model_id": "m",
            "choices": [{"index": 0, "turns": [{"content": f"{name} by m", "token_len": 3}]}],
        }
        for name in ARENA_IDS
    ]
    judge = Scripted(model_wins)
    run = a_run(
        tmp_path, judge, answers=write_rows(tmp_path / "old" / "m.jsonl", answers), judgments=old, out="c"
    )
    found = run_arena(arena, run, baseline)
    assert judge.asked == 0
    assert found.scores[0].value == 100.0
    assert found.missing["other_prompt_or_answer"] == []


def test_a_folder_of_the_original_tool_is_gone_on_with(arena: Arena, baseline: Path, tmp_path: Path) -> None:
    whole = run_arena(arena, a_run(tmp_path, Scripted(model_wins), out="a"), baseline)
    name = f"model_judgment/{JUDGE}/m.jsonl"
    rows = rows_of(tmp_path / "a" / name)
    rows[0]["games"][0]["prompt"][-1]["content"] = "of another answer"
    write_rows(tmp_path / "out" / name, rows[:4])
    judge = Scripted(model_wins)
    found = run_arena(arena, a_run(tmp_path, judge), baseline)
    assert judge.asked == 5  # two questions that were missing, and the game of another answer
    assert found.scores == whole.scores
    assert rows_of(tmp_path / "out" / name) == rows_of(tmp_path / "a" / name)
    assert run_arena(arena, a_run(tmp_path, judge), baseline).scores == found.scores
    assert judge.asked == 5


def test_judgments_of_other_answers_are_found_out(arena: Arena, baseline: Path, tmp_path: Path) -> None:
    run_arena(arena, a_run(tmp_path, Scripted(model_wins)), baseline)
    judgments = tmp_path / f"out/model_judgment/{JUDGE}/m.jsonl"
    changed = [arena_answer(name, "m" if name != "q3" else "x") for name in ARENA_IDS]
    run = a_run(
        tmp_path, None, answers=write_rows(tmp_path / "d" / "m.jsonl", changed), judgments=judgments, out="d"
    )
    found = run_arena(arena, run, baseline)
    assert found.missing["other_prompt_or_answer"] == ["q3, game 1", "q3, game 2"]
    assert any("2 games of another prompt" in reason for reason in found.why_not_official)


def test_two_of_ones_own_runs(tmp_path: Path) -> None:
    arena = load_arena(arena_assets(tmp_path / "arena"), own_prompt=True)
    first = arena_answers(tmp_path / "before.jsonl")
    # B in both orders: whoever comes second
    run = a_run(tmp_path, Scripted(lambda r: "[[B>A]]"), judge_name="any")
    found = run_pairwise(arena, run, first)
    assert (found.scores[0].name, found.scores[0].value) == ("win rate against before", 50.0)
    assert found.scores[0].interval is not None
    assert found.scores[0].interval.low == 50.0  # each question is one win and one loss
    assert not found.official
    better = run_pairwise(arena, a_run(tmp_path, Scripted(model_wins), judge_name="any", out="b"), first)
    assert better.scores[0].value == 100.0
    assert read_results(tmp_path / "b") == better


def test_nothing_to_judge_says_what_to_give(arena: Arena, baseline: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="by 'gpt-4-1106-preview' is there: nobody was asked"):
        run_arena(arena, a_run(tmp_path, None), baseline)
    with pytest.raises(DataError, match="name a file with --baseline"):
        run_arena(arena, a_run(tmp_path, Scripted(model_wins)), None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "must be a mapping"),
        ("temperature: hot", "'temperature' must be a number"),
        (f"temperature: {10**400}", "'temperature' must be a number"),
        ("max_tokens: 0", "'max_tokens' must be a whole number from 1"),
        ("a: [", "cannot be read as YAML"),
        ("system_prompt: 3\nprompt_template: x", "'system_prompt' must be a text"),
    ],
)
def test_a_configuration_of_another_layout(tmp_path: Path, text: str, said: str) -> None:
    folder = arena_assets(tmp_path / "arena")
    (folder / "judge_config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        load_arena(folder)


def test_the_official_files_are_known(shared_data: Path, tmp_path: Path) -> None:
    arena = load_arena(shared_data / "arena_hard_v0.1")
    assert (arena.protocol, arena.judge, arena.attempts) == ("v0.1", JUDGE, 2)
    assert (arena.settings.temperature, arena.settings.max_tokens) == (0.0, 4096)
    assert arena.departures == ()
    answers = shared_data / "arena_hard_v0.1/model_answer/gpt-3.5-turbo-0125.jsonl"
    baseline = shared_data / "arena_hard_v0.1/model_answer/gpt-4-0314.jsonl"

    def longer_wins(request: Request) -> str:
        """The longer answer, by the closing marks of the official template."""
        first, second = request.messages[-1]["content"].split("<|The Start of Assistant B's Answer|>")
        return (
            "[[A>B]]"
            if len(first) > 2 * len(second)
            else "[[B>>A]]"
            if len(second) > len(first)
            else "[[A=B]]"
        )

    scripted = Scripted(longer_wins)
    scripted.model = JUDGE
    judge = Judge(JUDGE, arena.settings, scripted)
    found = run_arena(arena, Run(tmp_path, "gpt-3.5-turbo-0125", judge, answers=answers), baseline)
    assert found.official, found.why_not_official
    assert found.name == "Arena-Hard v0.1"
    assert found.missing["rate"] == 0
    assert found.scores[0].value is not None
    assert found.scores[0].note.startswith("original v0.1 tool; percent; prints score: ")
    styled = next(score for score in found.scores if score.name == "at equal style")
    assert styled.value is not None
    assert "length in characters" in styled.note
    limited = load_arena(shared_data / "arena_hard_v0.1", limit=10)
    assert len(limited.questions) == 10
    assert len({question.cluster for question in limited.questions}) == 10
    few = run_arena(
        limited,
        Run(tmp_path / "few", "gpt-3.5-turbo-0125", judge, answers=answers, missing_limit=1),
        baseline,
    )
    assert few.why_not_official == ["10 of 500 questions"]  # the baseline's file is the official one
