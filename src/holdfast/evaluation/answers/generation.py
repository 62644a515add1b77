"""Requests -> replies, by whatever answers them, each kept the moment it is there; and asked again only where missing.

transformers_backend.py, openai_backend.py and vllm_backend.py answer. generation_turns.py makes requests of questions.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from holdfast.errors import ConfigError, DataError, HoldfastError
from holdfast.evaluation.answers.client import CallError, Reply, Settings, Usage
from holdfast.evaluation.answers.journal import Journal, Row, by

GIVE_UP_AFTER = 20  # calls that fail in a row


@dataclass(frozen=True)
class Request:
    """A conversation to be answered.

    Attributes:
        key: tells it from all others: texts and numbers, as they stand in the row of its reply.
        messages: `{"role": ..., "content": ...}`, the last one to be answered.
    """

    key: tuple[str | int, ...]
    messages: Sequence[Mapping[str, Any]]
    settings: Settings


Keep = Callable[[Request, Reply], None]
Fail = Callable[[Request, CallError], None]


class Generator(Protocol):
    """What answers requests.

    Attributes:
        model: its name, for records.
        identity: what its answers depend on besides the requests; what another one answered is never taken for its own.
    """

    @property
    def model(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def answer(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """Call `keep` or `fail` once for each request, in any order, from any thread, as soon as it is answered.

        What they raise ends it, and comes out of it.
        """


@dataclass(frozen=True)
class Collected:
    """What came of a collection.

    Attributes:
        found: requests whose reply was there already.
        kept: replies that were added.
        failed: the others, by key, with the reason in words.
    """

    found: int
    kept: int
    failed: dict[Hashable, str] = field(default_factory=dict)


def request_digest(identity: str, request: Request) -> str:
    """32 hexadecimal digits of what is asked of whom, and how."""
    asked = [identity, list(request.messages), request.settings.as_dict()]
    return blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=16).hexdigest()


def reply_row(request: Request, reply: Reply, digest: str) -> dict[str, Any]:
    """A reply as a row of its own. `reply_of` is the way back."""
    return {"key": list(request.key), "request": digest, **asdict(reply)}


def reply_of(row: Row) -> Reply:
    """The reply in a row that `reply_row` made."""
    usage = row["usage"]
    return Reply(row["text"], row["model"], Usage(**usage) if usage else None, row["finish_reason"])


def open_replies(path: str | Path) -> Journal:
    """A journal of rows that `reply_row` makes, keyed as their requests."""
    return Journal(path, key=lambda row: tuple(row["key"]))


def collect(
    generator: Generator,
    requests: Sequence[Request],
    replies: Journal,
    failures: str | Path,
    *,
    row_of: Callable[[Request, Reply, str], Row] = reply_row,
    give_up_after: int = GIVE_UP_AFTER,
) -> Collected:
    """Have every request answered whose reply is not in the journal yet.

    A reply is on the disk before its worker asks the next. What fails is appended to `failures`, a journal of its own
    that is made with the first failure, and is asked again by the next call.

    Args:
        row_of: the row of a reply, whose key in `replies` must be the request's. Its third argument is the request's
            digest: a row that holds it as `request` is not taken for the answer to another question later.
        give_up_after: requests that may fail in a row, by no fault of their own.

    Raises:
        DataError: two requests share a key, or a row in the journal answers another request of this key.
        HoldfastError: too many requests failed in a row.
    """
    digests = {request.key: request_digest(generator.identity, request) for request in requests}
    if len(digests) < len(requests):
        raise DataError("two requests share a key, so their replies could not be told apart")
    if give_up_after < 1:
        raise ConfigError(f"give_up_after must be at least 1, not {give_up_after}")
    todo = [request for request in requests if not _is_answered(replies, request, digests[request.key])]
    failed: dict[Hashable, str] = {}
    guard = threading.Lock()
    in_a_row = kept = 0

    with ExitStack() as stack:
        journal: Journal | None = None

        def keep(request: Request, reply: Reply) -> None:
            nonlocal in_a_row, kept
            replies.add(row_of(request, reply, digests[request.key]))
            with guard:
                in_a_row = 0
                kept += 1

        def fail(request: Request, error: CallError) -> None:
            nonlocal in_a_row, journal
            with guard:
                if journal is None:
                    journal = stack.enter_context(Journal(failures, by("number")))
                failed[request.key] = str(error)
                journal.add(_failure_row(len(journal) + 1, request, error))
                in_a_row += not error.of_request
                if in_a_row >= give_up_after:
                    raise HoldfastError(
                        f"{in_a_row} requests in a row failed, the last one for this: {error}. {kept} replies of this "
                        f"run are kept in '{replies.path}'; run again to ask for the rest"
                    )

        if todo:
            generator.answer(todo, keep, fail)
    return Collected(len(requests) - len(todo), kept, failed)


def _is_answered(replies: Journal, request: Request, digest: str) -> bool:
    row = replies.get(request.key)
    if row is None:
        return False
    if row.get("request", digest) != digest:
        raise DataError(
            f"'{replies.path}' answers another request of the key {request.key!r}: the model, the messages or the "
            "settings have changed since. Choose another folder, or move the file aside"
        )
    return True


def _failure_row(number: int, request: Request, error: CallError) -> dict[str, Any]:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "number": number,
        "key": list(request.key),
        "reason": error.reason,
        "detail": str(error),
        "at": at,
    }
