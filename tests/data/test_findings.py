"""Figures of a check worked by hand: effect size, histogram, repeats; and parts that add up."""

from __future__ import annotations

import math
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.check_report import Histogram
from holdfast.data.faults import Problem
from holdfast.data.findings import Differences, Findings, Noted, histograms, repeats


def differences(values: list[int]) -> Differences:
    found = Differences()
    for value in values:
        found.add(value)
    return found


def test_length_bias_by_hand() -> None:
    # differences 1, 2, 3, -2: mean 1; deviations 0, 1, 2, -3, so their variance is 14 / 3
    bias = differences([1, 2, 3, -2]).bias()
    assert bias is not None
    assert (bias.pairs, bias.mean_difference, bias.chosen_longer) == (4, 1.0, 0.75)
    d = 1 / math.sqrt(14 / 3)
    assert bias.effect_size == pytest.approx(d)
    # standard error: sqrt(1/4 + (3/14) / 8)
    assert bias.low == pytest.approx(d - 1.959964 * math.sqrt(1 / 4 + 3 / 112))
    assert bias.high == pytest.approx(d + 1.959964 * math.sqrt(1 / 4 + 3 / 112))


def test_length_bias_where_it_is_not_defined() -> None:
    assert differences([]).bias() is None
    assert differences([5]).bias() is None
    assert differences([5, 5, 5]).bias() is None  # no spread to hold the mean against
    none = differences([0, 0, 0]).bias()
    assert none is not None
    assert (none.effect_size, none.low) == (0.0, pytest.approx(-1.959964 / math.sqrt(3)))


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=50), st.integers(0, 50))
def test_differences_of_parts_are_those_of_the_whole(values: list[int], cut: int) -> None:
    parts = differences(values[:cut])
    parts.merge(differences(values[cut:]))
    assert parts == differences(values)
    bias = parts.bias()
    if bias is not None and bias.effect_size:
        assert bias.effect_size == pytest.approx(np.mean(values) / np.std(values, ddof=1))


def histogram(counts: dict[int, int]) -> Histogram:
    return histograms({"prompt": counts})["prompt"]


def test_histogram_by_hand() -> None:
    # 1 to 40 once each: the 99th percentile is the 39th value (rank 99 · 39 // 100 = 38), bins of 2
    found = histogram(dict.fromkeys(range(1, 41), 1))
    assert found.edges == list(range(0, 41, 2))
    # [0, 2) holds 1; the others two each; the last takes 40 too
    assert found.counts == [1, *[2] * 18, 3]
    assert (found.mean, found.median, found.largest) == (20.5, 20.5, 40)


def test_one_long_row_does_not_flatten_a_histogram() -> None:
    found = histogram({1: 500, 3: 499, 100_000: 1})
    assert found.edges == [*range(20), 100_000]
    assert found.counts == [0, 500, 0, 499, *[0] * 15, 1]
    assert (found.median, found.largest) == (2.0, 100_000)
    assert found.mean == pytest.approx((500 + 3 * 499 + 100_000) / 1000)


def test_chosen_and_rejected_share_their_bins() -> None:
    found = histograms({"prompt": {1: 1}, "chosen": {2: 3}, "rejected": {7: 1}})
    assert found["chosen"].edges == found["rejected"].edges == list(range(8))
    assert found["chosen"].counts == [0, 0, 3, 0, 0, 0, 0]
    assert found["rejected"].counts == [0, 0, 0, 0, 0, 0, 1]
    assert found["prompt"].edges == [0, 1]
    assert (found["chosen"].largest, found["rejected"].largest) == (2, 7)


def test_histograms_of_next_to_nothing() -> None:
    assert (histogram({0: 3}).edges, histogram({0: 3}).counts) == ([0, 1], [3])
    assert (histogram({1: 2}).edges, histogram({1: 2}).counts) == ([0, 1], [2])
    two = histogram({2: 1, 5: 1})
    assert (two.edges, two.counts) == ([0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 1])


@given(st.dictionaries(st.integers(0, 5000), st.integers(1, 50), min_size=1, max_size=60))
def test_histogram_properties(counts: dict[int, int]) -> None:
    found = histogram(counts)
    values = [length for length, rows in counts.items() for _ in range(rows)]
    assert sum(found.counts) == len(values)
    assert len(found.edges) == len(found.counts) + 1 <= 21
    assert found.edges[-1] >= found.largest == max(values)
    assert found.median == np.median(values)
    assert found.mean == pytest.approx(np.mean(values))


def test_repeats_counts_all_but_the_first() -> None:
    assert repeats(array("Q", [7, 1, 7, 7, 2, 1])) == 3
    assert repeats(array("Q")) == 0
    assert repeats(array("Q", [2**64 - 1, 0])) == 0


def test_the_first_note_is_kept() -> None:
    noted = Noted()
    noted.merge(Noted())
    noted.merge(Noted(2, "rows.jsonl:3"))
    noted.add("rows.jsonl:9")
    assert noted == Noted(3, "rows.jsonl:3")


def test_merging_leaves_the_problems_behind() -> None:
    """They are written away as they come: a file of bad rows must not fill the memory."""
    total, part = Findings(), Findings(rows=1)
    part.refuse(Problem("rows.jsonl:1", "template", "x", {}, "one_bos"))
    total.merge(part, examples=3)
    assert (total.rows, total.refused, total.problems) == (1, {"template": 1}, [])
    assert total.failed == {"one_bos": Noted(1, "rows.jsonl:1: template: x")}
