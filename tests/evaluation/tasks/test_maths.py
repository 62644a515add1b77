"""Maths by avg@k from question to results, with answers out of a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import ConfigError
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.tasks.maths import NO_ANSWER, PROMPTS, STEP_BY_STEP, Prompt, maths_task, prompt_of
from holdfast.evaluation.tasks.maths_questions import MathsQuestion, QuestionSet, read_questions
from holdfast.evaluation.tasks.samples import run_task
from holdfast.evaluation.tasks.verifier import ENDED
from tests.evaluation.scripted import Scripted

QUESTIONS = QuestionSet(
    "own",
    "own",
    (
        MathsQuestion("own/0", "Half of {1}?", r"\frac{1}{2}", "fractions"),
        MathsQuestion("own/1", "1+1?", "2", "sums"),
        MathsQuestion("own/2", "2+2?", "4", "sums"),
    ),
    sha256="0" * 64,
    known=False,
)
TEXTS = {
    ("own/0", 0): r"It is \boxed{0.5}.",
    ("own/0", 1): r"It is \boxed{\dfrac12}.",
    ("own/1", 0): r"\boxed{3}, no, \boxed{2}",
    ("own/1", 1): "It is 2.",
    ("own/2", 0): r"\boxed{5}",
    ("own/2", 1): r"\boxed{9^{9^{9^{9}}}}",
}


def answered(request: Request) -> str:
    return TEXTS[str(request.key[0]), int(request.key[1])]


def test_values_by_hand(tmp_path: Path):
    task = maths_task(QUESTIONS, samples=2, seconds=0.25)
    results = run_task(task, Scripted(answered), tmp_path)
    assert results.name == "own questions, custom"
    assert (results.scores[0].name, results.scores[0].value) == ("avg@2", 0.5)
    assert [row["score"] for row in results.questions] == [1.0, 0.5, 0.0]
    without = dict(results.missing["not_compared"])
    assert without.pop(NO_ANSWER) == 1
    assert list(without.values()) == [1]  # the tower, however the system ended it
    assert set(without) <= set(ENDED)
    assert {score.name: score.value for score in results.per_category} == {"fractions": 1.0, "sums": 0.25}


def test_the_question_is_put_as_the_qwen_evaluation_puts_it(tmp_path: Path):
    seen: list[Request] = []

    def script(request: Request) -> str:
        seen.append(request)
        return answered(request)

    run_task(maths_task(QUESTIONS, samples=1, limit=1), Scripted(script), tmp_path)
    assert [dict(message) for message in seen[0].messages] == [
        {"role": "system", "content": STEP_BY_STEP},
        {"role": "user", "content": "Half of {1}?"},
    ]
    assert seen[0].settings.temperature == 1
    assert seen[0].settings.top_p == 1


def test_official_and_every_reason_why_not(shared_data: Path):
    known = read_questions("amc23", shared_data / "maths")
    assert maths_task(known).why_not_official == []
    assert maths_task(known).name == "AMC23"
    task = maths_task(known, limit=3, temperature=0.6, prompt=PROMPTS["qwen-boxed"])
    assert len(task.why_not_official) == 3
    assert task.name == "AMC23 questions, custom"
    assert "hash" in maths_task(QUESTIONS).why_not_official[0]


def test_prompts():
    assert prompt_of("qwen-boxed").fill("1+1?") == f"1+1?\n{STEP_BY_STEP}"
    assert prompt_of("Q: {question} {x}").fill("{question}?") == "Q: {question}? {x}"
    with pytest.raises(ConfigError, match="did you mean 'qwen-boxed'"):
        prompt_of("qwen-box")
    with pytest.raises(ConfigError, match=r"\{question\}"):
        Prompt("own", None, "no place")


def test_no_question():
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        maths_task(QUESTIONS, limit=0)
