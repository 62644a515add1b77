"""Two evaluations paired by question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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


def test_nothing_in_common() -> None:
    with pytest.raises(DataError, match="no scored question in common"):
        compare(results([None]), results([1.0]))


def test_results_are_read_as_written(tmp_path: Path) -> None:
    found = results([1.0, None])
    found.write(tmp_path, [{"id": 0, "blocks": []}])
    assert read_results(tmp_path) == found == read_results(tmp_path / "results.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": [], "per_category": []}'])
def test_a_file_that_is_no_results_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"results.json: not the results of an evaluation"):
        read_results(tmp_path)
