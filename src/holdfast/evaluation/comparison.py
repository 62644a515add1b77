"""Two evaluations side by side: the difference paired by question, the flips, and how many questions settle it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import DataError
from holdfast.evaluation.results import Results
from holdfast.evaluation.statistics import Estimate, advised_sample_size, paired_bootstrap

# What must be alike for a difference to be the models' alone; answers are what differs.
ALIKE = ("questions", "references", "prompts", "baseline")
FEW = 10  # questions below which no interval is given
# Settings that say who answered, or change no answer and no judgment; the seed is told by itself.
BESIDE = frozenset({"generator", "generator_identity", "answers", "missing_limit", "seed"})
TURN = re.compile(r"turn [0-9]+")
LONGEST = 60  # characters of a setting that is quoted


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
        first, second: the models' names; where both have one, the places they are read from.
        name: the benchmark's where both runs bear it.
        difference: the mean of second - first over the questions that both have, paired; its interval draws
            questions, and is None below ten. None where a run's headline is withheld.
        strict: the same by the strict parser; None where the runs do not have it, or `difference` is None.
        withheld: why a run has no score, a sentence each.
        flips: the questions that changed, the largest changes first.
        better, worse, same: their numbers.
        unpaired: questions that one of the runs has no score for, or not of every turn.
        not_alike: why the difference may be of something else than the models.
        sd: of one question's difference.
        advice: sentences.
    """

    first: str
    second: str
    name: str
    difference: Estimate | None
    strict: Estimate | None
    withheld: Sequence[str]
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


def compare(
    first: Results,
    second: Results,
    *,
    difference: float | None = None,
    places: tuple[str, str] = ("the first", "the second"),
    seed: int = 0,
) -> Comparison:
    """Pair two evaluations by question.

    Args:
        difference: that should be seen, for the advice on questions; by default the one that was found.
        places: where they were read, which names them where the models have one name.

    Raises:
        DataError: they have no question in common.
    """
    one, other = _scores(first, "score"), _scores(second, "score")
    common = [name for name in one if name in other]
    names = (first.model, second.model) if first.model != second.model else places
    withheld = [
        f"{name}: {run.scores[0].note or 'no score'}"
        for name, run in zip(names, (first, second), strict=True)
        if run.scores[0].value is None
    ]
    if not common:
        why = f" ({'; '.join(withheld)})" if withheld else ""
        raise DataError(f"'{first.name}' and '{second.name}' have no scored question in common{why}")
    before = np.array([one[name][1] for name in common])
    after = np.array([other[name][1] for name in common])
    estimate = _difference(before, after, seed)
    strict = _strict(first, second, common, seed)
    sd = float((after - before).std(ddof=1)) if len(common) > 1 else 0.0
    flips = [
        Flip(name, one[name][0], one[name][1], other[name][1])
        for name in common
        if one[name][1] != other[name][1]
    ]
    asked = {question["id"]: None for run in (first, second) for question in run.questions}
    return Comparison(
        first=names[0],
        second=names[1],
        name=_name(first, second),
        difference=None if withheld else estimate,
        strict=None if withheld else strict,
        withheld=withheld,
        flips=sorted(flips, key=lambda flip: -abs(flip.second - flip.first)),
        better=sum(flip.second > flip.first for flip in flips),
        worse=sum(flip.second < flip.first for flip in flips),
        same=len(common) - len(flips),
        unpaired=sorted((name for name in asked if name not in set(common)), key=str),
        not_alike=_not_alike(first, second, names),
        sd=sd,
        advice=[] if withheld else [*_advice(estimate, sd, difference), *_doubt(estimate, strict)],
    )


def _difference(before: NDArray[np.float64], after: NDArray[np.float64], seed: int) -> Estimate:
    estimate = paired_bootstrap(before, after, seed=seed)
    return estimate if len(before) >= FEW else Estimate(estimate.value, None, estimate.n, estimate.clusters)


def _strict(first: Results, second: Results, common: Sequence[Any], seed: int) -> Estimate | None:
    """Of the questions compared that both strict parsers read."""
    one, other = _scores(first, "strict"), _scores(second, "strict")
    both = [name for name in common if name in one and name in other]
    if not both:
        return None
    return _difference(
        np.array([one[name][1] for name in both]), np.array([other[name][1] for name in both]), seed
    )


def _name(first: Results, second: Results) -> str:
    """The benchmark's name where both runs bear it; else what the others say they are."""
    if first.name == second.name:
        return first.name
    custom = [run.name for run in (first, second) if not run.official]
    return " and ".join(dict.fromkeys(custom or [first.name, second.name]))


def _scores(results: Results, key: str) -> dict[Any, tuple[str, float]]:
    """(category, score) of the questions that have one, of every turn, by id."""
    found: dict[Any, tuple[str, float]] = {}
    for question in results.questions:
        score = question.get(key)
        whole = all(value is not None for name, value in question.items() if TURN.fullmatch(name))
        if whole and isinstance(score, int | float):
            found[question["id"]] = (str(question.get("category", "")), float(score))
    return found


def _not_alike(first: Results, second: Results, names: tuple[str, str]) -> list[str]:
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
    served = [sorted(_of_judge(results.judge, "served") or ()) for results in (first, second)]
    if served[0] != served[1]:
        said = [", ".join(names) or "not recorded" for names in served]
        found.append(f"the judge's server says differently what it is: {said[0]}; {said[1]}")
    unknown = [
        name
        for name, run in zip(names, (first, second), strict=True)
        if "answers" in run.settings and "generator" not in run.settings
    ]
    if unknown:
        found.append(f"how these answers were made is not recorded: {', '.join(unknown)}")
    for key in sorted({*first.settings, *second.settings} - BESIDE):
        values = [_told(results.settings, key) for results in (first, second)]
        # what is not recorded was said above
        if values[0] != values[1] and not (unknown and None in values):
            short = all(len(value or "") <= LONGEST for value in values)
            said = [value or "not set" for value in values]
            found.append(f"the setting '{key}' differs" + (f": {said[0]}; {said[1]}" if short else ""))
    if first.settings.get("seed") != second.settings.get("seed"):
        found.append("seeds differ")
    return found


def _told(settings: Mapping[str, Any], key: str) -> str | None:
    return json.dumps(settings[key], sort_keys=True) if key in settings else None


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


def _doubt(official: Estimate, strict: Estimate | None) -> list[str]:
    """Where a clear difference is not one by the strict parser."""
    if strict is None or official.interval is None or strict.interval is None:
        return []
    low, high = official.interval.low, official.interval.high
    by_strict = strict.interval
    if (low > 0 and by_strict.low <= 0) or (high < 0 and by_strict.high >= 0):
        return [
            "by the strict parser it is not clear: ratings that it does not count may make the difference"
        ]
    return []
