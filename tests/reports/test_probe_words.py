"""A probe's figures in words, worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.reports import probe_words as words
from tests.capability.test_report import piloted, report


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (estimate(0.8123, 0.8011, 0.8234), "0.812 [0.801, 0.823]"),
        (estimate(-0.25, -0.3, 0.1), "−0.250 [−0.300, 0.100]"),
        (estimate(0.5), "0.500"),
        (estimate(None), "–"),
        (estimate(1e-5), "1e−05"),
        (estimate(0.0), "0.000"),
    ],
)
def test_intervals(own: dict[str, Any], text: str) -> None:
    assert words.interval(own) == text


def test_differences_carry_their_sign() -> None:
    assert words.interval(estimate(0.1, -0.2, 0.4), signed=True) == "+0.100 [−0.200, +0.400]"
    assert words.interval(estimate(0.0), signed=True) == "0.000"


def test_counts() -> None:
    assert (words.count(1, "row"), words.count(2000, "row")) == ("1 row", "2,000 rows")


def test_the_verdict_names_boundaries() -> None:
    found = report().to_dict()
    assert words.verdict(found).endswith("(weak below 0.30, strong from 0.60)")
    assert words.verdict(found).startswith(found["regime"]["name"])
    found["capability"] = estimate(None)
    assert "give away every target token" in words.verdict(found)


def test_lines_leave_out_what_was_not_measured() -> None:
    found = report().to_dict()
    found["informative"] = None
    lines = {line.label: line for line in words.lines(found)}
    assert (lines["tokens"].every, lines["tokens"].informative) == ("36", "–")
    assert lines["mean p, guessed"].every == "–"
    assert lines["given away, p < 0.01"].every == "0.000 [0.000, 0.000]"


def test_the_histogram_keeps_every_token() -> None:
    summary = {"histogram": [1] * 100}
    assert words.histogram(summary) == [5] * 20
    assert words.histogram(summary, 50) == [2] * 50


def test_objectives_as_people_write_them() -> None:
    spec = {"name": "f_alpha", "alpha": 0.3}
    assert words.objective({"recommendation": {"objective": spec}}) == "f_alpha (alpha 0.3)"
    assert words.objective({"recommendation": {"objective": {"name": "p"}}}) == "p"


def test_a_pilots_winners() -> None:
    found = words.harmless(piloted().to_dict())
    assert words.winners(found) == [
        "likelihood: nll, not shown to be better than p",
        "greedy exact: nll, not shown to be better than p",
        "exact at temperature 1: nll, better than every other (no interval holds 0)",
        "mean of the two: nll, better than every other (no interval holds 0)",
    ]
    trials = words.trials(found)
    assert [trial.name for trial in trials] == ["start", "nll", "p"]
    assert trials[1].over_nll == ("–",) * 4
    assert trials[2].over_nll[2] == "−0.250 [−0.250, −0.250]"
    assert words.trials(words.harmless(report().to_dict())) == []


def test_a_start_that_is_better_than_all_is_said() -> None:
    found = words.harmless(piloted().to_dict())
    found["pilot"]["arms"][0]["behind_best"]["answers"] = estimate(-0.2, -0.3, -0.1)
    assert "the start answers better than every candidate" in words.winners(found)[-1]


def test_a_criterion_without_a_winner_is_said() -> None:
    found = words.harmless(piloted().to_dict())
    found["pilot"]["winners"] = found["pilot"]["winners"][:1]
    assert "greedy exact: no candidate gave a single answer word for word" in words.winners(found)


def test_a_pilot_that_generated_nothing_says_so() -> None:
    found = words.harmless(piloted().to_dict())
    assert "judged on 4 others, 2 samples each at temperature 1; seed 0" in words.pilot_facts(found)
    found["pilot"] |= {"asked_rows": 3}
    assert "2 samples for each of the 3 with short enough answers at temp" in words.pilot_facts(found)
    found["pilot"] |= {"asked_rows": 0, "winners": found["pilot"]["winners"][:1]}
    assert "no answers generated" in words.pilot_facts(found)
    assert [line[:50] for line in words.winners(found)] == [
        "likelihood: nll, not shown to be better than p",
        "answers are not compared: most held-out ones have ",
    ]


def test_prompts_are_counted_where_rows_share_them() -> None:
    found = report().to_dict()
    assert "prompt" not in words.facts(found)
    found["probed"]["prompts"] = 3
    assert "12 of 12 rows (seed 0), 3 prompts, 36 target tokens" in words.facts(found)


def test_texts_are_shown_harmlessly() -> None:
    found = report().to_dict()
    found["hardest"][0]["where"] = "rows\x1b[31m.jsonl:1"
    assert "rows\\x1b[31m.jsonl:1" in words.hardest(words.harmless(found))[0]


def test_what_is_no_report_is_named() -> None:
    found = report().to_dict()
    del found["regime"]
    with pytest.raises(DataError, match="probe.json: no report of a probe: 'regime' is missing"):
        words.harmless(found, "probe.json")
