"""What a judged run is told, and what all of them do alike: answers to judge, and the record of who judged.

The folder is laid out as the original tools' data folders: `model_answer/MODEL.jsonl`, `model_judgment/...`. Each step
takes what is on the disk and adds what is missing, so that a run can be stopped anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError
from holdfast.evaluation.answers.client import Reply
from holdfast.evaluation.answers.generation import Fail, Generator, Keep, Request
from holdfast.evaluation.answers.generation_turns import Question, Thinking, generate
from holdfast.evaluation.judged.answer_files import ANSWER_FOLDER, MADE_WITH, write_answers
from holdfast.evaluation.judged.assets import Row, content_hash
from holdfast.evaluation.judged.judging import MISSING_LIMIT, REPLIES, Judge, Replies
from holdfast.evaluation.judged.judgment_files import AskedWith
from holdfast.evaluation.judged.names import stem_of

GENERATION_FOLDER = "generation"

AnswerRow = Callable[[Question, Sequence[Reply]], Row]


class LazyGenerator:
    """A `Generator` that is made when something is asked of it: a run that only goes on with judging loads no model."""

    def __init__(self, name: str, identify: Callable[[], str], make: Callable[[], Generator]) -> None:
        self._name = name
        self._identify = identify
        self._make = make
        self._made: Generator | None = None

    @property
    def model(self) -> str:
        """Its name."""
        return self._name

    @cached_property
    def identity(self) -> str:
        """See `Generator`; found out when it is asked for."""
        return self._identify()

    def answer(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """See `Generator`."""
        if self._made is None:
            self._made = self._make()
        self._made.answer(requests, keep, fail)


@dataclass(frozen=True)
class Run:
    """What a judged run is told.

    Attributes:
        folder: where everything goes.
        model: the name in the files.
        judge: who judges; without a generator nothing is asked (a rescore).
        generator: writes the answers; None: they are in `answers`, or in the folder.
        answers: an answer file of the original tool, or of this one.
        judgments: a judgment file of the original tool, whose rows are not paid for again.
        judgings: times that the judge is asked the same.
        missing_limit: share of judgments that may be missing before a headline is withheld.
        answer_tokens: at most, of a generated answer; None: the benchmark's.
        thinking: whether `<think>` blocks are kept in answers.
    """

    folder: Path
    model: str
    judge: Judge
    generator: Generator | None = None
    answers: Path | None = None
    judgments: Path | None = None
    judgings: int = 1
    missing_limit: float = MISSING_LIMIT
    answer_tokens: int | None = None
    thinking: Thinking = "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.judgings <= 100:
            raise ConfigError(f"judgings must be 1 to 100, not {self.judgings}")
        if not 0 <= self.missing_limit <= 1:
            raise ConfigError(f"the missing limit is a share from 0 to 1, not {self.missing_limit}")

    @property
    def answer_file(self) -> Path:
        """Where the answers are, or will be."""
        return self.answers or self.folder / self._answer_name

    @property
    def _answer_name(self) -> Path:
        return Path(ANSWER_FOLDER) / f"{stem_of(self.model)}.jsonl"

    def making(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """How this run makes answers.

        Args:
            made: what the benchmark says of it.
        """
        assert self.generator is not None
        return {
            "generator": self.generator.model,
            # two models of one name are two makers
            "generator_identity": content_hash(self.generator.identity)[:20],
            "thinking": self.thinking,
            "generation_seed": self.seed,
            **made,
        }

    def have_answered(
        self,
        questions: Sequence[Question],
        row_of: AnswerRow,
        id_of: Callable[[str, Row], Hashable],
        made: Mapping[str, Any],
    ) -> None:
        """Have the questions answered, as far as they are not, and write the answer file; nothing without a generator.

        Args:
            row_of: a row of it, of a question and the replies to its turns.
            made: see `making`.
        """
        if self.generator is None or self.answers is not None:
            return
        folder = self.folder / GENERATION_FOLDER / stem_of(self.model)
        found = generate(self.generator, questions, folder, seed=self.seed, thinking=self.thinking)
        making = self.making(made)
        rows = [
            row_of(question, sample) | {MADE_WITH: making}
            for question in questions
            if (sample := found.answers[question.id][0]) is not None
        ]
        write_answers(self.folder, self._answer_name, rows, id_of)

    def reads_only(self, calls: Sequence[Any]) -> bool:
        """Whether the judgment file is all there is: nobody can be asked, and the folder has no judge's replies."""
        return self.judge.generator is None and not (calls and (self.folder / REPLIES).exists())

    def judge_record(
        self,
        replies: Replies,
        imported: Sequence[tuple[str | None, AskedWith | None]],
        departures: list[str],
    ) -> dict[str, Any]:
        """What is known of the judge, for the record; what departs from one judge, asked in one way, is added to
        `departures`.

        Args:
            imported: of each judgment that was read from a file, who judged and how it was asked; None where it does
                not say.
        """
        named = {self.judge.model} if replies.texts or not imported else set()
        judges = {name for name, _ in imported if name is not None} | named
        if len(judges) > 1:
            departures.append(f"judgments of several judges: {', '.join(sorted(judges))}")
        if nameless := sum(name is None for name, _ in imported):
            departures.append(f"{nameless} judgments of a file that does not say who judged")
        every = [*(asked for _, asked in imported), *replies.asked_with.values()]
        told = [asked for asked in every if asked is not None]
        if not (imported or replies.texts):
            told.append(AskedWith(self.judge.settings.as_dict()))
        settings: list[dict[str, Any]] = []
        served: dict[str, int] = {}
        for asked in told:
            if dict(asked.settings) not in settings:
                settings.append(dict(asked.settings))
            for name in asked.served:
                served[name] = served.get(name, 0) + 1
        if len(settings) > 1:
            departures.append("judgments under several settings of the judge")
        return {
            "asked": judges.pop() if len(judges) == 1 else self.judge.model,
            "served": served,
            "settings": settings[0] if settings else None,
            "imported_judgments": len(imported) + len(replies.imported),
            "judgings": self.judgings,
            "cut_replies": len(replies.cut),
            "cut_empty_replies": sum(not replies.texts[key].strip() for key in replies.cut),
            "failed": {_place(key): reason for key, reason in replies.failed.items()},
        }


def _place(key: tuple[Any, ...]) -> str:
    """Of a request: question and turn or game, and which judging it is of, if not the first."""
    judging = key[3]
    return ", ".join(map(str, key[:2])) + (f", judging {judging}" if judging != 1 else "")
