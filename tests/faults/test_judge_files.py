"""What a judgment or answer file says of how it came about is heeded, in this folder or in another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.judged.arena_run import run_arena
from holdfast.evaluation.judged.arena_scores import original_scores
from holdfast.evaluation.judged.judging import Judge
from holdfast.evaluation.judged.mt_bench import JUDGE_SETTINGS, load_mt_bench
from holdfast.evaluation.judged.mt_bench_run import run_mt_bench
from holdfast.evaluation.judged.run import Run
from holdfast.evaluation.statistics import Interval
from tests.evaluation.scripted import Scripted
from tests.evaluation.small_benchmarks import talk_answers, write_rows
from tests.faults.judged_folders import ARENA_FILE, Games, Talk, label, rating, rows_of

WARM = {"temperature": 1}


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path / "talk")


@pytest.fixture
def games(tmp_path: Path) -> Games:
    return Games(tmp_path / "games")


def elsewhere(run: Talk | Games, folder: Path) -> Path:
    """A copy of the judgment file alone, out of its folder."""
    folder.mkdir(parents=True)
    return Path(shutil.copy(run.file, folder / run.file.name))


# --- under which settings, and by whom -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [Talk, Games])
def test_a_file_of_ours_brings_its_settings_and_its_server_along(
    tmp_path: Path, kind: type[Talk] | type[Games]
) -> None:
    run, said = kind(tmp_path), rating if kind is Talk else label
    judge = Scripted(said)
    judge.model = "somebody-else"
    first = run.run(judge, settings=replace(JUDGE_SETTINGS, extra=WARM))
    file = elsewhere(run, tmp_path / "moved")
    run.out = tmp_path / "other"
    found = run.run(None, judgments=file)
    assert first.judge is not None
    assert found.judge is not None
    assert found.judge["settings"] == first.judge["settings"]
    assert found.judge["served"] == first.judge["served"] == {"somebody-else": 8 if kind is Talk else 12}
    for results in (first, found):
        assert any("judge settings other than" in reason for reason in results.why_not_official)
        assert any("says that it is somebody-else" in reason for reason in results.why_not_official)


@pytest.mark.parametrize("kind", [Talk, Games])
def test_a_copied_judgment_folder_is_held_to_its_settings(
    tmp_path: Path, kind: type[Talk] | type[Games]
) -> None:
    """Also where `judge_replies.jsonl` did not come along."""
    run, said = kind(tmp_path), rating if kind is Talk else label
    run.run(Scripted(said))
    (run.out / "judge_replies.jsonl").unlink()
    judge = Scripted(said)
    same = run.run(judge)
    assert judge.asked == 0
    assert same.judge is not None
    assert same.judge["served"] == {"scripted": 8 if kind is Talk else 12}
    (run.out / "judge_replies.jsonl").unlink()
    run.run(judge, settings=replace(JUDGE_SETTINGS, extra=WARM))
    assert judge.asked == (8 if kind is Talk else 12)


def test_judgments_under_several_settings_are_no_score_of_one(talk: Talk) -> None:
    talk.run(Scripted(rating))
    rows = rows_of(talk.file)
    rows[3]["asked_with"]["settings"] |= WARM
    write_rows(talk.file, rows)
    found = talk.run(None, judgments=talk.file)
    assert "judgments under several settings of the judge" in found.why_not_official


def test_mt_bench_rows_of_ours_keep_the_system_message(talk: Talk, tmp_path: Path) -> None:
    talk.run(Scripted(rating))
    file = elsewhere(talk, tmp_path / "moved")
    rows = rows_of(file)
    assert rows[0]["asked_with"]["system"] == "as single-v1"
    rows[0]["asked_with"]["system"] = "as somebody else"
    write_rows(file, rows)
    talk.out = tmp_path / "other"
    assert talk.run(None, judgments=file).missing["other_prompt_or_answer"] == ["1, turn 1"]


@pytest.mark.parametrize("said", ["by me", {"settings": {}}, {"settings": {}, "served": [3]}])
def test_another_layout_of_that_is_named(talk: Talk, said: Any) -> None:
    write_rows(talk.file, [row | {"asked_with": said} for row in talk.original()])
    with pytest.raises(DataError, match=r"gpt-4_single.jsonl:1: 'asked_with' must hold 'settings'"):
        talk.run(None)


def edited(file: Path, before: str, after: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after), encoding="utf-8")


@pytest.mark.parametrize("old", [False, True])
def test_our_rows_keep_the_system_message_in_either_layout(games: Games, tmp_path: Path, old: bool) -> None:
    write_rows(games.file, games.original(old=old)[:5])
    config = games.assets / "judge_config.yaml"
    edited(config, "judge them", "judge them, kindly")
    judge = Scripted(label)
    games.run(judge)
    kind = judge.asked
    assert kind == (2 if old else 12)  # the old layout does not say under which message the tool's were asked
    (games.out / "judge_replies.jsonl").unlink()
    edited(config, "judge them, kindly", "judge them")
    games.run(judge)
    assert judge.asked == kind + 2  # those of the edited message, and no other


def test_settings_of_ones_own_are_not_answered_by_the_original_tools_rows(talk: Talk, games: Games) -> None:
    for run, said, calls in ((talk, rating, 8), (games, label, 12)):
        write_rows(run.file, run.original())
        judge = Scripted(said)
        run.run(judge)
        assert judge.asked == 0
        run.run(judge, settings=replace(JUDGE_SETTINGS, extra=WARM))
        assert judge.asked == calls


def test_rows_of_another_judge_stay_out_of_the_file(talk: Talk, games: Games, tmp_path: Path) -> None:
    rows = [row | {"judge": "k"} for row in games.original()[:4]]
    file = write_rows(tmp_path / "games.jsonl", rows)
    with pytest.raises(DataError, match="judgments by k, not by 'j', which would judge the rest"):
        games.run(Scripted(label), judgments=file)
    nameless = [{key: value for key, value in row.items() if key != "judge"} for row in rows]
    file = write_rows(tmp_path / "games.jsonl", nameless)
    judge = Scripted(label)
    found = games.run(judge, judgments=file)
    assert "8 judgments of a file that does not say who judged" in found.why_not_official
    assert [row["uid"] for row in rows_of(games.file)] == ["q4", "q5"]
    games.run(judge)
    assert judge.asked == 12  # nobody knows that they were its own


def test_rows_that_name_no_judge_are_of_the_folder_they_are_in(games: Games, tmp_path: Path) -> None:
    rows = games.original(old=True)
    file = write_rows(tmp_path / "model_judgment/org/k/m.jsonl", rows)
    found = games.run(None, judgments=file)
    assert found.judge is not None
    assert found.judge["asked"] == "org/k"
    found = games.run(None, judgments=write_rows(tmp_path / "m.jsonl", rows))
    assert "12 judgments of a file that does not say who judged" in found.why_not_official


# --- what was asked halfway ----------------------------------------------------------------------------


def test_a_game_whose_second_attempt_failed_is_no_game(games: Games) -> None:
    def breaks_off(request: Request) -> str | None:
        return None if request.key[2] == 2 else "Hm." if request.key[:2] == ("q1", 1) else label(request)

    found = games.run(Scripted(breaks_off))
    assert found.missing["questions_missing"] == ["q1"]
    assert [row["uid"] for row in rows_of(games.file)] == ["q0", "q2", "q3", "q4", "q5"]
    judge = Scripted(label)
    assert games.run(judge).missing["questions_missing"] == []
    assert judge.asked == 1  # the second attempt alone


def test_a_game_that_the_original_gave_up_on_is_not_asked_a_third_time(games: Games) -> None:
    rows = games.original()
    rows[2]["games"][0] |= {"score": None, "judgment": {"answer": "\nHm.\nStill hm."}}
    write_rows(games.file, rows)
    judge = Scripted(label)
    found = games.run(judge)
    assert judge.asked == 0
    assert found.missing["unread_by_the_official_parser"] == ["q2"]
    assert [row["games"] for row in rows_of(games.file)] == [row["games"] for row in rows]


def test_what_was_put_aside_is_taken_up_again(talk: Talk, games: Games, tmp_path: Path) -> None:
    for run, said in ((talk, rating), (games, label)):
        mine = run.answers
        write_rows(run.file, run.original())
        text = mine.read_text(encoding="utf-8").replace(" by m", " by m, later")
        (tmp_path / run.file.parent.name).mkdir(exist_ok=True)
        later = tmp_path / run.file.parent.name / "m.jsonl"
        later.write_text(text, encoding="utf-8")
        judge = Scripted(said)
        run.run(judge, answers=later)
        asked = judge.asked
        assert asked > 0
        (run.out / "judge_replies.jsonl").unlink()
        run.run(judge, answers=mine)
        assert judge.asked == asked


def test_what_was_judged_again_is_there_before_it_and_read_back(talk: Talk) -> None:
    def stops(request: Request) -> str:
        if request.key[3] == 2:
            raise DataError("the disk is full")
        return rating(request)

    with pytest.raises(DataError, match="the disk is full"):
        talk.run(Scripted(stops), judgings=2)
    assert json.loads((talk.out / "results.json").read_text(encoding="utf-8"))["scores"][0]["n"] == 8
    judge = Scripted(rating)
    talk.run(judge, judgings=2)
    assert judge.asked == 8
    (talk.out / "judge_replies.jsonl").unlink()
    talk.run(judge, judgings=2)
    assert judge.asked == 8


def test_failures_of_a_second_judging_are_listed_as_such(talk: Talk) -> None:
    found = talk.run(Scripted(lambda r: None if r.key[3] == 2 and r.key[0] == 3 else rating(r)), judgings=2)
    assert found.missing["calls_failed"] == dict.fromkeys(
        ["3, 1, judging 2", "3, 2, judging 2"], "the request was refused"
    )
    assert found.missing["judgments_missing"] == []


def test_nobody_who_was_not_asked_failed(talk: Talk) -> None:
    talk.run(Scripted(rating), limit=2)
    found = talk.run(None)
    assert found.missing["calls_failed"] == {}
    assert len(found.missing["judgments_missing"]) == 4


# --- layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_a_file_keeps_its_layout(games: Games, tmp_path: Path, old: bool) -> None:
    """No tool reads a file of both."""
    rows = games.original(old=old)[:3]
    for named in (None, write_rows(tmp_path / "m.jsonl", [row | {"judge": "j"} for row in rows])):
        games.out = tmp_path / ("named" if named else "there")
        if named is None:
            write_rows(games.out / ARENA_FILE, rows)
        games.run(Scripted(label), judgments=named)
        written = rows_of(games.out / ARENA_FILE)
        assert len(written) == 6
        assert {"question_id" in row for row in written} == {old}
        judge = Scripted(label)
        games.run(judge)
        assert judge.asked == 0


def test_rows_of_others_are_written_as_they_are(games: Games, tmp_path: Path) -> None:
    """Questions that these assets do not have, prompts that are not kept, and keys of their own."""
    rows = games.original()
    other = json.loads(json.dumps(rows[0])) | {"uid": "elsewhere", "category": "creative_writing", "more": 1}
    for game in rows[1]["games"]:
        del game["prompt"]
    write_rows(games.file, [other, *rows[:5]])
    judge = Scripted(label)
    games.run(judge, judgments=games.file)
    assert judge.asked == 2
    written = {row["uid"]: row for row in rows_of(games.file)}
    assert [written[row["uid"]] for row in (other, *rows[:5])] == [other, *rows[:5]]
    assert not (games.out / "set_aside").exists()
    write_rows(tmp_path / "there/model_judgment/j/m.jsonl", games.original(old=True)[5:])
    games.out = tmp_path / "there"
    named = write_rows(tmp_path / "named.jsonl", [other, *rows[:4]])
    found = games.run(judge, judgments=named)  # which are of the other layout
    assert found.missing["questions_missing"] == []
    # the old layout has no place for the system message that they were asked with
    assert sorted(row["question_id"] for row in rows_of(games.out / ARENA_FILE)) == ["q4", "q5"]


def test_what_else_a_row_of_others_holds_stays(talk: Talk, games: Games) -> None:
    """Such as the thoughts that the current tool keeps beside a judge's words."""
    rows = games.original()
    for row in rows:
        row["games"][0]["judgment"]["thought"] = "hm"
    write_rows(games.file, rows[:5])
    games.run(Scripted(label))
    assert [row for row in rows_of(games.file) if row["uid"] != "q5"] == rows[:5]
    ratings = [row | {"more": 1} for row in talk.original()]
    write_rows(talk.file, ratings[:7])
    talk.run(Scripted(rating))
    assert [row for row in rows_of(talk.file) if "more" in row] == ratings[:7]


