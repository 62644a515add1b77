"""Splits by prompt: disjoint, independent of order, stable as the file grows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.records import PreferenceRecord, SFTRecord, preference_record, text_record
from holdfast.data.splits import digest, position, split_by_prompt
from holdfast.errors import ConfigError

FRACTIONS = {"sft": 0.33, "preference": 0.57, "eval": 0.1}


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> PreferenceRecord:
    return preference_record(
        "rows.jsonl:1",
        [{"role": "user", "content": prompt}],
        [{"role": "assistant", "content": chosen}],
        [{"role": "assistant", "content": rejected}],
    )


prompts = st.lists(st.text(min_size=1).filter(str.strip).filter(lambda t: t.isprintable()), max_size=30)


@given(prompts, st.integers(0, 5), st.randoms())
def test_disjoint_whatever_the_order(texts: list[str], seed: int, shuffler: random.Random) -> None:
    records = [pair(text, chosen=f"good {n}") for n, text in enumerate(texts)]
    sides = split_by_prompt(records, FRACTIONS, seed)
    assert sum(map(len, sides.values())) == len(records)
    seen = [{record.prompt[0]["content"] for record in side} for side in sides.values()]
    assert sum(map(len, seen)) == len(set(texts))
    shuffled = records[:]
    shuffler.shuffle(shuffled)
    again = split_by_prompt(shuffled, FRACTIONS, seed)
    assert {name: digest(side) for name, side in again.items()} == {
        name: digest(side) for name, side in sides.items()
    }


@given(prompts, prompts, st.integers(0, 5))
def test_growth_moves_no_row(texts: list[str], more: list[str], seed: int) -> None:
    before = split_by_prompt(map(pair, texts), FRACTIONS, seed)
    after = split_by_prompt(map(pair, [*texts, *more]), FRACTIONS, seed)
    for name, side in before.items():
        assert after[name][: len(side)] == side


def test_both_kinds_of_record_fall_on_one_side() -> None:
    records = [pair(f"question {n}") for n in range(50)]
    for record in records:
        assert position(record, 3) == position(record.chosen_as_sft(), 3)


def test_shares_are_met_and_the_seed_matters() -> None:
    records = [pair(f"question {n}") for n in range(2000)]
    sides = split_by_prompt(records, FRACTIONS, seed=0)
    # three standard deviations of a binomial share: 3 * sqrt(0.33 * 0.67 / 2000) = 0.032
    assert len(sides["sft"]) / 2000 == pytest.approx(0.33, abs=0.032)
    assert len(sides["eval"]) / 2000 == pytest.approx(0.1, abs=0.021)
    assert split_by_prompt(records, FRACTIONS, seed=1) != sides


def test_rows_outside_the_fractions_fall_on_no_side() -> None:
    sides = split_by_prompt([pair(f"question {n}") for n in range(400)], {"train": 0.5}, seed=0)
    assert 140 < len(sides["train"]) < 260


def test_shares_that_sum_to_one_lose_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"a": 0.7, "b": 0.2, "c": 0.1}  # added in order: 0.9999999999999999
    monkeypatch.setattr("holdfast.data.splits.position", lambda record, seed: 1 - 2**-53)
    assert {name: len(side) for name, side in split_by_prompt([pair("x")], shares, 0).items()} == {
        "a": 0,
        "b": 0,
        "c": 1,
    }


def test_raw_text_is_its_own_prompt() -> None:
    texts: list[SFTRecord] = [text_record("rows.jsonl:1", f"text {n}") for n in range(8)]
    assert len({position(text, 0) for text in texts}) == 8


@pytest.mark.parametrize("fractions", [{}, {"a": -0.1}, {"a": 1.2}, {"a": 0.7, "b": 0.4}])
def test_impossible_fractions_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="fractions"):
        split_by_prompt([], fractions, seed=0)


def test_digest_names_a_set_of_rows() -> None:
    a, b = pair("a"), pair("b")
    assert digest([a, b]) == digest([b, a])
    assert len({digest([a]), digest([a, b]), digest([a, a]), digest([])}) == 4
