"""What a server answers -> a reply, or why it is none and whether asking again may help."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from holdfast.data.faults import kind_of, printable
from holdfast.errors import HoldfastError

SHOWN = 200  # characters of a server's own words in a message
LONGEST_NAME = 200  # characters that are kept of what a server says it is
SHORTEST_SECRET = 8  # characters; a shorter key stands in honest answers by chance, and is no secret
# A request that took too long, a conflict, too many requests: of the 4xx, what may pass.
PASSING = frozenset({408, 409, 429})
# Why an answer is none, though it has text.
UNFINISHED = frozenset({"content_filter", "error"})


class CallError(HoldfastError):
    """A call that brought no reply.

    Attributes:
        reason: in a word: "deadline", "connection", "status 500", "too large", "no text", ...
        passing: whether asking again may help.
        wait: seconds that the server asked to wait; None where it did not.
        of_request: whether what was asked is at fault, and other calls may well succeed.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        passing: bool = False,
        wait: float | None = None,
        of_request: bool = False,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.passing = passing
        self.wait = wait
        self.of_request = of_request


@dataclass(frozen=True)
class Usage:
    """Tokens as the one who answered counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: as it came; it may be empty.
        model: the name that the server gives itself; None where it gives none.
        usage: None where it was not counted.
        finish_reason: "stop" where the model ended, "length" where it was cut at `max_tokens`; None where not said.
    """

    text: str
    model: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None


def blanked(text: str, key: str | None) -> str:
    """A text for records and messages, in which a key that the server said back reads `[key]`.

    A key of fewer than eight characters is left where it stands: `7` is a rating too.
    """
    if key is None or len(key) < SHORTEST_SECRET:
        return text
    for said in (key, key.replace("/", "\\/")):  # in JSON that was not read, either
        text = text.replace(said, "[key]")
    return text


def require_success(status: int, headers: Mapping[str, str], content: bytes, key: str | None = None) -> None:
    """See that a status is one of success.

    Args:
        headers: their names in lower case.
        key: is blanked in messages.

    Raises:
        CallError: it is not.
    """
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise CallError(
            f"status {status}",
            "the server sends the call elsewhere, and a key is not sent after it: set the address where it answers",
        )
    passing = status in PASSING or status >= 500
    raise CallError(
        f"status {status}",
        f"the server answers with status {status}: {_excerpt(content, key)}",
        passing=passing,
        wait=wait_asked(headers) if passing else None,
    )


def wait_asked(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that `Retry-After` asks for, given as a number or as a date; None where it asks for nothing.

    A date is compared with the server's own clock where it tells the time.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", value):
        return float(value)
    until = _date(value)
    if until is None:
        return None
    return max(0.0, (until - (_date(headers.get("date", "")) or now or datetime.now(UTC))).total_seconds())


def parse_reply(content: bytes, key: str | None = None) -> Reply:
    """The reply in the body of a chat completion.

    Args:
        key: is blanked in the reply's texts, once they are read, and in messages.

    Raises:
        CallError: there is none.
    """
    if not content.strip():
        raise CallError("empty body", "the server answers with nothing", passing=True)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise CallError(
            "not JSON", f"the answer is not JSON: {_excerpt(content, key)}", passing=True
        ) from None
    if not isinstance(body, dict):
        raise _unusable(f"the answer is {kind_of(body)}, where an object should be")
    if body.get("error"):
        raise _said_error(body["error"], key)
    choice = _first_choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _unusable("the answer has no message")
    reason = choice.get("finish_reason")
    text = _text_of(message, reason, key)
    model = body.get("model")
    return Reply(
        text=text,
        model=_name(model, key) if isinstance(model, str) else None,
        usage=_usage_of(body.get("usage")),
        finish_reason=_name(reason, key) if isinstance(reason, str) else None,
    )


def _first_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _unusable("the answer has no choices")
    return choices[0]


def _text_of(message: Mapping[str, Any], reason: Any, key: str | None) -> str:
    if reason in UNFINISHED:
        filtered = reason == "content_filter"
        detail = f"the answer was broken off ({reason})"
        raise CallError(str(reason), detail, passing=not filtered, of_request=filtered)
    text = message.get("content")
    if isinstance(text, list):  # parts; only those of text are an answer
        parts = [part.get("text") if isinstance(part, dict) else None for part in text]
        words = [part for part in parts if isinstance(part, str)]
        if len(words) < len(parts):
            raise _unusable("the answer holds parts that are not text")
        text = "".join(words)
    if text is None and message.get("refusal"):
        said = _excerpt(str(message["refusal"]).encode("utf-8", "replace"), key)
        raise CallError("refusal", f"the model refuses: {said}", of_request=True)
    if text is None and reason == "length":  # all that was allowed went into thinking: as at any other time
        text = ""
    if not isinstance(text, str):
        raise CallError("no text", f"the answer's text is {kind_of(text)}", passing=True)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CallError("no text", "the answer's text is not valid Unicode", passing=True) from None
    return blanked(text, key)


def _usage_of(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (type(read) is int and type(written) is int and read >= 0 and written >= 0):
        return None
    return Usage(read, written)


def _said_error(error: Any, key: str | None) -> CallError:
    """An error that came with a status of success. Where it gives a status, that one counts."""
    code = error.get("code") if isinstance(error, dict) else None
    message = error.get("message", error) if isinstance(error, dict) else error
    refused = type(code) is int and 400 <= code < 500 and code not in PASSING
    said = _excerpt(str(message).encode("utf-8", "replace"), key)
    return CallError("error object", f"the server answers with an error: {said}", passing=not refused)


def _unusable(detail: str) -> CallError:
    return CallError("unusable", detail, passing=True)


def _name(text: str, key: str | None) -> str:
    """A name that a server gives, at most 200 characters of it."""
    text = printable(blanked(text, key)[: LONGEST_NAME + 1])
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 3] + "..."


def _excerpt(content: bytes, key: str | None) -> str:
    """A server's own words for a message."""
    # blanked first: a key that is cut in two is still most of a key
    text = " ".join(blanked(content.decode("utf-8", "replace"), key)[: 4 * SHOWN].split())
    return printable(text[:SHOWN]) or "(nothing)"


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