def test_an_error_in_one_game_moves_no_row(games: Games, tmp_path: Path) -> None:
    """v0.1 draws rows by their place in the file."""
    rows = games.original(old=True)
    rows[2]["games"][1] |= {"score": None, "judgment": "\n$ERROR$\n$ERROR$"}
    file = write_rows(tmp_path / "model_judgment/j/m.jsonl", rows)
    found = games.run(None, judgments=file)
    labels = [tuple(game["score"] for game in row["games"]) for row in rows]
    expected = original_scores({"m": labels})["m"]
    shown = {score.name: score for score in found.scores}["original v0.1 tool"]
    assert expected is not None
    assert (shown.value, shown.interval) == (
        expected.value,
        Interval(expected.low, expected.high, expected.level),
    )


def test_a_file_that_does_not_say_was_judged_as_its_configuration_has_it(
    games: Games, tmp_path: Path
) -> None:
    edited(games.assets / "judge_config.yaml", "temperature: 0", "temperature: 0.7")
    file = write_rows(tmp_path / "games.jsonl", games.original())
    found = games.run(None, judgments=file)
    assert any("judge settings other than" in reason for reason in found.why_not_official)


# --- answers -------------------------------------------------------------------------------------------


class Writer(Scripted):
    """A model that answers; `identity` tells what it became."""

    def __init__(self, identity: str = "1") -> None:
        super().__init__(lambda request: f"{identity} says {request.key[0]}, {request.key[2]}")
        self.identity = identity


