"""Comparing a pilot's arms: paired by row, and only what its interval shows counts as a difference."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.capability.pilot_report import START, Arm, PilotReport, Scores, Winner, compare

OBJECTIVES = {"nll": {"name": "nll"}, "p": {"name": "p"}}


def scores(
    greedy: list[float],
    sampled: list[float] | None = None,
    logp: float = -1.0,
    asked: list[float] | None = None,
) -> Scores:
    rows = len(greedy)
    return Scores(
        np.full(rows, logp),
        np.full(rows, 2.0),
        np.array(greedy),
        np.array(greedy if sampled is None else sampled),
        np.ones(rows) if asked is None else np.array(asked),
    )


def compared(**arms: Scores) -> tuple[dict[str, Arm], dict[str, Winner]]:
    found, winners = compare(arms, {name: OBJECTIVES[name] for name in arms if name != START}, {}, seed=0)
    return {arm.name: arm for arm in found}, {winner.criterion: winner for winner in winners}


def test_values_and_paired_differences() -> None:
    arms, winners = compared(
        start=scores([0.0] * 8), nll=scores([1, 0] * 4, [0.5] * 8, -1.0), p=scores([1] * 8, [0.75] * 8, -3.0)
    )
    assert arms["nll"].scores["likelihood"].value == -0.5  # nats a token: 8 · −1 / (8 · 2)
    assert arms["p"].scores["greedy"].value == 1
    assert arms["p"].scores["answers"].value == 0.875
    assert arms["p"].over_nll["sampled"].value == 0.25
    assert (arms["p"].over_nll["sampled"].low, arms["p"].over_nll["sampled"].high) == (0.25, 0.25)
    assert arms["start"].over_nll["greedy"].value == -0.5
    assert arms["nll"].over_nll == {}
    assert (winners["likelihood"].best, winners["answers"].best) == ("nll", "p")
    assert all(winner.settled for winner in winners.values())
    assert arms["start"].behind_best["answers"].value == 0.875


def test_a_difference_that_may_be_none_is_a_tie() -> None:
    right = [1.0, 0.0] * 20
    arms, winners = compared(nll=scores(right), p=scores([*right[:-1], 1.0]))
    assert winners["greedy"].best == "p"
    assert winners["greedy"].tied == ("nll",)
    assert not winners["greedy"].settled
    assert arms["nll"].behind_best["greedy"].low == 0


def test_pairing_sees_what_two_intervals_do_not() -> None:
    """One arm is right where the other is, and on a fifth of the rows besides."""
    generator = np.random.default_rng(0)
    base = (generator.random(200) < 0.4).astype(float)
    more = np.maximum(base, generator.random(200) < 0.1)
    arms, winners = compared(nll=scores(base.tolist()), p=scores(more.tolist()))
    high, low = arms["nll"].scores["greedy"].high, arms["p"].scores["greedy"].low
    assert high is not None
    assert low is not None
    assert low < high  # the intervals overlap
    assert winners["greedy"].settled


def test_copies_of_a_held_out_row_settle_nothing() -> None:
    """Right on one prompt of two, six copies of it: drawn apart they would be a lead."""
    right = [1.0] * 6 + [0.0]
    arms = {"nll": scores([0.0] * 7), "p": scores(right)}
    _, winners = compare(arms, OBJECTIVES, {}, seed=0)
    assert {winner.criterion: winner.settled for winner in winners}["greedy"]
    _, winners = compare(arms, OBJECTIVES, {}, seed=0, prompt_of=np.array([0] * 6 + [1]))
    assert not {winner.criterion: winner.settled for winner in winners}["greedy"]


def test_without_a_right_answer_there_is_no_winner_by_answers() -> None:
    _, winners = compared(nll=scores([0.0] * 4, logp=-5.0), p=scores([0.0] * 4, logp=-4.0))
    assert set(winners) == {"likelihood"}
    assert winners["likelihood"].best == "p"


def test_rows_that_were_not_asked_count_neither_way() -> None:
    asked = [1.0, 1.0, 0.0, 0.0]
    arms, winners = compared(
        nll=scores([1.0, 0.0, 0.0, 0.0], asked=asked), p=scores([1.0, 1.0, 0.0, 0.0], asked=asked)
    )
    assert (arms["nll"].scores["greedy"].value, arms["p"].scores["greedy"].value) == (0.5, 1.0)
    assert arms["nll"].scores["likelihood"].value == -0.5  # of all four
    assert winners["greedy"].best == "p"
    arms, winners = compared(nll=scores([0.0] * 4, asked=[0.0] * 4), p=scores([0.0] * 4, asked=[0.0] * 4))
    assert arms["p"].scores["answers"].value is None
    assert set(winners) == {"likelihood"}


def test_without_nll_nothing_is_compared_with_it() -> None:
    found, _ = compare(
        {"p": scores([1.0, 0.0]), "f": scores([1.0, 1.0])},
        {"p": {"name": "p"}, "f": {"name": "f_alpha"}},
        {},
        0,
    )
    assert [arm.over_nll for arm in found] == [{}, {}]


def test_arms_and_winners_by_name() -> None:
    arms, winners = compare({"nll": scores([1.0]), "p": scores([0.0])}, OBJECTIVES, {"nll": 0.5}, 0)
    report = PilotReport(1, 2, 1, 1, 64, 1, 0, {}, arms, winners)
    assert report.arm("nll").final_loss == 0.5
    assert report.winner("greedy") == Winner("greedy", "nll", ("p",))  # one row has no interval
    assert report.winner("nothing") is None
    assert report.arm("p").scores["likelihood"].value == pytest.approx(-0.5)
