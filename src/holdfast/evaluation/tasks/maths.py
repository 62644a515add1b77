"""Mathematics by avg@k: k samples a question at temperature 1, the boxed answer of each checked as a formula.

The protocol of "Beyond Log Likelihood" (arXiv 2510.00526) and of the Qwen2.5-Math evaluation, but for the check:
math-verify, in processes that can be killed, and only what stands in a box is an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.errors import ConfigError, did_you_mean
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.judged.assets import content_hash
from holdfast.evaluation.tasks.maths_questions import QuestionSet
from holdfast.evaluation.tasks.samples import Answer, Item, Mark, Task
from holdfast.evaluation.tasks.verifier import LONGEST, MEMORY, SECONDS, boxed_answer, check_answers

NO_ANSWER = "no boxed answer"
SCORE = "right"
MAX_TOKENS = 4096  # of an answer; the paper's
STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclass(frozen=True)
class Prompt:
    """How a question is put: a system message (None for none), and a user message with `{question}` in it."""

    name: str
    system: str | None
    user: str

    def __post_init__(self) -> None:
        if "{question}" not in self.user:
            raise ConfigError("a prompt for maths needs the place {question}, where the question goes")

    def fill(self, question: str) -> str:
        """The user message; braces of the question and of the prompt stay as they are."""
        return self.user.replace("{question}", question)


PROMPTS = {
    prompt.name: prompt
    for prompt in (
        Prompt("qwen25-math-cot", STEP_BY_STEP, "{question}"),
        Prompt("qwen-boxed", "You are a helpful assistant.", "{question}\n" + STEP_BY_STEP),
        Prompt("no-system", None, "{question}\n" + STEP_BY_STEP),  # for templates that have no system message
    )
}
DEFAULT_PROMPT = "qwen25-math-cot"


def prompt_of(text: str) -> Prompt:
    """The prompt of a name, or one of your own: a user message that holds `{question}`.

    Raises:
        ConfigError: neither.
    """
    if text in PROMPTS:
        return PROMPTS[text]
    if "{question}" in text:
        return Prompt("custom", None, text)
    raise ConfigError(
        f"no maths prompt is called '{text}'{did_you_mean(text, PROMPTS)}; one of your own holds {{question}}, where "
        "the question goes"
    )


def maths_task(
    questions: QuestionSet,
    *,
    prompt: Prompt = PROMPTS[DEFAULT_PROMPT],
    samples: int = 16,
    temperature: float = 1.0,
    max_tokens: int = MAX_TOKENS,
    limit: int | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    processes: int | None = None,
) -> Task:
    """A set of questions as a task for `run_task`.

    Args:
        limit: the first so many questions; None for all.
        seconds, memory, processes: of the check, as `check_answers` takes them.

    Raises:
        ConfigError: a limit below 1, or settings that no answer can be decoded with.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"the number of questions must be at least 1, not {limit}")
    chosen = questions.questions[:limit]
    why_not = []
    if not questions.known:
        why_not.append("the questions or references are not the benchmark's (their hash differs)")
    if len(chosen) < len(questions.questions):
        why_not.append(f"the first {len(chosen)} of {len(questions.questions)} questions only")
    if prompt.name != DEFAULT_PROMPT:
        why_not.append(f"the prompt is '{prompt.name}', not '{DEFAULT_PROMPT}'")
    if temperature != 1:
        why_not.append(f"temperature {temperature:g}, not 1")

    def mark(answers: Sequence[Answer]) -> list[Mark]:
        return mark_answers(answers, seconds=seconds, memory=memory, processes=processes)

    return Task(
        name=questions.title if not why_not else f"{questions.title} questions, custom",
        why_not_official=why_not,
        protocol=(
            f"avg@{samples}: the mean over all samples at temperature {temperature:g}; the last boxed answer, "
            "compared with the reference by math-verify; ended or without a box is wrong, missing is left out"
        ),
        items=[
            Item(question.id, prompt.fill(question.text), question.reference, question.category)
            for question in chosen
        ],
        settings=Settings(temperature=temperature, max_tokens=max_tokens),
        samples=samples,
        scores=(SCORE,),
        mark=mark,
        system=prompt.system,
        hashes={
            "questions": questions.sha256,
            "prompt": content_hash([prompt.system, prompt.user]),
        },
        record={
            "prompt": prompt.name,
            "user": prompt.user,
            "questions": len(chosen),
            "check_seconds": seconds,
            "check_memory": memory,
        },
        label=lambda _: f"avg@{samples}",
    )


def mark_answers(
    answers: Sequence[Answer],
    *,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    processes: int | None = None,
) -> list[Mark]:
    """1 for every answer whose last box holds the reference; else 0, with the reason.

    Raises:
        ConfigError, DataError: as `check_answers`.
    """
    boxed = [boxed_answer(answer.text) for answer in answers]
    asked = [
        (answer.item.reference, box) for answer, box in zip(answers, boxed, strict=True) if box is not None
    ]
    outcomes = iter(check_answers(asked, seconds=seconds, memory=memory, processes=processes))
    marks = []
    for box in boxed:
        outcome = NO_ANSWER if box is None else next(outcomes)
        marks.append(Mark({SCORE: float(outcome == "right")}, outcome, (box or "")[:LONGEST]))
    return marks
