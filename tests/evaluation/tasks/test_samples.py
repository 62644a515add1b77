"""avg@k over questions: the mean, its interval, what is missing, and going on from what is on the disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.answers.client import Settings
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.results import DETAILS, read_results
from holdfast.evaluation.tasks.samples import MARKS, Answer, Item, Mark, Task, run_task
from tests.evaluation.scripted import Scripted


def mark(answers: Sequence[Answer]) -> list[Mark]:
    """Right where the text is the reference; a second score that tells nothing."""
    marks = []
    for answer in answers:
        right = float(answer.text == answer.item.reference)
        marks.append(Mark({"right": right, "half": 0.5}, "right" if right else "wrong", answer.text))
    return marks


TASK = Task(
    name="letters",
    why_not_official=["made up"],
    protocol="two samples",
    items=[Item("a", "Which?", "A", "vowels"), Item("b", "Which?", "B"), Item("e", "Which?", "E", "vowels")],
    settings=Settings(temperature=1.0, max_tokens=4),
    samples=2,
    scores=("right", "half"),
    mark=mark,
    system="Answer.",
    label=lambda name: f"{name}@2",
)
# by hand: a is right twice, b once, e never: 3 of 6
ANSWERS = {("a", 0): "A", ("a", 1): "A", ("b", 0): "B", ("b", 1): "x", ("e", 0): "x", ("e", 1): "x"}


def answered(request: Request) -> str:
    return ANSWERS[str(request.key[0]), int(request.key[1])]


def test_values_by_hand(tmp_path: Path):
    results = run_task(TASK, Scripted(answered), tmp_path)
    right, half = results.scores
    assert (right.name, right.value, right.n, right.clusters) == ("right@2", 0.5, 6, 3)
    assert half.value == half.interval.low == half.interval.high == 0.5
    # three questions of 1, 0.5 and 0, drawn whole: the ends of the interval are the extremes
    assert (right.interval.low, right.interval.high) == (0.0, 1.0)
    assert [(score.name, score.value, score.n) for score in results.per_category] == [("vowels", 0.5, 4)]
    assert [(row["id"], row["score"]) for row in results.questions] == [("a", 1.0), ("b", 0.5), ("e", 0.0)]
    assert results.missing == {
        "rate": 0.0,
        "answers": 0,
        "of": 6,
        "unanswered": [],
        "cut": 0,
        "not_compared": {},
    }
    assert not results.official


def test_what_is_asked(tmp_path: Path):
    seen: list[Request] = []

    def script(request: Request) -> str:
        seen.append(request)
        return answered(request)

    run_task(TASK, Scripted(script), tmp_path)
    assert [message["role"] for message in seen[0].messages] == ["system", "user"]
    assert {request.settings.max_tokens for request in seen} == {4}
    assert len({request.settings.seed for request in seen}) == 6


def test_results_are_on_the_disk_with_the_texts(tmp_path: Path):
    results = run_task(TASK, Scripted(answered), tmp_path)
    there = read_results(tmp_path)
    assert there.scores == results.scores
    assert there.settings["samples"] == 2
    lines = (tmp_path / DETAILS).read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    assert [block["title"] for block in first["blocks"]] == [
        "Question",
        "Reference",
        "Answer 1: right",
        "Answer 2: right",
    ]


def test_every_answer_has_its_mark_on_the_disk(tmp_path: Path):
    results = run_task(TASK, Scripted(answered), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / MARKS).read_text(encoding="utf-8").splitlines()]
    assert [(row["id"], row["sample"]) for row in rows] == list(ANSWERS)
    assert [row["scores"]["right"] for row in rows] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert results.questions[1]["outcomes"] == "1 right, 1 wrong"


def test_a_missing_answer_is_no_wrong_one(tmp_path: Path):
    def script(request: Request) -> str | None:
        return None if request.key[:2] in {("b", 0), ("e", 0), ("e", 1)} else answered(request)

    results = run_task(TASK, Scripted(script), tmp_path, most_missing=0.5)
    assert results.scores[0].value == pytest.approx(2 / 3)  # a twice, b's second one wrong
    assert results.missing["answers"] == 3
    assert results.missing["unanswered"] == ["e"]
    assert results.questions[2]["score"] is None


def test_no_headline_where_too_many_are_missing(tmp_path: Path):
    def script(request: Request) -> str | None:
        return None if request.key[0] == "e" else answered(request)

    results = run_task(TASK, Scripted(script), tmp_path)
    assert results.scores[0].value is None
    assert "33.3% of the answers are missing" in results.scores[0].note


def test_no_answer_at_all_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no answer came to any of 3 questions"):
        run_task(TASK, Scripted(lambda request: None), tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_a_second_run_asks_only_what_is_missing(tmp_path: Path):
    def refused(request: Request) -> str | None:
        return None if request.key[0] == "b" else answered(request)

    run_task(TASK, Scripted(refused), tmp_path)
    second = Scripted(answered)
    results = run_task(TASK, second, tmp_path)
    assert second.asked == 2
    assert results.scores == run_task(TASK, Scripted(answered), tmp_path / "whole").scores


def test_a_folder_of_other_answers_is_refused(tmp_path: Path):
    run_task(TASK, Scripted(answered), tmp_path)
    hotter = replace(TASK, settings=replace(TASK.settings, temperature=0.5))
    with pytest.raises(DataError, match="another request"):
        run_task(hotter, Scripted(answered), tmp_path)


def test_greedy_samples_would_be_alike(tmp_path: Path):
    with pytest.raises(ConfigError, match="alike"):
        run_task(replace(TASK, settings=Settings()), Scripted(answered), tmp_path)


def test_cut_answers_are_counted(tmp_path: Path):
    results = run_task(TASK, Scripted(answered, finish_reason="length"), tmp_path)
    assert results.missing["cut"] == 6


def test_thinking_is_no_part_of_an_answer(tmp_path: Path):
    results = run_task(TASK, Scripted(lambda request: f"<think>x</think>{answered(request)}"), tmp_path)
    assert results.scores[0].value == 0.5
