"""Which target tokens the other rows' answers give away: by hand, then against the definition spelled out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.capability.blind_guess import AGREEMENT, LONGEST, ROWS_NEEDED, BlindGuess, blind_guess


def guess(rows: list[list[int]]) -> BlindGuess:
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return blind_guess(np.array([token for row in rows for token in row], dtype=np.int64), row_of)


def by_definition(rows: list[list[int]]) -> tuple[list[bool], list[float]]:
    """Token by token: the longest context that nine other rows share, and what they go on with."""
    informative, probability = [], []

    def context(row: list[int], place: int, order: int) -> tuple[Any, ...]:
        before = ["nothing"] * LONGEST + ["start"] + row[:place]
        return tuple(before[len(before) - order :])

    for number, row in enumerate(rows):
        for place, token in enumerate(row):
            for order in range(LONGEST, -1, -1):
                own = context(row, place, order)
                pairs = {
                    (n, other[p])
                    for n, other in enumerate(rows)
                    for p in range(len(other))
                    if n != number and context(other, p, order) == own
                }
                if len(pairs) >= ROWS_NEEDED or order == 0:
                    break
            following = [found for _, found in pairs]
            most = max((following.count(found) for found in set(following)), default=0)
            informative.append(most / (len(pairs) + 1) < AGREEMENT)
            probability.append(following.count(token) / (len(pairs) + 1))
    return informative, probability


def test_a_fixed_frame_is_given_away_and_what_varies_is_not() -> None:
    found = guess([[1, 2, 10 + n, 3] for n in range(10)])
    assert found.informative.reshape(10, 4).tolist() == [[False, False, True, True]] * 10
    # nine other rows agree: 9 of 9 + 1
    np.testing.assert_allclose(found.probability.reshape(10, 4)[:, :2], 0.9)
    np.testing.assert_array_equal(found.probability.reshape(10, 4)[:, 2], 0)


def test_too_few_rows_give_nothing_away() -> None:
    assert ROWS_NEEDED / (ROWS_NEEDED + 1) >= AGREEMENT > (ROWS_NEEDED - 1) / ROWS_NEEDED
    assert guess([[1, 2]] * ROWS_NEEDED).informative.all()
    assert not guess([[1, 2]] * (ROWS_NEEDED + 1)).informative.any()


def test_a_place_is_judged_without_the_token_that_stands_there() -> None:
    """The odd row's place is given away (and its token not expected); at the others', one row disagrees."""
    found = guess([[5]] * 9 + [[6]])
    assert found.informative.tolist() == [True] * 9 + [False]
    np.testing.assert_allclose(found.probability, [0.8] * 9 + [0.0])


def test_a_coin_flip_is_informative_and_is_guessed_half_the_time() -> None:
    found = guess([[1, 2 + n % 2, 4] for n in range(1000)])
    assert found.informative.reshape(-1, 3).tolist() == [[False, True, False]] * 1000
    assert found.probability.reshape(-1, 3)[:, 1].mean() == pytest.approx(0.5, abs=0.002)


def test_the_longest_shared_context_decides() -> None:
    """After 7 alone the next token is open; after 1 7 and 2 7 it is settled."""
    found = guess([[1, 7, 8], [2, 7, 9]] * 20)
    assert found.informative.reshape(-1, 3)[:, 0].all()
    assert not found.informative.reshape(-1, 3)[:, 1:].any()


def test_a_row_that_repeats_itself_counts_once() -> None:
    """Thirty rows open; one other row says 1 2 a hundred times, and gives no place away by that."""
    found = guess([[1, 2] * 100] + [[1, 10 + n] for n in range(5)])
    assert found.informative[-10:].all()


def test_copies_of_a_prompt_are_no_other_rows() -> None:
    """Three rows twelve times: alone they give away nothing, and none gives away the other copies' answers."""
    rows, prompt_of = [[1, 10, 2], [1, 11, 2], [1, 12, 2]] * 12, np.array([0, 1, 2] * 12)
    row_of = np.repeat(np.arange(36), 3)
    targets = np.array([token for row in rows for token in row], dtype=np.int64)
    assert not blind_guess(targets, row_of).informative.reshape(36, 3)[:, 2].any()
    assert blind_guess(targets, row_of, prompt_of).informative.all()


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_a_row_counts_the_same_however_often_it_is_copied(copies: int) -> None:
    rows = [[1, 2, 10 + n % 3, 3, 20 + n] for n in range(12)]
    alone = guess(rows)
    targets = np.array([token for row in rows * copies for token in row], dtype=np.int64)
    found = blind_guess(targets, np.repeat(np.arange(12 * copies), 5), np.tile(np.arange(12), copies))
    np.testing.assert_array_equal(found.agreement, np.tile(alone.agreement, copies))
    np.testing.assert_array_equal(found.probability, np.tile(alone.probability, copies))


def test_no_tokens_are_no_error() -> None:
    assert not len(blind_guess(np.zeros(0, np.int64), np.zeros(0, np.int64)).agreement)


ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_it_is_the_definition(rows: list[list[int]]) -> None:
    found, (informative, probability) = guess(rows), by_definition(rows)
    assert found.informative.tolist() == informative
    np.testing.assert_allclose(found.probability, probability, rtol=0, atol=1e-15)


@settings(max_examples=30, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_the_ids_matter(rows: list[list[int]], rng: Any) -> None:
    order = rng.sample(range(len(rows)), len(rows))
    names = rng.sample(range(250_000), 4)
    found, other = guess(rows), guess([[names[token] for token in rows[place]] for place in order])
    starts = np.cumsum([0, *(len(row) for row in rows)])
    places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in order])
    np.testing.assert_array_equal(other.informative, found.informative[places])
    np.testing.assert_array_equal(other.probability, found.probability[places])
