"""What a check counts, in memory that does not grow with the rows' texts; parts add up in any order."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import nsmallest
from typing import Any

import numpy as np

from holdfast.data.check_report import Example, Histogram, LengthBias
from holdfast.data.faults import Problem
from holdfast.data.lengths import LengthReport

BINS = 20
COMPLETIONS = ("chosen", "rejected")
Z_95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


@dataclass
class Differences:
    """Chosen minus rejected lengths. Sums of integers: exact, so the order of the rows changes nothing."""

    pairs: int = 0
    total: int = 0
    squares: int = 0
    longer: int = 0

    def add(self, difference: int) -> None:
        """Count one pair."""
        self.pairs += 1
        self.total += difference
        self.squares += difference * difference
        self.longer += difference > 0

    def merge(self, other: Differences) -> None:
        """Add another part's sums."""
        self.pairs += other.pairs
        self.total += other.total
        self.squares += other.squares
        self.longer += other.longer

    def bias(self) -> LengthBias | None:
        """Cohen's d of paired differences; None where it is not defined (one pair, or all differ alike).

        Its standard error is sqrt(1/n + d²/2n) (Hedges & Olkin 1985, for one sample).
        """
        n = self.pairs
        # n² times the variance, in integers: no digits are lost however long the rows
        spread = n * self.squares - self.total**2
        if n < 2 or (spread == 0 and self.total != 0):
            return None
        effect = self.total / math.sqrt(spread * n / (n - 1)) if spread else 0.0
        margin = Z_95 * math.sqrt(1 / n + effect**2 / (2 * n))
        return LengthBias(
            pairs=n,
            mean_difference=self.total / n,
            chosen_longer=self.longer / n,
            effect_size=effect,
            low=effect - margin,
            high=effect + margin,
        )


@dataclass
class Noted:
    """How many rows have a property, and the first one's place or words."""

    rows: int = 0
    first: str = ""

    def add(self, first: str) -> None:
        """Count one row."""
        self.merge(Noted(1, first))

    def merge(self, other: Noted) -> None:
        """Add what a later part noted."""
        self.first = self.first if self.rows else other.first
        self.rows += other.rows


@dataclass
class Findings:
    """Counts over some rows; those of consecutive parts add up by `merge`.

    Attributes:
        problems: the bad rows of this part alone; `merge` leaves them out.
        lengths: by side, how many good rows have each length.
        prompts, ids: an 8-byte hash of each good row's prompt, and each good row's id.
        scored, agreeing: good pairs with two scores, and those whose chosen side scores higher.
        failed: by property of the chat template, the rows without it.
        spelled: rows whose text spells a control token.
        unwanted: rows labelled as bad answers.
        reworded: rows of whose earlier assistant turns the chat template drops or changes text.
        header: what is trained before the answer, where the template ignores `add_generation_prompt`.
        examples: a few rows by the hash that picks them, which smallest hashes win.
        kept: the good rows of this part alone, to be stored (a `pyarrow.Table`); `merge` leaves them out.
    """

    rows: int = 0
    good: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    report: LengthReport = field(default_factory=LengthReport)
    differences: Differences = field(default_factory=Differences)
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    ids: array[int] = field(default_factory=lambda: array("Q"))
    scored: int = 0
    agreeing: int = 0
    failed: dict[str, Noted] = field(default_factory=dict)
    spelled: Noted = field(default_factory=Noted)
    unwanted: Noted = field(default_factory=Noted)
    reworded: Noted = field(default_factory=Noted)
    header: str = ""
    examples: dict[int, Example] = field(default_factory=dict)
    kept: Any = None

    def refuse(self, problem: Problem) -> None:
        """Count a bad row."""
        self.refused[problem.reason] += 1
        self.problems.append(problem)
        if problem.check is not None:
            self.failed.setdefault(problem.check, Noted()).add(str(problem))

    def measure(self, lengths: Mapping[str, int]) -> None:
        """Count a good row's lengths."""
        for side, length in lengths.items():
            self.lengths.setdefault(side, Counter())[length] += 1
        if "rejected" in lengths:
            self.differences.add(lengths["chosen"] - lengths["rejected"])

    def merge(self, later: Findings, examples: int) -> None:
        """Add the counts of the rows that follow, keeping so many examples."""
        self.rows += later.rows
        self.good += later.good
        self.refused += later.refused
        for side, counts in later.lengths.items():
            self.lengths.setdefault(side, Counter()).update(counts)
        self.report.merge(later.report)
        self.differences.merge(later.differences)
        self.prompts.extend(later.prompts)
        self.ids.extend(later.ids)
        self.scored += later.scored
        self.agreeing += later.agreeing
        for name, noted in later.failed.items():
            self.failed.setdefault(name, Noted()).merge(noted)
        self.spelled.merge(later.spelled)
        self.unwanted.merge(later.unwanted)
        self.reworded.merge(later.reworded)
        self.header = self.header or later.header
        both = later.examples | self.examples  # of equal rows, the first
        self.examples = {key: both[key] for key in nsmallest(examples, both)}

    def digest(self) -> str:
        """The name of the set of good rows: `splits.digest` of their records."""
        state = blake2b(digest_size=16)
        for number, row_id in enumerate(np.sort(np.frombuffer(self.ids, dtype=np.uint64))):
            state.update(f"{chr(10) * (number > 0)}{row_id:016x}".encode())
        return state.hexdigest()


