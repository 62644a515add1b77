"""Two evaluations paired by question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.comparison import compare
from holdfast.evaluation.results import Results, Score, read_results
from holdfast.evaluation.statistics import advised_sample_size

JUDGE = {"asked": "j", "settings": {"temperature": 0}}


def results(scores: list[float | None], model: str = "m") -> Results:
    return Results(
        name="MT-Bench",
        official=True,
        why_not_official=[],
        model=model,
        judge=JUDGE,
        protocol="p",
        settings={"seed": 0},
        hashes={"questions": "q", "answers": model},
        scores=[Score("MT-Bench", 5.0)],
        per_category=[],
        missing={"rate": 0.0},
        questions=[{"id": place, "category": "c", "score": score} for place, score in enumerate(scores)],
    )


def test_the_difference_is_paired_and_flips_are_listed() -> None:
    before = results([float(n) for n in range(20)])
    after = results([n + (0.5 if n % 2 else 0) for n in range(19)] + [None], "better")
    found = compare(before, after)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.5 * 9 / 19)
    assert (found.better, found.worse, found.same) == (9, 0, 10)
    assert found.unpaired == [19]
    assert [flip.id for flip in found.flips] == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert found.not_alike == []
    assert found.advice[0].startswith("the second run is better")
    wanted = advised_sample_size(found.sd, 0.2)
    assert f"judge {wanted} questions" in compare(before, after, difference=0.2).advice[1]


def test_largest_changes_first_and_no_clear_difference() -> None:
    found = compare(results([5.0] * 12), results([5.0] * 10 + [9.0, 2.0]))
    assert [(flip.id, flip.second) for flip in found.flips] == [(10, 9.0), (11, 2.0)]
    assert found.advice[0].startswith("no clear difference")


def test_few_questions_have_no_interval() -> None:
    found = compare(results([1.0] * 5), results([2.0] * 5))
    assert found.difference is not None
    assert found.difference.interval is None
    assert found.advice == ["5 questions are too few for an interval"]


def test_what_is_not_alike_is_said() -> None:
    other = replace(
        results([1.0] * 12),
        protocol="q",
        judge={"asked": "k", "settings": None},
        hashes={"questions": "r"},
        settings={"seed": 1},
    )
    said = compare(results([1.0] * 12), other).not_alike
    assert said[0].startswith("protocols differ")
    assert "the questions differ" in said
    assert "judges differ: j; k" in said
    assert said[-1] == "seeds differ"


def test_how_answers_and_judgments_came_is_compared() -> None:
    def made(model: str, served: dict[str, int], **settings: Any) -> Results:
        found = results([1.0] * 12, model)
        return replace(found, judge={**JUDGE, "served": served}, settings={"seed": 0, **settings})

    made_here = {"generator": "a", "answer_tokens": 1024, "thinking": "keep", "missing_limit": 0.05}
    first = made("a", {"gpt-4-0613": 12}, **made_here)
    second = made("b", {"gpt-4-0314": 9}, **made_here | {"generator": "b", "thinking": "strip"})
    assert compare(first, second).not_alike == [
        "the judge's server says differently what it is: gpt-4-0613; gpt-4-0314",
        'the setting \'thinking\' differs: "keep"; "strip"',
    ]
    again = made("b", {"gpt-4-0613": 7}, **made_here | {"generator": "b", "answer_tokens": 2048})
    assert compare(first, again).not_alike == ["the setting 'answer_tokens' differs: 1024; 2048"]
    read = made("b", {}, answers="read from b.jsonl; how they were made is not recorded")
    assert compare(first, read).not_alike == [
        "the judge's server says differently what it is: gpt-4-0613; not recorded",
        "how these answers were made is not recorded: b",
    ]
    long = compare(made("a", {}, system="x" * 99), made("b", {}, system="y")).not_alike
    assert long == ["the setting 'system' differs"]


@pytest.mark.parametrize("withheld", [0, 1])
def test_a_run_without_a_score_gives_no_verdict(withheld: int) -> None:
    runs = [results([5.0] * 12, "a"), results([9.0] * 12, "b")]
    why = Score("MT-Bench", None, note="withheld: 40.0% of the judgments missing or unread, limit 5.0%")
    runs[withheld] = replace(runs[withheld], scores=[why])
    found = compare(*runs)
    assert found.difference is found.strict is None
    assert found.advice == []
    assert found.withheld == [f"{'ab'[withheld]}: {why.note}"]
    assert found.better == 12


def test_a_question_without_one_of_its_turns_is_left_out() -> None:
    whole = [{"id": n, "category": "c", "score": 5.0, "turn 1": 4, "turn 2": 6} for n in range(3)]
    half = [*whole[:2], {"id": 2, "category": "c", "score": 9.0, "turn 1": 9, "turn 2": None}]
    found = compare(replace(results([]), questions=whole), replace(results([]), questions=half))
    assert (found.better, found.same, found.unpaired) == (0, 2, [2])


def test_the_benchmarks_name_is_for_two_that_bear_it() -> None:
    official, custom = (
        results([1.0]),
        replace(results([1.0]), name="MT-Bench questions, custom", official=False),
    )
    assert compare(official, official).name == "MT-Bench"
    assert compare(official, custom).name == compare(custom, official).name == "MT-Bench questions, custom"


def test_one_name_for_both_gives_way_to_their_places() -> None:
    one = results([1.0])
    found = compare(one, one, places=("runs/a", "runs/b"))
    assert (found.first, found.second) == ("runs/a", "runs/b")
    assert compare(one, results([1.0], "n"), places=("runs/a", "runs/b")).second == "n"


def test_a_strict_difference_stands_beside_the_official_one() -> None:
    """Twelve [[100]]s, which the official parser takes for ratings, make the whole difference."""

    def rated(official: list[float], strict: list[float | None]) -> Results:
        both = zip(official, strict, strict=True)
        questions = [
            {"id": n, "category": "c", "score": score, "strict": clear}
            for n, (score, clear) in enumerate(both)
        ]
        return replace(results([]), questions=questions)

    strict = [5.0] * 24
    before = rated([5.0] * 24, strict)  # type: ignore[arg-type]
    found = compare(before, rated([100.0] * 12 + [5.0] * 12, [None] * 12 + [4.0, 6.0] * 6))
    assert found.difference is not None
    assert found.strict is not None
    assert found.difference.value == 47.5
    assert (found.strict.value, found.strict.n) == (0.0, 12)
    assert found.advice[0].startswith("the second run is better")
    assert found.advice[-1].startswith("by the strict parser it is not clear")
    assert compare(before, results([5.0] * 24)).strict is None


def test_nothing_in_common() -> None:
    with pytest.raises(DataError, match="no scored question in common"):
        compare(results([None]), results([1.0]))
    nothing = replace(results([None], "a"), scores=[Score("MT-Bench", None, note="withheld: 100% unread")])
    with pytest.raises(DataError, match=r"in common \(a: withheld: 100% unread\)"):
        compare(nothing, results([1.0], "b"))


def test_results_are_read_as_written(tmp_path: Path) -> None:
    found = results([1.0, None])
    found.write(tmp_path, [{"id": 0, "blocks": []}])
    assert read_results(tmp_path) == found == read_results(tmp_path / "results.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": [], "per_category": []}'])
def test_a_file_that_is_no_results_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"results.json: not the results of an evaluation"):
        read_results(tmp_path)