def written(talk: Talk, writer: Writer, limit: int | None = None, **options: Any) -> Any:
    bench = load_mt_bench(talk.assets, limit=limit)
    judge = Judge("gpt-4", JUDGE_SETTINGS, Scripted(rating))
    return run_mt_bench(bench, Run(talk.out, "m", judge, generator=writer, missing_limit=1.0, **options))


def test_a_part_of_the_questions_leaves_the_others_answers(talk: Talk) -> None:
    file = talk.out / "model_answer/m.jsonl"
    written(talk, Writer())
    written(talk, Writer(), limit=2)
    assert sorted(row["question_id"] for row in rows_of(file)) == [1, 2, 3, 4]
    found = talk.run(None, answers=None)
    assert (found.missing["answers"]["missing"], found.scores[0].n) == ([], 8)
    assert found.settings["generator"] == "scripted"


def test_answers_of_others_and_of_what_the_model_was_are_put_aside(talk: Talk) -> None:
    file = talk_answers(talk.out / "model_answer/m.jsonl")
    theirs = rows_of(file)
    written(talk, Writer(), limit=2)
    assert [row["question_id"] for row in rows_of(file)] == [1, 2]
    assert rows_of(talk.out / "set_aside/model_answer/m.jsonl") == theirs
    before = rows_of(file)
    shutil.rmtree(talk.out / "generation")  # which holds another model's answers
    written(talk, Writer("2"))
    assert [row["choices"][0]["turns"][0] for row in rows_of(file)] == [
        f"2 says {n}, 0" for n in (1, 2, 3, 4)
    ]
    assert rows_of(talk.out / "set_aside/model_answer/m.jsonl") == [*theirs, *before]


