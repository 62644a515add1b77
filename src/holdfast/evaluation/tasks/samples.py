"""Questions with a reference, asked k times each: the answers, what each is worth, and how sure the mean is.

avg@k is the mean over all k samples of all questions. Samples of one question rise and fall together, so an interval
draws whole questions. An answer that never came is no wrong answer: it is left out and counted, and where too many are
missing there is no headline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.answers.generation import Generator
from holdfast.evaluation.answers.generation_turns import Generated, Question, generate
from holdfast.evaluation.results import Results, Score, write_rows
from holdfast.evaluation.statistics import bootstrap_mean

MARKS = "marks.jsonl"
PLAIN = ("right", "wrong")  # outcomes of an answer that was held against its reference
MOST_MISSING = 0.05  # share of answers that may be missing under a headline
SHOWN = 2  # samples of a question that the page shows; all of them are in answers.jsonl


@dataclass(frozen=True)
class Item:
    """A question with its reference, and what it is about (empty where nothing is told apart)."""

    id: str
    user: str
    reference: str
    category: str = ""


@dataclass(frozen=True)
class Answer:
    """One sample's text; `cut` where it ended because it had all the tokens it may have."""

    item: Item
    text: str
    cut: bool


@dataclass(frozen=True)
class Mark:
    """What an answer is worth, by name of score, from 0 to 1; `outcome` in a word; what was taken for it."""

    scores: Mapping[str, float]
    outcome: str
    taken: str = ""


@dataclass(frozen=True)
class Task:
    """A set of questions, how they are asked, and how answers are marked.

    Attributes:
        name, why_not_official, protocol, hashes: for `Results`; official where there is no reason against it.
        items: with distinct ids.
        system: message before every question; None for none.
        settings: of each answer.
        samples: answers a question.
        scores: names of what `mark` gives, the headline first.
        mark: all answers at once -> a mark each.
        record: what else changes the numbers, for `Results.settings`.
        label: turns a score's name into the one printed, such as `right` into `avg@16`.
    """

    name: str
    why_not_official: Sequence[str]
    protocol: str
    items: Sequence[Item]
    settings: Settings
    samples: int
    scores: Sequence[str]
    mark: Callable[[Sequence[Answer]], Sequence[Mark]]
    system: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    label: Callable[[str], str] = str


def run_task(
    task: Task, generator: Generator, folder: str | Path, *, seed: int = 0, most_missing: float = MOST_MISSING
) -> Results:
    """Ask what is not answered yet, mark every answer, and write `results.json` with the texts and marks beside it.

    Thinking blocks are no part of an answer. A run that was stopped goes on where it was, from `answers.jsonl`.

    Raises:
        ConfigError: no samples, too many, or several that would all be alike.
        DataError: the folder holds answers to other questions or settings; no answer came at all.
    """
    asked = [Question(item.id, (item.user,), task.settings, task.system) for item in task.items]
    made = generate(generator, asked, folder, samples=task.samples, seed=seed, thinking="strip")
    marked = _marked(task, made)
    settings = {
        "system": task.system,
        **task.settings.as_dict(),
        "samples": task.samples,
        "seed": seed,
        **task.record,
    }
    results = Results(
        name=task.name,
        official=not task.why_not_official,
        why_not_official=list(task.why_not_official),
        model=generator.model,
        judge=None,
        protocol=task.protocol,
        settings=settings,
        hashes=dict(task.hashes),
        scores=_headline(task, marked, seed, most_missing),
        per_category=_per_category(task, marked, seed),
        missing=_missing(task, marked),
        questions=[_question(task, item, marked[item.id]) for item in task.items],
    )
    marks = [_mark_row(item, one) for item in task.items for one in marked[item.id]]
    write_rows(Path(folder) / MARKS, marks)
    results.write(folder, [_details(item, marked[item.id]) for item in task.items])
    return results


@dataclass(frozen=True)
class _Marked:
    number: int
    answer: Answer
    mark: Mark


