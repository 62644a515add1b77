"""What calls will cost at most, before any is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.errors import ConfigError
from holdfast.evaluation.answers.client import Settings
from holdfast.evaluation.answers.generation import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MILLION = 1_000_000
CHARACTERS_A_TOKEN = 4  # of English text, as a rule of thumb
FRAME = 4  # tokens that a chat format puts around a message, about


@dataclass(frozen=True)
class Prices:
    """What a server takes, in any currency, for a million tokens it reads and a million it writes.

    Raises:
        ConfigError: a price that is none.
    """

    read: float
    written: float

    def __post_init__(self) -> None:
        for price in (self.read, self.written):
            if not (math.isfinite(price) and price >= 0):
                raise ConfigError(f"a price must be 0 or more for a million tokens, not {price}")


@dataclass(frozen=True)
class TokenCounter:
    """How tokens are counted.

    Attributes:
        count: the tokens of a text.
        how: in words.
    """

    count: Callable[[str], int]
    how: str


@dataclass(frozen=True)
class CostEstimate:
    """What calls take, if none has to be repeated.

    Attributes:
        calls: how many.
        tokens_read: of all messages.
        tokens_written: of all answers, if each is as long as it may be.
        how: tokens were counted.
        cost: at most, by the prices given; None without prices.
    """

    calls: int
    tokens_read: int
    tokens_written: int
    how: str
    cost: float | None

    def words(self) -> str:
        """In a line."""
        cost = (
            "no prices given, so no cost"
            if self.cost is None
            else f"at most {self.cost:,.2f} by the prices given"
        )
        return (
            f"{self.calls:,} calls, {self.tokens_read:,} tokens to read ({self.how}), at most "
            f"{self.tokens_written:,} to write: {cost}"
        )


def token_counter(tokenizer: PreTrainedTokenizerBase | None = None) -> TokenCounter:
    """Counts with a tokenizer; without one, a token for every four characters, rounded up."""
    if tokenizer is None:
        return TokenCounter(lambda text: -(-len(text) // CHARACTERS_A_TOKEN), "characters / 4")
    return TokenCounter(
        lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        f"counted by the tokenizer of {tokenizer.name_or_path or type(tokenizer).__name__}",
    )


def estimate_cost(
    requests: Iterable[Request], counter: TokenCounter, prices: Prices | None = None
) -> CostEstimate:
    """What requests cost at most; no call is made."""
    calls = read = written = 0
    for request in requests:
        calls += 1
        read += sum(FRAME + counter.count(str(message["content"])) for message in request.messages)
        written += _longest(request.settings)
    cost = None if prices is None else (read * prices.read + written * prices.written) / MILLION
    return CostEstimate(calls, read, written, counter.how, cost)


def _longest(settings: Settings) -> int:
    """Tokens that a server may write, under whichever name it is told."""
    body = settings.body()
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or settings.max_tokens)
