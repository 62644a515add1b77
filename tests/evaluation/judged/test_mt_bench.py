"""MT-Bench: what the judge is asked, the files, and the score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.judged.judging import Judge
from holdfast.evaluation.judged.mt_bench import (
    JUDGE_SETTINGS,
    generation_questions,
    load_mt_bench,
    read_talk_answers,
)
from holdfast.evaluation.judged.mt_bench_judging import rating_calls
from holdfast.evaluation.judged.mt_bench_run import run_mt_bench
from holdfast.evaluation.judged.run import Run
from holdfast.evaluation.results import read_results
from tests.evaluation.scripted import Scripted
from tests.evaluation.small_benchmarks import talk_answer, talk_answers, talk_assets, write_rows


def rate(request: Request) -> str:
    """Question n is rated 2n + turn."""
    number, turn = int(request.key[0]), int(request.key[1])
    return f"Rating: [[{2 * number + turn - 1}]]"


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    return talk_assets(tmp_path / "mt_bench")


def a_run(tmp_path: Path, judge: Scripted | None, **options: object) -> Run:
    return Run(
        folder=tmp_path / "out",
        model="m",
        judge=Judge("gpt-4", JUDGE_SETTINGS, judge),
        answers=options.pop("answers", None) or talk_answers(tmp_path / "m.jsonl"),  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )


def test_what_the_judge_is_asked(assets: Path, tmp_path: Path) -> None:
    bench = load_mt_bench(assets)
    answers = read_talk_answers(talk_answers(tmp_path / "m.jsonl"), bench)
    calls = {(c.question.id, c.turn): c for c in rating_calls(bench, answers, Judge("gpt-4", JUDGE_SETTINGS))}
    assert len(calls) == 8
    assert calls[1, 1].messages == [
        {"role": "system", "content": "as single-v1"},
        {"role": "user", "content": "Q first 1? A answer 1.1 by m"},
    ]
    assert calls[2, 1].messages[1]["content"] == "Q first 2? R right 2.1 by gpt-4 A answer 2.1 by m"
    assert calls[4, 2].messages == [
        {"role": "system", "content": "as single-math-v1-multi-turn"},
        {
            "role": "user",
            "content": "R right 4.1 by gpt-4 right 4.2 by gpt-4 first 4? answer 4.1 by m second 4? answer 4.2 by m",
        },
    ]
    assert (calls[1, 1].request.settings.temperature, calls[1, 1].request.settings.max_tokens) == (0, 2048)


def test_each_category_has_its_temperature(assets: Path) -> None:
    questions = generation_questions(load_mt_bench(assets))
    assert [(q.id, q.settings.temperature, q.settings.max_tokens) for q in questions] == [
        (1, 0.7, 1024),
        (2, 0.0, 1024),
        (3, 0.7, 1024),
        (4, 0.0, 1024),
    ]


def test_score_files_and_resumption(assets: Path, tmp_path: Path) -> None:
    bench, judge = load_mt_bench(assets), Scripted(rate)
    found = run_mt_bench(bench, a_run(tmp_path, judge))
    scores = {score.name: score for score in found.scores}
    # turn 1: 2 4 6 8; turn 2: 3 5 7 9
    assert found.scores[0].value == 5.5
    assert (scores["turn 1"].value, scores["turn 2"].value, scores["strict"].value) == (5.0, 6.0, 5.5)
    assert found.scores[0].clusters == 4
    assert {score.name: score.value for score in found.per_category} == {
        "writing": 4.5,
        "math": 4.5,
        "coding": 8.5,
    }
    assert [question["score"] for question in found.questions] == [2.5, 4.5, 6.5, 8.5]
    assert not found.official  # its questions are not the official ones
    assert any("questions that are not the official ones" in reason for reason in found.why_not_official)
    assert read_results(tmp_path / "out") == found
    rows = [
        json.loads(line)
        for line in (tmp_path / "out/model_judgment/gpt-4_single.jsonl").read_text("utf-8").splitlines()
    ]
    assert (
        list(rows[0]) == "question_id model judge user_prompt judgment score turn tstamp asked_with".split()
    )
    assert (rows[0]["judge"], rows[0]["score"], rows[0]["turn"]) == (["gpt-4", "single-v1"], 2, 1)
    assert judge.asked == 8
    again = run_mt_bench(bench, a_run(tmp_path, judge))
    assert judge.asked == 8  # nothing is paid for twice
    assert again.scores == found.scores
    offline = run_mt_bench(bench, a_run(tmp_path, None))
    assert offline.scores == found.scores


def test_what_fails_is_missing_and_asked_again(assets: Path, tmp_path: Path) -> None:
    bench = load_mt_bench(assets)
    half = run_mt_bench(bench, a_run(tmp_path, Scripted(lambda r: None if r.key[0] == 2 else rate(r))))
    assert half.scores[0].value is None
    assert "25.0% of the judgments missing or unread" in half.scores[0].note
    assert half.missing["judgments_missing"] == ["2, turn 1", "2, turn 2"]
    assert half.missing["calls_failed"] == dict.fromkeys(["2, 1", "2, 2"], "the request was refused")
    assert [question["score"] for question in half.questions][1] is None
    judge = Scripted(rate)
    whole = run_mt_bench(bench, a_run(tmp_path, judge))
    assert judge.asked == 2
    assert whole.scores[0].value == 5.5
    lenient = run_mt_bench(
        bench,
        a_run(
            tmp_path / "b",
            Scripted(lambda r: None if r.key[0] == 2 else rate(r)),
            missing_limit=0.3,
            answers=talk_answers(tmp_path / "m.jsonl"),
        ),
    )
    assert lenient.scores[0].value == pytest.approx((2 + 3 + 6 + 7 + 8 + 9) / 6)


def test_another_answer_is_judged_anew(assets: Path, tmp_path: Path) -> None:
    bench = load_mt_bench(assets)
    run_mt_bench(bench, a_run(tmp_path, Scripted(rate)))
    changed = [talk_answer(number, "m", "new" if number == 3 else "answer") for number in (1, 2, 3, 4)]
    judge = Scripted(rate)
    run_mt_bench(bench, a_run(tmp_path, judge, answers=write_rows(tmp_path / "b" / "m.jsonl", changed)))
    assert judge.asked == 2


def test_judgments_of_the_original_tool_are_not_paid_for(assets: Path, tmp_path: Path) -> None:
    bench = load_mt_bench(assets)
    run_mt_bench(bench, a_run(tmp_path / "a", Scripted(rate), answers=talk_answers(tmp_path / "m.jsonl")))
    rows = (tmp_path / "a/out/model_judgment/gpt-4_single.jsonl").read_text("utf-8").splitlines()
    file = tmp_path / "gpt-4_single.jsonl"
    file.write_text("\n".join(rows[:-1]) + "\n", encoding="utf-8")
    judge = Scripted(rate)
    found = run_mt_bench(bench, a_run(tmp_path, judge, judgments=file))
    assert judge.asked == 1
    assert found.scores[0].value == 5.5
    alone = run_mt_bench(
        bench, Run(tmp_path / "c", "m", Judge("gpt-4", JUDGE_SETTINGS), judgments=file)
    )  # no answers at all
    assert alone.scores[0].value is None  # 1 of 8 is missing
    assert {score.name: score.value for score in alone.scores}["turn 1"] == 5.0


def test_a_folder_of_the_original_tool_is_gone_on_with(assets: Path, tmp_path: Path) -> None:
    bench = load_mt_bench(assets)
    run_mt_bench(bench, a_run(tmp_path / "a", Scripted(rate), answers=talk_answers(tmp_path / "m.jsonl")))
    name = "out/model_judgment/gpt-4_single.jsonl"
    rows = (tmp_path / "a" / name).read_text("utf-8").splitlines()
    other = json.dumps(
        json.loads(rows[0]) | {"user_prompt": "of another answer", "judgment": "[[10]]", "score": 10}
    )
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("\n".join([other, *rows[1:5]]) + "\n", encoding="utf-8")
    offline = run_mt_bench(bench, a_run(tmp_path, None, missing_limit=1.0))
    assert offline.scores == run_mt_bench(bench, a_run(tmp_path, None, missing_limit=1.0)).scores
    assert offline.missing["other_prompt_or_answer"] == ["1, turn 1"]
    judge = Scripted(rate)
    found = run_mt_bench(bench, a_run(tmp_path, judge))
    assert judge.asked == 4  # three that were missing, and the one of another answer
    assert found.scores[0].value == 5.5
    assert found.judge is not None
    assert found.judge["imported_judgments"] == 4
    assert run_mt_bench(bench, a_run(tmp_path, judge)).scores == found.scores
    assert judge.asked == 4


def test_a_question_is_strict_where_both_turns_are_clear_and_empty_replies_are_counted(
    assets: Path, tmp_path: Path
) -> None:
    said = {(1, 2): "[[7]] or [[10]]", (3, 1): ""}
    judge = Scripted(lambda r: said.get((r.key[0], r.key[1]), "[[6]]"), finish_reason="length")
    found = run_mt_bench(load_mt_bench(assets), a_run(tmp_path, judge))
    assert [question["score"] for question in found.questions] == [6.5, 6, 6, 6]
    assert [question["strict"] for question in found.questions] == [None, 6, None, 6]
    assert found.judge is not None
    assert (found.judge["cut_replies"], found.judge["cut_empty_replies"]) == (8, 1)


def test_judging_again_shows_the_spread(assets: Path, tmp_path: Path) -> None:
    def moody(request: Request) -> str:
        return f"[[{7 + (request.key[3] == 2)}]]"

    found = run_mt_bench(load_mt_bench(assets), a_run(tmp_path, Scripted(moody), judgings=3))
    (spread,) = [score for score in found.scores if score.name == "judged again, median"]
    assert (spread.value, spread.n) == (7.0, 3)
    assert "7.000 to 8.000 over 3 judgings, 100.0% of the ratings changed" in spread.note
    assert found.scores[0].value == 7.0  # the first judging's
    assert (tmp_path / "out/model_rejudgment/gpt-4_single.judging-3.jsonl").exists()


def test_a_file_of_several_models_keeps_the_others(assets: Path, tmp_path: Path) -> None:
    bench = load_mt_bench(assets)
    run_mt_bench(bench, a_run(tmp_path, Scripted(rate)))
    other = talk_answers(tmp_path / "n.jsonl")
    run_mt_bench(
        bench, Run(tmp_path / "out", "n", Judge("gpt-4", JUDGE_SETTINGS, Scripted(rate)), answers=other)
    )
    rows = (tmp_path / "out/model_judgment/gpt-4_single.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(row)["model"] for row in rows] == ["m"] * 8 + ["n"] * 8


def test_without_prompts_this_packages_own_are_used(tmp_path: Path) -> None:
    bench = load_mt_bench(talk_assets(tmp_path / "mt", prompts=False))
    found = run_mt_bench(bench, a_run(tmp_path, Scripted(rate)))
    assert found.name == "MT-Bench questions, custom"
    assert any("holdfast's own wording" in reason for reason in found.why_not_official)
    rows = (tmp_path / "out/model_judgment/gpt-4_single.jsonl").read_text("utf-8").splitlines()
    assert json.loads(rows[0])["judge"] == ["gpt-4", "holdfast-single-v1"]


def test_a_limit_spreads_over_the_categories(assets: Path) -> None:
    bench = load_mt_bench(assets, limit=3)
    assert [question.id for question in bench.questions] == [1, 2, 4]
    assert "3 of 4 questions" in bench.departures


@pytest.mark.parametrize(
    ("file", "row", "said"),
    [
        (
            "question.jsonl",
            {"question_id": 1, "category": "x", "turns": ["one"]},
            r"question.jsonl:1: 'turns' must be",
        ),
        ("question.jsonl", {"category": "x", "turns": ["a", "b"]}, r":1: has no 'question_id'"),
        (
            "judge_prompts.jsonl",
            {"name": "pair-v2", "system_prompt": "", "prompt_template": ""},
            "has no prompt 'sing",
        ),
        (
            "reference_answer/gpt-4.jsonl",
            {"question_id": 2, "choices": []},
            r"gpt-4.jsonl:1: has no 'choices.0.turns'",
        ),
    ],
)
def test_a_file_of_another_layout_is_named(
    assets: Path, file: str, row: dict[str, object], said: str
) -> None:
    write_rows(assets / file, [row])
    with pytest.raises(DataError, match=said):
        load_mt_bench(assets)


def test_a_template_cannot_ask_for_more_than_texts(assets: Path, tmp_path: Path) -> None:
    row = {"system_prompt": "", "prompt_template": "{question.__class__.__nope__} {answer}"}
    names = "single-v1 single-math-v1 single-v1-multi-turn single-math-v1-multi-turn".split()
    write_rows(assets / "judge_prompts.jsonl", ({"name": name, **row} for name in names))
    bench = load_mt_bench(assets)
    answers = read_talk_answers(talk_answers(tmp_path / "m.jsonl"), bench)
    with pytest.raises(DataError, match="judge prompt 'single-v1': cannot be filled"):
        rating_calls(bench, answers, Judge("gpt-4", JUDGE_SETTINGS))


def test_the_official_files_are_known(shared_data: Path, tmp_path: Path) -> None:
    bench = load_mt_bench(shared_data / "mt_bench")
    assert bench.departures == ()
    assert len(bench.questions) == 80
    assert sorted(bench.references) == list(range(101, 131))
    answers = write_rows(tmp_path / "m.jsonl", (talk_answer(number, "m") for number in range(81, 161)))
    judge = Scripted(lambda r: f"[[{int(r.key[0]) % 10 + 1}]]")
    judge.model = "gpt-4-0613"
    found = run_mt_bench(bench, a_run(tmp_path, judge, answers=answers))
    assert found.official, found.why_not_official
    assert (found.name, found.scores[0].name) == ("MT-Bench", "MT-Bench")
    assert (found.scores[0].value, found.scores[0].n, found.scores[0].clusters) == (5.5, 160, 80)
    assert [score.name for score in found.per_category][:2] == ["writing", "roleplay"]
    assert found.judge is not None
    assert found.judge["served"] == {"gpt-4-0613": 160}
    other = Judge("some-judge", JUDGE_SETTINGS, Scripted(lambda r: "[[5]]"))
    custom = run_mt_bench(bench, Run(tmp_path / "b", "m", other, answers=answers))
    assert custom.name == "MT-Bench questions, custom"
    assert custom.why_not_official == [
        "the server of some-judge says that it is scripted",
        "judged by some-judge, not by gpt-4",
    ]