def repeats(hashes: array[int]) -> int:
    """How many entries have an equal one before them."""
    values = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    return int((values[1:] == values[:-1]).sum())


def histograms(sides: Mapping[str, Mapping[int, int]]) -> dict[str, Histogram]:
    """By side, up to `BINS` bins of equal width as far as the 99th percentile; the last one takes the rest.

    Chosen and rejected share their bins, so that one can be held against the other.
    """
    pairs: Counter[int] = Counter()
    for side in COMPLETIONS:
        pairs.update(sides.get(side, {}))
    return {
        side: _histogram(counts, pairs if side in COMPLETIONS else counts) for side, counts in sides.items()
    }


def _histogram(counts: Mapping[int, int], binned_as: Mapping[int, int]) -> Histogram:
    """The histogram of `counts` in the bins that suit `binned_as`."""
    lengths, rows = _sorted(counts)
    edges = _edges(*_sorted(binned_as))
    binned, _ = np.histogram(lengths, bins=edges, weights=rows)
    total = int(rows.sum())
    return Histogram(
        edges=edges,
        counts=[int(count) for count in binned],
        mean=int((lengths * rows).sum()) / total,
        median=(_ranked(lengths, rows, (total - 1) // 2) + _ranked(lengths, rows, total // 2)) / 2,
        largest=int(lengths[-1]),
    )


def _edges(lengths: Any, rows: Any) -> list[int]:
    largest = int(lengths[-1])
    width = max(1, math.ceil(_ranked(lengths, rows, (99 * (int(rows.sum()) - 1)) // 100) / BINS))
    edges = list(range(0, min(BINS, max(1, math.ceil(largest / width))) * width + 1, width))
    edges[-1] = max(edges[-1], largest)
    return edges


def _sorted(counts: Mapping[int, int]) -> Any:
    """Lengths in their order, and how many rows have each."""
    return np.array(sorted(counts.items()), dtype=np.int64).T


def _ranked(lengths: Any, rows: Any, rank: int) -> int:
    """The length at a rank, counted from 0."""
    return int(lengths[np.searchsorted(rows.cumsum(), rank, side="right")])


def pick(seed: int, row_id: str) -> int:
    """The hash that decides whether a row is shown: the same rows in any order of the file."""
    return int.from_bytes(blake2b(f"{seed}\n{row_id}".encode(), digest_size=8).digest())


def as_hash(value: Any) -> int:
    """8 bytes that stand for a text."""
    return int.from_bytes(blake2b(str(value).encode(), digest_size=8).digest())
