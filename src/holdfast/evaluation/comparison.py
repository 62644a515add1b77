"""Two evaluations side by side: the difference paired by question, the flips, and how many questions settle it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from holdfast.errors import DataError
from holdfast.evaluation.results import Results
from holdfast.evaluation.statistics import Estimate, advised_sample_size, paired_bootstrap

# What must be alike for a difference to be the models' alone; answers are what differs.
ALIKE = ("questions", "references", "prompts", "baseline")
FEW = 10  # questions below which no interval is given


@dataclass(frozen=True)
class Flip:
    """A question whose score changed."""

    id: Any
    category: str
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """The second run held against the first.

    Attributes:
        difference: the mean of second - first over the questions that both have, paired; its interval draws
            questions, and is None below ten.
        flips: the questions that changed, the largest changes first.
        better, worse, same: their numbers.
        unpaired: questions that one of the runs has no score for.
        not_alike: why the difference may be of something else than the models.
        sd: of one question's difference.
        advice: sentences.
    """

    first: str
    second: str
    name: str
    difference: Estimate
    flips: Sequence[Flip]
    better: int
    worse: int
    same: int
    unpaired: Sequence[Any]
    not_alike: Sequence[str]
    sd: float
    advice: Sequence[str]

    def as_record(self) -> dict[str, Any]:
        """Plain data, for JSON and the page."""
        return asdict(self)


def compare(first: Results, second: Results, *, difference: float | None = None, seed: int = 0) -> Comparison:
    """Pair two evaluations by question.

    Args:
        difference: that should be seen, for the advice on questions; by default the one that was found.

    Raises:
        DataError: they have no question in common.
    """
    one, other = _scores(first), _scores(second)
    common = [name for name in one if name in other]
    if not common:
        raise DataError(f"'{first.name}' and '{second.name}' have no scored question in common")
    before = np.array([one[name][1] for name in common])
    after = np.array([other[name][1] for name in common])
    estimate = paired_bootstrap(before, after, seed=seed)
    if len(common) < FEW:
        estimate = Estimate(estimate.value, None, estimate.n, estimate.clusters)
    sd = float((after - before).std(ddof=1)) if len(common) > 1 else 0.0
    flips = [
        Flip(name, one[name][0], one[name][1], other[name][1])
        for name in common
        if one[name][1] != other[name][1]
    ]
    return Comparison(
        first=first.model,
        second=second.model,
        name=second.name,
        difference=estimate,
        flips=sorted(flips, key=lambda flip: -abs(flip.second - flip.first)),
        better=sum(flip.second > flip.first for flip in flips),
        worse=sum(flip.second < flip.first for flip in flips),
        same=len(common) - len(flips),
        unpaired=sorted((name for name in {**one, **other} if name not in set(common)), key=str),
        not_alike=_not_alike(first, second),
        sd=sd,
        advice=_advice(estimate, sd, difference),
    )


def _scores(results: Results) -> dict[Any, tuple[str, float]]:
    """(category, score) of the questions that have one, by id."""
    found: dict[Any, tuple[str, float]] = {}
    for question in results.questions:
        score = question.get("score")
        if isinstance(score, int | float):
            found[question["id"]] = (str(question.get("category", "")), float(score))
    return found


def _not_alike(first: Results, second: Results) -> list[str]:
    found = []
    if first.protocol != second.protocol:
        found.append(f"protocols differ: {first.protocol}; {second.protocol}")
    for part in ALIKE:
        if first.hashes.get(part) != second.hashes.get(part):
            found.append(f"the {part} differ")
    for key, what in (("asked", "judges"), ("settings", "judge settings")):
        values = [_of_judge(results.judge, key) for results in (first, second)]
        if values[0] != values[1]:
            found.append(f"{what} differ: {values[0]}; {values[1]}")
    if first.settings.get("seed") != second.settings.get("seed"):
        found.append("seeds differ")
    return found


def _of_judge(judge: Mapping[str, Any] | None, key: str) -> Any:
    return None if judge is None else judge.get(key)


def _advice(estimate: Estimate, sd: float, difference: float | None) -> list[str]:
    if estimate.interval is None:
        return [f"{estimate.n} questions are too few for an interval"]
    sentences = []
    low, high = estimate.interval.low, estimate.interval.high
    if low > 0 or high < 0:
        sentences.append(
            f"the second run is {'better' if low > 0 else 'worse'}: the interval leaves out zero"
        )
    else:
        sentences.append("no clear difference: the interval holds zero")
    wanted = abs(estimate.value) if difference is None else difference
    if sd > 0 and wanted > 0:
        sentences.append(
            f"to see a difference of {wanted:.3g} four times in five, judge {advised_sample_size(sd, wanted):,} "
            f"questions (one question's difference has a standard deviation of {sd:.3g})"
        )
    return sentences
