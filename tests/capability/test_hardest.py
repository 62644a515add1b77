"""The hardest rows, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from holdfast.capability.hardest import HARDEST, hardest
from tests.capability.conftest import by_hand

PLACES = [f"rows:{number}" for number in range(1, 9)]


def test_rows_come_by_the_mean_of_their_informative_tokens() -> None:
    scored = by_hand([[0.5, 0.1], [0.2, 0.9], [0.4]])
    found = hardest(scored, np.array([True, False, True, True, False]), PLACES[:3])
    assert [(row.where, row.tokens) for row in found] == [("rows:1", 1), ("rows:2", 2)]  # the third has none
    assert [row.mean_probability for row in found] == pytest.approx([0.5, 0.55])


def test_of_copies_one_is_listed() -> None:
    """Rows 1, 3 and 5 are one; row 4 is another answer to their prompt, row 6 their answer to another prompt."""
    scored = by_hand(
        [[0.1], [0.7], [0.1], [0.2], [0.1], [0.3], [0.4], [0.6]], [[1], [2], [1], [3], [1], [1], [4], [5]]
    )
    scored = replace(scored, prompt_of=np.array([0, 1, 0, 0, 0, 2, 3, 4]))
    found = hardest(scored, np.ones(8, bool), PLACES)
    assert len(found) == HARDEST
    assert [row.where for row in found] == ["rows:1", "rows:4", "rows:6", "rows:7", "rows:8"]
