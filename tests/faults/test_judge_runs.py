"""Whole judged runs in folders that others write to as well: no judgment is lost or paid twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.judged.arena_run import run_arena
from holdfast.evaluation.judged.judging import Judge
from holdfast.evaluation.judged.mt_bench import (
    JUDGE_SETTINGS,
    read_talk_answers,
)
from holdfast.evaluation.judged.run import Run
from tests.evaluation.scripted import Scripted
from tests.evaluation.small_benchmarks import (
    ARENA_IDS,
    arena_answer,
    arena_answers,
    write_rows,
)
from tests.faults.judged_folders import ARENA_FILE, TALK_FILE, Games, Talk, label, rating, rows_of


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path / "talk")


@pytest.fixture
def games(tmp_path: Path) -> Games:
    return Games(tmp_path / "games")


# --- rows of others ------------------------------------------------------------------------------------


def test_a_rescore_counts_the_original_tools_rows_and_writes_nothing(talk: Talk) -> None:
    talk.run(Scripted(rating), limit=2)
    kept = {(row["question_id"], row["turn"]) for row in rows_of(talk.file)}
    more = [row for row in talk.original() if (row["question_id"], row["turn"]) not in kept]
    write_rows(talk.file, [*rows_of(talk.file), *more])
    before = {path: path.read_bytes() for path in (talk.file, talk.out / "judge_replies.jsonl")}
    offline = talk.run(None)
    assert (len(kept), offline.scores[0].n) == (4, 8)
    assert {path: path.read_bytes() for path in before} == before
    judge = Scripted(rating)
    assert talk.run(judge).scores == offline.scores
    assert judge.asked == 0


@pytest.mark.parametrize("old", [False, True])
def test_so_with_arena_hard_in_either_layout(games: Games, old: bool) -> None:
    games.run(Scripted(label), limit=2)
    kept = [row["uid"] for row in rows_of(games.file)]
    rows = games.original(old=old)
    more = [row for row in rows if row["question_id" if old else "uid"] not in kept]
    write_rows(games.file, [*rows_of(games.file), *more])
    before = games.file.read_bytes()
    offline = games.run(None)
    assert (len(kept), offline.missing["questions_missing"]) == (2, [])
    assert games.file.read_bytes() == before
    judge = Scripted(label)
    assert games.run(judge).scores == offline.scores
    assert judge.asked == 0
    assert len(rows_of(games.file)) == 6


def test_each_model_of_a_file_is_taken_in(talk: Talk) -> None:
    write_rows(talk.file, [*talk.original("m"), *talk.original("n")])
    judge = Scripted(rating)
    talk.run(judge, model="m")
    talk.run(judge, model="n")
    assert judge.asked == 0
    assert sorted(row["model"] for row in rows_of(talk.file)) == ["m"] * 8 + ["n"] * 8


def test_a_file_of_other_models_alone_is_no_error(talk: Talk) -> None:
    write_rows(talk.file, talk.original("n"))
    judge = Scripted(rating)
    assert talk.run(judge).scores[0].n == 8
    assert judge.asked == 8
    assert len(rows_of(talk.file)) == 16


def test_a_part_of_the_questions_leaves_the_others_rows(talk: Talk, games: Games) -> None:
    for run, said, count in ((talk, rating, 8), (games, label, 6)):
        run.out = run.out.with_name(f"out-{count}")
        run.file = run.out / run.file.relative_to(run.out.with_name("out"))
        run.run(Scripted(said), judgings=2)
        again = [path for path in run.out.glob("model_rejudgment/**/*") if path.is_file()]
        assert len(again) == 1
        run.run(Scripted(said), limit=2, judgings=2)
        assert len(rows_of(run.file)) == len(rows_of(again[0])) == count


def test_judges_whose_names_end_alike_have_their_own_files(talk: Talk, games: Games) -> None:
    for judge in ("org/j", "other/j"):
        talk.run(Scripted(rating), judge=judge, judgings=2)
        games.run(Scripted(label), judge=judge, judgings=2)
        assert len(rows_of(talk.out / f"model_judgment/{judge}_single.jsonl")) == 8
        assert len(rows_of(talk.out / f"model_rejudgment/{judge}_single.judging-2.jsonl")) == 8
        # the original reads each file of its folder as a model's
        file = games.out / "model_judgment" / judge / "m.jsonl"
        assert list(file.parent.iterdir()) == [file]
        assert len(rows_of(file)) == 6
        assert len(rows_of(games.out / f"model_rejudgment/{judge}/m.judging-2.jsonl")) == 6


def test_what_does_not_fit_is_put_aside_before_it_is_replaced(
    talk: Talk, games: Games, caplog: pytest.LogCaptureFixture
) -> None:
    rows = talk.original()
    strange = rows[0] | {"user_prompt": "of another answer"}
    write_rows(talk.file, [strange, *rows[1:]])
    judge = Scripted(rating)
    talk.run(judge)
    assert judge.asked == 1
    assert rows_of(talk.out / "set_aside" / TALK_FILE) == [strange]
    assert "judgments that others replace are kept" in caplog.text
    caplog.clear()
    talk.run(judge)
    assert caplog.text == ""
    other = games.original()[0]
    other["games"][1] |= {"judgment": {"answer": "said later [[A>>B]]"}, "score": "A>>B"}
    write_rows(games.file, [other])
    games.run(Scripted(label))  # asks for all but question 0, whose row fits
    assert not (games.out / "set_aside" / ARENA_FILE).exists()
    write_rows(games.file, games.original())  # another verdict on question 0 than the one that is paid for
    games.run(Scripted(label))
    assert rows_of(games.out / "set_aside" / ARENA_FILE) == games.original()[:1]


def test_other_settings_are_asked_anew_though_the_file_has_our_own_rows(talk: Talk, games: Games) -> None:
    games.run(
        Scripted(lambda request: "I cannot say" if request.key[2] == 1 else "[[A>B]]")
    )  # asked to go on
    talk.run(Scripted(rating))
    told = replace(JUDGE_SETTINGS, extra={"seed": 1})
    with pytest.raises(DataError, match="8 replies to the same questions under other judge settings"):
        talk.run(None, settings=told)
    with pytest.raises(DataError, match="12 replies to the same questions under other judge settings"):
        games.run(None, settings=told)
    judge = Scripted(rating)
    talk.run(judge, settings=told)
    assert judge.asked == 8
    judge = Scripted(label)
    games.run(judge, settings=told)
    assert judge.asked == 12


def edited(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_an_edited_system_message_is_asked_anew_and_never_taken_for_the_other(
    talk: Talk, games: Games
) -> None:
    """Which is where the instructions of both benchmarks stand: no judgment of one is one of the other."""
    for run, said, file, before, calls in (
        (games.run, label, games.assets / "judge_config.yaml", "judge them", 12),
        (talk.run, rating, talk.assets / "judge_prompts.jsonl", "as single-v1-multi-turn", 2),
    ):
        run(Scripted(said))
        edited(file, before, f"{before}, kindly")
        judge = Scripted(said)
        run(judge)
        assert judge.asked == calls
        edited(file, f"{before}, kindly", before)
        judge = Scripted(said)
        run(judge)
        assert judge.asked == 0  # each has its own


def test_a_file_that_keeps_the_system_message_is_held_to_it(games: Games, tmp_path: Path) -> None:
    rows = games.original()
    file = write_rows(tmp_path / "games.jsonl", rows)
    edited(file, "judge them", "judge them, kindly")
    judge = Scripted(label)
    games.run(judge, judgments=None)
    assert judge.asked == 12
    found = games.run(None, judgments=file)
    assert any("other prompt" in reason or "prompt" in reason for reason in found.why_not_official)


def test_other_numbers_of_attempts_are_a_departure(games: Games) -> None:
    edited(games.assets / "judge_config.yaml", "attempts: 2", "attempts: 5")
    assert "5 attempts of a judge that gives no label, not 2" in games.arena().departures


# --- what counts as there ------------------------------------------------------------------------------


def test_errors_and_null_games_of_a_file_are_asked_for(talk: Talk, games: Games, tmp_path: Path) -> None:
    rows = talk.original()
    rows[2] |= {"judgment": "$ERROR$", "score": -1}
    file = write_rows(tmp_path / "gpt-4_single.jsonl", rows)
    assert talk.run(None, judgments=file).missing["judgments_missing"] == ["3, turn 1"]
    judge = Scripted(rating)
    assert talk.run(judge, judgments=file).scores[0].n == 8
    assert judge.asked == 1
    played = games.original()
    played[1]["games"][1] = None
    # the original v0.1 asks twice, and joins what it gets
    played[3]["games"][0] |= {"score": None, "judgment": {"answer": "\n$ERROR$\n$ERROR$"}}
    file = write_rows(tmp_path / "games.jsonl", played)
    offline = games.run(None, judgments=file)
    assert offline.missing["questions_missing"] == ["q1", "q3"]
    judge = Scripted(label)
    found = games.run(judge, judgments=file)
    assert found.missing["questions_missing"] == []
    assert judge.asked == 2  # the other games of both fit
    assert len(rows_of(games.file)) == 6


def test_a_limit_takes_its_questions_alone_out_of_a_file(talk: Talk, games: Games, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "full.jsonl", talk.original())
    found = talk.run(None, limit=2, judgments=file)
    assert {score.name: score.n for score in found.scores[1:3]} == {"turn 1": 2, "turn 2": 2}
    assert found.missing["judgments_extra"] == []
    assert found.missing["answers"] == {"twice": [], "extra": [], "missing": []}
    full = games.run(None, judgments=write_rows(tmp_path / "games.jsonl", games.original()))
    part = games.run(None, limit=3, judgments=tmp_path / "games.jsonl")
    assert (part.missing["questions_extra"], part.missing["questions_missing"]) == ([], [])
    (counted,) = [score.clusters for score in part.scores if score.name == "clustered by question"]
    assert counted == 3
    assert part.hashes["baseline"] == full.hashes["baseline"]  # the same file


def test_of_two_judges_the_one_that_is_asked_for_counts(talk: Talk, tmp_path: Path) -> None:
    other = [row | {"judgment": "[[1]]", "score": 1} for row in talk.original(judge="org/other")]
    file = write_rows(tmp_path / "both.jsonl", [*talk.original(), *other])
    found = talk.run(None, judgments=file)
    assert (found.scores[0].value, found.scores[0].n) == (5.5, 8)
    assert not any("several judges" in reason for reason in found.why_not_official)
    assert talk.run(None, judgments=file, judge="org/other").scores[0].value == 1


def test_numbers_as_texts_are_the_questions(talk: Talk, tmp_path: Path) -> None:
    rows = [row | {"question_id": str(row["question_id"])} for row in talk.original()]
    found = talk.run(None, judgments=write_rows(tmp_path / "texts.jsonl", rows))
    assert (found.missing["judgments_extra"], found.missing["judgments_missing"]) == ([], [])
    answers = [row | {"question_id": str(row["question_id"])} for row in rows_of(talk.answers)]
    read = read_talk_answers(write_rows(tmp_path / "a.jsonl", answers), talk.bench())
    assert list(read.turns) == [1, 2, 3, 4]


# --- baselines by category -----------------------------------------------------------------------------

CATEGORIES = {name: "hard_prompt" if name < "q3" else "creative_writing" for name in ARENA_IDS}
BASELINES = {"hard_prompt": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"}


@pytest.fixture
def version_2(games: Games) -> Games:
    """Two categories, each with a baseline of its own, under the current protocol."""
    rows = rows_of(games.assets / "question.jsonl")
    write_rows(games.assets / "question.jsonl", [row | {"category": CATEGORIES[row["uid"]]} for row in rows])
    (games.assets / "judge_config.yaml").write_text("regex_patterns: []\n", encoding="utf-8")
    return games


def test_each_category_is_scored_against_its_own_baseline(version_2: Games, tmp_path: Path) -> None:
    rows = [row | {"baseline": BASELINES[CATEGORIES[row["uid"]]]} for row in version_2.original()]
    file = write_rows(tmp_path / "v2.jsonl", rows)
    run = Run(tmp_path / "out", "m", Judge("j", version_2.arena().settings), judgments=file)
    found = run_arena(version_2.arena(), run, None, "gpt-4-0314")
    by_name = {score.name: score for score in found.scores}
    assert list(by_name) == [found.name, "current tool, hard_prompt", "current tool, creative_writing"]
    assert found.scores[0].value is None
    assert "hard_prompt: o3-mini-2025-01-31; creative_writing: gemini-2.0-flash-001" in found.scores[0].note
    hard = by_name["current tool, hard_prompt"]
    assert hard.note.endswith("against o3-mini-2025-01-31")
    alone = [row for row in rows if CATEGORIES[row["uid"]] == "hard_prompt"]
    run = replace(run, judgments=write_rows(tmp_path / "hard.jsonl", alone), missing_limit=1)
    assert {s.name: s.value for s in run_arena(version_2.arena(), run, None).scores}[
        "current tool"
    ] == hard.value
    assert "gpt-4-0314" not in json.dumps([found.settings, found.why_not_official, found.protocol])


def test_one_baseline_for_all_categories_is_said_and_one_for_some_refused(version_2: Games) -> None:
    found = version_2.run(Scripted(label))
    assert "hard_prompt against gpt-4-0314, not o3-mini-2025-01-31" in found.why_not_official
    assert {"current tool", "current tool, hard_prompt"} <= {score.name for score in found.scores}
    write_rows(version_2.baseline, [arena_answer(name, "o3") for name in ARENA_IDS[:3]])
    with pytest.raises(DataError, match="no answer to any question of creative_writing: give --baseline"):
        version_2.run(Scripted(label))


def test_categories_that_are_judged_one_after_the_other_are_scored_together(version_2: Games) -> None:
    """As the message of a baseline that does not do for all says."""
    questions = rows_of(version_2.assets / "question.jsonl")
    for category, baseline in BASELINES.items():
        names = [name for name in ARENA_IDS if CATEGORIES[name] == category]
        write_rows(version_2.assets / "question.jsonl", [row for row in questions if row["uid"] in names])
        version_2.baseline = arena_answers(version_2.answers.with_name(f"{baseline}.jsonl"), names)
        version_2.run(Scripted(label))
    write_rows(version_2.assets / "question.jsonl", questions)
    run = Run(version_2.out, "m", Judge("j", version_2.arena().settings), judgments=version_2.file)
    found = run_arena(version_2.arena(), run, None, "gpt-4-0314")
    assert [score.name for score in found.scores[1:]] == [f"current tool, {name}" for name in BASELINES]
    assert found.missing["rate"] == 0