def test_how_answers_were_made_goes_with_them(talk: Talk, games: Games, tmp_path: Path) -> None:
    first = written(talk, Writer(), thinking="strip", answer_tokens=64)
    moved = Path(shutil.copy(talk.out / "model_answer/m.jsonl", tmp_path / "m.jsonl"))
    talk.out = tmp_path / "other"
    bench = load_mt_bench(talk.assets)
    judge = Judge("gpt-4", JUDGE_SETTINGS, Scripted(rating))
    found = run_mt_bench(bench, Run(talk.out, "m", judge, answers=moved, missing_limit=1.0))
    for results in (first, found):
        assert "answers of at most 64 tokens, not 1024" in results.why_not_official
        assert "<think> blocks taken out of the answers" in results.why_not_official
    assert found.settings == first.settings
    arena = games.arena()
    run = Run(
        games.out, "m", Judge("j", arena.settings, Scripted(label)), generator=Writer(), answer_tokens=64
    )
    one = run_arena(arena, run, games.baseline)
    again = run_arena(arena, replace(run, generator=None, answer_tokens=None), games.baseline)
    assert one.settings == again.settings
    assert "answers of at most 64 tokens, not 4096" in again.why_not_official


def test_a_score_of_a_part_bears_no_name(talk: Talk, games: Games) -> None:
    """However much the user lets be missing."""
    found = talk.run(Scripted(lambda r: None if r.key[0] == 3 else rating(r)))
    assert "25.0% of the judgments missing or unread, above 5%" in found.why_not_official
    played = games.run(Scripted(lambda r: None if r.key[0] == "q3" else label(r)))
    assert "16.7% of the questions missing or unread, above 5%" in played.why_not_official
