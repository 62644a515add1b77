"""What calls cost at most."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import ConfigError
from holdfast.evaluation.answers.client import Settings
from holdfast.evaluation.answers.cost import CostEstimate, Prices, estimate_cost, token_counter
from holdfast.evaluation.answers.generation import Request
from holdfast.models.tiny import tiny_bpe_tokenizer


def request(number: int, settings: Settings, *contents: str) -> Request:
    return Request((number,), [{"role": "user", "content": text} for text in contents], settings)


def test_a_cost_by_hand() -> None:
    # read: (4 + 2) + (4 + 2) + (4 + 0); written: 100 + 50
    requests = [
        request(1, Settings(max_tokens=100), "12345678", "12345"),
        request(2, Settings(extra={"max_tokens": None, "max_completion_tokens": 50}), ""),
    ]
    estimate = estimate_cost(iter(requests), token_counter(), Prices(read=10, written=1000))
    assert estimate == CostEstimate(2, 16, 150, "characters / 4", (16 * 10 + 150 * 1000) / 1e6)
    assert estimate.words() == (
        "2 calls, 16 tokens to read (characters / 4), at most 150 to write: at most 0.15 by the prices given"
    )


def test_without_prices_no_cost_is_made_up() -> None:
    estimate = estimate_cost([request(1, Settings(), "a")], token_counter())
    assert estimate.cost is None
    assert "no prices given, so no cost" in estimate.words()
    assert estimate_cost([], token_counter(), Prices(1, 1)).cost == 0


def test_a_tokenizer_counts_its_own_tokens() -> None:
    tokenizer: Any = tiny_bpe_tokenizer(["ab"], 259)
    counter = token_counter(tokenizer)
    assert [counter.count(text) for text in ("", "abc", "ü")] == [0, 3, 2]
    assert counter.how.startswith("counted by the tokenizer of")


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_prices_that_are_none(price: float) -> None:
    with pytest.raises(ConfigError, match="a price must be"):
        Prices(1, price)
