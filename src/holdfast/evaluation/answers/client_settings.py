"""What a call asks for, how long it may take, and how often it is tried."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from holdfast.errors import ConfigError

# Keys of a request's body that say what is asked and how the answer comes: the client's to set.
OWN_KEYS = ("model", "messages", "stream", "n")
COUNTS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Settings:
    """How an answer is decoded.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        max_tokens: the answer's, at most.
        top_p: tokens are drawn from the likeliest ones that have this mass together.
        seed: of the draws; None leaves it to whoever draws.
        stop: texts that end an answer, and are no part of it.
        extra: further keys of the body that a server is sent. A null leaves a key out: newer models of OpenAI take
            `{"max_tokens": None, "max_completion_tokens": 2048}`.

    Raises:
        ConfigError: a value that no answer can be decoded with.
    """

    temperature: float = 0.0
    max_tokens: int = 1024
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature must be 0 or more, not {self.temperature}")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop must be a tuple of texts that are not empty, not {self.stop!r}")
        if taken := sorted(set(OWN_KEYS).intersection(self.extra)):
            raise ConfigError(f"extra: '{taken[0]}' is set by the client")
        _require_sendable(self.extra)

    def body(self) -> dict[str, Any]:
        """As keys of a chat completion's request."""
        said: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if self.top_p < 1:
            said["top_p"] = self.top_p
        if self.seed is not None:
            said["seed"] = self.seed
        if self.stop:
            said["stop"] = list(self.stop)
        return {key: value for key, value in (said | dict(self.extra)).items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for records."""
        return asdict(self) | {"stop": list(self.stop), "extra": dict(self.extra)}


def _require_sendable(extra: Mapping[str, Any]) -> None:
    """Keys of a body that JSON has a form for, and of the kind that a server reads.

    Raises:
        ConfigError: one that is not.
    """
    for key, value in extra.items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"extra: '{key}' cannot be sent as JSON ({error})") from error
        if value is None:
            continue
        if key in COUNTS and (type(value) is not int or value < 1):
            raise ConfigError(f"extra: '{key}' must be a whole number from 1, not {value!r}")
        if key in ("temperature", "top_p") and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise ConfigError(f"extra: '{key}' must be a number, not {value!r}")


@dataclass(frozen=True)
class Deadlines:
    """How long an attempt may take, in seconds.

    Attributes:
        connect: until the server takes the connection.
        read: without a byte. A server that does not stream is silent for as long as it writes.
        total: from the beginning to the last byte, however steadily they come.
    """

    connect: float = 10.0
    read: float = 300.0
    total: float = 600.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"deadlines: {name} must be above 0 seconds, not {value}")


@dataclass(frozen=True)
class Retries:
    """How often a call is tried, and how long it waits in between, in seconds.

    Attributes:
        attempts: in all.
        first_wait: before the second attempt; doubled before each further one.
        longest_wait: what doubling stops at.
        longest_asked: a server that asks for a longer wait than this is not asked again in this run.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_asked: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 100:
            raise ConfigError(f"retries: attempts must be 1 to 100, not {self.attempts}")
        for name in ("first_wait", "longest_wait", "longest_asked"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"retries: {name} must be 0 seconds or more, not {value}")

    def wait(self, failed: int, asked: float | None, draw: float) -> float:
        """Seconds to wait after so many failed attempts.

        Half of the doubled wait is drawn, so that calls that failed together do not come back together. A wait that
        the server asked for is kept in full, and the drawn part comes on top.

        Args:
            asked: seconds that the server asked for; None where it did not.
            draw: a random number, 0 to 1.
        """
        doubled = min(self.longest_wait, self.first_wait * 2 ** (failed - 1))
        if asked is None:
            return doubled * (0.5 + 0.5 * draw)
        return asked + min(doubled, self.first_wait) * draw