ByItem = Mapping[str, Sequence[_Marked]]


def _marked(task: Task, made: Generated) -> ByItem:
    """The answers that came, by question, with their marks."""
    places: list[tuple[str, int]] = []
    answers: list[Answer] = []
    for item in task.items:
        for number, sample in enumerate(made.answers[item.id]):
            if sample is not None:
                places.append((item.id, number))
                answers.append(Answer(item, sample[0].text, sample[0].finish_reason == "length"))
    if not answers:
        raise DataError(
            f"no answer came to any of {len(task.items)} questions; failures.jsonl in the output folder says why"
        )
    found: dict[str, list[_Marked]] = {item.id: [] for item in task.items}
    for (name, number), answer, mark in zip(places, answers, task.mark(answers), strict=True):
        found[name].append(_Marked(number, answer, mark))
    return found


def _headline(task: Task, marked: ByItem, seed: int, most_missing: float) -> list[Score]:
    missing = _missing(task, marked)
    if missing["rate"] > most_missing:
        note = f"{missing['rate']:.1%} of the answers are missing, more than {most_missing:.1%}"
        return [Score(task.label(name), None, note=note) for name in task.scores]
    return [_score(task.label(name), name, task.items, marked, seed) for name in task.scores]


def _per_category(task: Task, marked: ByItem, seed: int) -> list[Score]:
    by_category: dict[str, list[Item]] = {}
    for item in task.items:
        if item.category:
            by_category.setdefault(item.category, []).append(item)
    return [_score(name, task.scores[0], by_category[name], marked, seed) for name in sorted(by_category)]


def _score(label: str, name: str, items: Sequence[Item], marked: ByItem, seed: int) -> Score:
    """The mean of one score over all answers to `items`; whole questions are drawn for its interval."""
    pairs = [(one.mark.scores[name], item.id) for item in items for one in marked[item.id]]
    if not pairs:
        return Score(label, None, note="no answer came")
    values, clusters = zip(*pairs, strict=True)
    return Score.of(label, bootstrap_mean(values, clusters, seed=seed))


def _missing(task: Task, marked: ByItem) -> dict[str, Any]:
    every = [one for item in task.items for one in marked[item.id]]
    wanted = len(task.items) * task.samples
    return {
        "rate": 1 - len(every) / wanted,
        "answers": wanted - len(every),
        "of": wanted,
        "unanswered": [item.id for item in task.items if not marked[item.id]],
        "cut": sum(one.answer.cut for one in every),
        "not_compared": {name: n for name, n in _outcomes(every).items() if name not in PLAIN},
    }


def _outcomes(marked: Sequence[_Marked]) -> dict[str, int]:
    return dict(sorted(Counter(one.mark.outcome for one in marked).items()))


def _question(task: Task, item: Item, marked: Sequence[_Marked]) -> dict[str, Any]:
    values = [one.mark.scores[task.scores[0]] for one in marked]
    outcomes = _outcomes(marked)
    return {
        "id": item.id,
        "category": item.category,
        "score": sum(values) / len(values) if values else None,
        "reference": item.reference,
        "outcomes": ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()),
        "flags": [outcome for outcome in outcomes if outcome not in PLAIN],
    }


def _mark_row(item: Item, one: _Marked) -> dict[str, Any]:
    return {
        "id": item.id,
        "sample": one.number,
        "reference": item.reference,
        "taken": one.mark.taken,
        "outcome": one.mark.outcome,
        "scores": dict(one.mark.scores),
    }


def _details(item: Item, marked: Sequence[_Marked]) -> dict[str, Any]:
    shown = [
        {"title": f"Answer {one.number + 1}: {one.mark.outcome}", "text": one.answer.text}
        for one in marked[:SHOWN]
    ]
    question = {"title": "Question", "text": item.user}
    return {"id": item.id, "blocks": [question, {"title": "Reference", "text": item.reference}, *shown]}
