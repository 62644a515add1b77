"""What a pilot measured: each candidate's held-out scores, and which differences are more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.capability.intervals import Estimate, Integers, row_bootstrap

Floats = NDArray[np.float64]
START = "start"  # the model before any training
BASELINE = "nll"
CRITERIA = ("likelihood", "greedy", "sampled", "answers")


@dataclass(frozen=True)
class Scores:
    """One arm's scores, a value a held-out row: each (rows,)."""

    logp: Floats  # summed over the row's target tokens, nats
    tokens: Floats
    greedy: Floats  # 1 or 0
    sampled: Floats  # share of the samples
    asked: Floats  # 1 where answers were generated, else 0

    def parts(self, criterion: str) -> tuple[Floats, Floats]:
        """Numerator and denominator of the criterion, by row."""
        if criterion == "likelihood":
            return self.logp, self.tokens
        right = (self.greedy + self.sampled) / 2 if criterion == "answers" else getattr(self, criterion)
        return right, self.asked


@dataclass(frozen=True)
class Arm:
    """A candidate after its training, on the held-out rows.

    Attributes:
        scores: by criterion: `likelihood` (nats a token), `greedy` and `sampled` (share of exact answers by greedy
            decoding and at temperature 1), `answers` (the mean of these two).
        over_nll: by criterion, what it has more than NLL after the same steps, paired by row; empty without one.
        behind_best: by criterion, what the best candidate has more than this one, paired by row; less than 0 where the
            start is better than any.
        final_loss: the last logged training loss; None for the start.
    """

    name: str
    objective: dict[str, Any] | None
    scores: dict[str, Estimate]
    over_nll: dict[str, Estimate]
    behind_best: dict[str, Estimate]
    final_loss: float | None = None


@dataclass(frozen=True)
class Winner:
    """The best candidate by one criterion.

    Attributes:
        tied: candidates that are not shown to be worse: the paired interval of the difference holds 0.
    """

    criterion: str
    best: str
    tied: tuple[str, ...]

    @property
    def settled(self) -> bool:
        """Whether every other candidate is shown to be worse."""
        return not self.tied


@dataclass(frozen=True)
class PilotReport:
    """Short trainings with each candidate, on the same rows with the same seed.

    Attributes:
        train_rows, held_out_rows: disjoint by prompt.
        samples: answers a held-out prompt at temperature 1.
        asked_rows: held-out rows that answers were generated for; 0: their answers are too long to match word for word.
        longest_answer: tokens of an answer, up to which it is generated.
        settings: of the trainings, as given.
        arms: the start, then each candidate.
        winners: by criterion; those of answers are missing where no candidate gets a single answer right, or none was
            generated.
    """

    steps: int
    train_rows: int
    held_out_rows: int
    asked_rows: int
    longest_answer: int
    samples: int
    seed: int
    settings: dict[str, Any]
    arms: tuple[Arm, ...]
    winners: tuple[Winner, ...]

    def winner(self, criterion: str) -> Winner | None:
        """The winner by a criterion; None where it could not be told."""
        return next((winner for winner in self.winners if winner.criterion == criterion), None)

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)


def compare(
    scores: Mapping[str, Scores],
    objectives: Mapping[str, Mapping[str, Any]],
    losses: Mapping[str, float | None],
    seed: int,
    prompt_of: Integers | None = None,
) -> tuple[tuple[Arm, ...], tuple[Winner, ...]]:
    """Arms and winners of `scores`, by arm's name; `START` is no candidate. All from the same draws of rows.

    Args:
        prompt_of: (rows,) see `row_bootstrap`.
    """

    def by_criterion(parts: Sequence[tuple[Floats, Floats]]) -> dict[str, Estimate]:
        found = row_bootstrap([top for top, _ in parts], [bottom for _, bottom in parts], seed, prompt_of)
        return dict(zip(CRITERIA, found, strict=True))

    def more_than(other: Scores, own: Scores) -> dict[str, Estimate]:
        return by_criterion([_difference(own, other, criterion) for criterion in CRITERIA])

    values = {
        name: by_criterion([own.parts(criterion) for criterion in CRITERIA]) for name, own in scores.items()
    }
    best = {
        criterion: max(objectives, key=lambda name: values[name][criterion].value or 0.0)
        if criterion != "likelihood"
        else max(objectives, key=lambda name: scores[name].logp.sum())
        for criterion in CRITERIA
    }
    arms = []
    for name, own in scores.items():
        behind = {}
        for criterion in CRITERIA:
            behind[criterion] = more_than(own, scores[best[criterion]])[criterion]
        arms.append(
            Arm(
                name=name,
                objective=dict(objectives[name]) if name in objectives else None,
                scores=values[name],
                over_nll=more_than(scores[BASELINE], own)
                if BASELINE in objectives and name != BASELINE
                else {},
                behind_best=behind,
                final_loss=losses.get(name),
            )
        )
    winners = [
        Winner(
            criterion,
            name,
            tuple(
                arm.name
                for arm in arms
                if arm.name in objectives and arm.name != name and _holds_zero(arm.behind_best[criterion])
            ),
        )
        for criterion, name in best.items()
        if criterion == "likelihood" or values[name][criterion].value
    ]
    return tuple(arms), tuple(winners)


def _holds_zero(difference: Estimate) -> bool:
    return difference.low is None or difference.low <= 0


def _difference(own: Scores, other: Scores, criterion: str) -> tuple[Floats, Floats]:
    """Numerator and denominator of what `own` has more than `other`, paired by row."""
    (top, bottom), (less, _) = own.parts(criterion), other.parts(criterion)
    return top - less, bottom
