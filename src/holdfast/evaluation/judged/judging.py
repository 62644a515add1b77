"""Asking a judge for what is not there yet, and reading what is: replies in a journal, keyed by what was asked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from holdfast.errors import DataError
from holdfast.evaluation.answers.client import Reply
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.answers.generation import Generator, Request, collect
from holdfast.evaluation.answers.journal import Journal
from holdfast.evaluation.judged.assets import all_finite, content_hash
from holdfast.evaluation.judged.judgment_files import AskedWith

REPLIES, FAILURES = "judge_replies.jsonl", "failures.jsonl"

MISSING_LIMIT = 0.05  # share of judgments that may be missing or unread before a headline is withheld


@dataclass(frozen=True)
class Known:
    """A reply that a judgment file holds.

    Attributes:
        request: that it answers.
        tstamp: seconds since 1970; 0 where the file does not say.
        asked: how it was asked, where the file says so.
    """

    request: Request
    text: str
    tstamp: float = 0.0
    asked: AskedWith | None = None


@dataclass(frozen=True)
class Judgment:
    """One reply of a judge as a file has it: a row, or a game of one.

    Attributes:
        place: question, and turn or game.
        judge, prompt, system: who was asked, and its user and system message; None where the file does not say.
    """

    place: tuple[Any, int]
    judge: str | None
    prompt: str | None
    system: str | None
    text: str
    tstamp: float = 0.0
    asked: AskedWith | None = None


class Call(Protocol):
    """What a benchmark asks its judge at one place."""

    @property
    def place(self) -> tuple[Any, int]:
        """Question, and turn or game."""

    @property
    def messages(self) -> Sequence[Mapping[str, str]]:
        """That are sent."""

    @property
    def request(self) -> Request:
        """See `Judge.request`."""


@dataclass(frozen=True)
class Judge:
    """Who judges.

    Attributes:
        model: the name that is asked for; it stands in the judgment files.
        settings: of decoding.
        generator: that asks it; None: nothing is asked, what is on the disk is read.
    """

    model: str
    settings: Settings
    generator: Generator | None = None

    def request(self, messages: Sequence[Mapping[str, str]], *place: str | int) -> Request:
        """A request at a place (question, prompt, turn, ...).

        Its key holds a hash of everything that is sent: a reply belongs to one text alone, so answers that were
        written anew, other prompts or settings are asked again, in the same folder.
        """
        asked = content_hash([self.model, [dict(m) for m in messages], self.settings.as_dict()])
        return Request((*place, asked[:20]), [dict(m) for m in messages], self.settings)


@dataclass
class Replies:
    """What the judge said, by a request's key.

    Attributes:
        texts: of the replies.
        times: seconds since 1970, when each came.
        asked_with: how each was asked; None where it is of a file that does not say.
        cut: keys of replies that ended at the limit of tokens.
        failed: keys without a reply that somebody was asked for, and why.
        imported: keys of replies that came out of a judgment file once.
    """

    texts: dict[Any, str] = field(default_factory=dict)
    times: dict[Any, float] = field(default_factory=dict)
    asked_with: dict[Any, AskedWith | None] = field(default_factory=dict)
    cut: list[Any] = field(default_factory=list)
    failed: dict[Any, str] = field(default_factory=dict)
    imported: set[Any] = field(default_factory=set)

    def add(self, more: Replies) -> None:
        """Take in what was said to other requests."""
        self.texts |= more.texts
        self.times |= more.times
        self.asked_with |= more.asked_with
        self.cut += more.cut
        self.failed |= more.failed
        self.imported |= more.imported


def fitting(judgments: Sequence[Judgment], calls: Sequence[Call], judge: Judge) -> list[Known]:
    """The judgments that answer exactly what a call asks, as far as their file says."""
    asked = {call.place: call for call in calls}
    settings = judge.settings.as_dict()
    known = []
    for one in judgments:
        call = asked.get(one.place)
        if call is None or one.judge != judge.model or not is_of(one, call.messages):
            continue
        # files that do not say were asked with the benchmark's own settings, which `extra` departs from
        alike = not judge.settings.extra if one.asked is None else one.asked.settings == settings
        if alike:
            known.append(Known(call.request, one.text, one.tstamp, one.asked))
    return known


def is_of(one: Judgment, messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether a judgment is of exactly these messages, as far as its file says."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    return one.prompt == messages[-1]["content"] and one.system in (None, system)


def gather(judge: Judge, requests: Sequence[Request], folder: Path, known: Sequence[Known] = ()) -> Replies:
    """The replies to these requests: from the folder's journal, and, where the judge can be asked, from it.

    Each reply is on the disk before its worker asks the next. What fails is in `failures.jsonl`.

    Args:
        known: what judgment files hold; of several to one request the last counts, as everywhere, and a reply of the
            journal before all. It goes into the journal first, and is not paid for; where nobody can be asked, it is
            read, and nothing is written.

    Raises:
        DataError: the journal holds what is no reply.
        FolderInUse: another process judges in this folder.
        CallError: the judge cannot be reached at all.
    """
    path = folder / REPLIES
    found = Replies()
    told = {one.request.key: _known_row(one) for one in known}
    if judge.generator is None and not path.exists():
        _take(found, requests, told.get)
        return found
    with _opened(path) as journal:
        if judge.generator is not None:
            for key, row in told.items():
                if not journal.has(key):
                    journal.add(row)
            collected = collect(judge.generator, requests, journal, folder / FAILURES, row_of=_row)
            found.failed.update(collected.failed)
        _take(found, requests, lambda key: journal.get(key) or told.get(key))
    return found


def _take(
    found: Replies, requests: Sequence[Request], row_of: Callable[[Any], Mapping[str, Any] | None]
) -> None:
    for request in requests:
        key, row = request.key, row_of(request.key)
        if row is None:
            continue
        found.texts[key] = row["text"]
        found.times[key] = row["tstamp"]
        if row["imported"]:
            found.imported.add(key)
        settings = row["settings"]
        found.asked_with[key] = None if settings is None else AskedWith(settings, tuple(row["served"]))
        if row["finish_reason"] == "length":
            found.cut.append(key)


def _opened(path: Path) -> Journal:
    """The folder's replies.

    Raises:
        DataError: a row is no reply of a judge.
    """
    journal = Journal(path, key=lambda row: tuple(row["key"]))
    for row in journal.rows():
        if not _is_reply(row):
            journal.close()
            raise DataError(
                f"'{path}': the row of {row['key']!r} is no judge's reply as this version writes it; mend or remove it"
            )
    return journal


def _is_reply(row: Mapping[str, Any]) -> bool:
    served = row.get("served")
    return (
        isinstance(row["key"], list)
        and all_finite(row)
        and isinstance(row.get("text"), str)
        and isinstance(row.get("tstamp"), int | float)
        and isinstance(row.get("imported"), bool)
        and isinstance(row.get("settings", 0), dict | None)
        and isinstance(row.get("finish_reason", 0), str | None)
        and isinstance(served, list)
        and all(isinstance(name, str) for name in served)
    )


def _row(request: Request, reply: Reply, _digest: str) -> dict[str, Any]:
    """Of the journal, for a reply that was paid for."""
    return {
        "key": list(request.key),
        "text": reply.text,
        "settings": request.settings.as_dict(),
        "served": [] if reply.model is None else [reply.model],
        "finish_reason": reply.finish_reason,
        "usage": None if reply.usage is None else asdict(reply.usage),
        "tstamp": time.time(),
        "imported": False,
    }


def _known_row(one: Known) -> dict[str, Any]:
    """Of the journal, for a reply of somebody's judgment file."""
    return {
        "key": list(one.request.key),
        "text": one.text,
        "settings": None if one.asked is None else dict(one.asked.settings),
        "served": [] if one.asked is None else list(one.asked.served),
        "finish_reason": None,
        "usage": None,
        "tstamp": one.tstamp,
        "imported": True,
    }


def served_otherwise(judge: Mapping[str, Any], official: Sequence[str] = ()) -> list[str]:
    """What a server says it is, where that is not what was asked for.

    The same name with a date (`gpt-4-0613`, `gpt-4o-2024-08-06`) is; with anything else (`gpt-4o-mini`) it is another.

    Args:
        official: the judges of a benchmark; where one of them is asked for, one of them must have served.
    """
    asked = judge["asked"]
    same = re.compile(re.escape(asked) + r"(-[0-9]{4}|-[0-9]{4}-[0-9]{2}-[0-9]{2})?")
    others = [
        name
        for name in judge.get("served", {})
        if not same.fullmatch(name) or (asked in official and name not in official)
    ]
    return [f"the server of {asked} says that it is {', '.join(sorted(others))}"] if others else []


def nothing_said(what: str, judge: Judge, requests: Sequence[Request], replies: Replies, folder: Path) -> str:
    """Words on why there is no judgment at all, and what to do."""
    if not requests:
        return (
            f"'{folder}': {what}, and no answers to ask about; give --answers or --judgments, or have them "
            "written with --model and --judge-url"
        )
    if replies.failed:
        first = next(iter(replies.failed.values()))
        why = f"{len(replies.failed)} calls failed (the first: {first}); see {folder / FAILURES}"
    else:
        why = "nobody was asked"
    return f"{what} by '{judge.model}' is there: {why}{_other_replies(requests, folder)}"


def _other_replies(requests: Sequence[Request], folder: Path) -> str:
    """Words on replies of the folder's journal to the same questions that answer other requests; else nothing."""
    path = folder / REPLIES
    if not path.exists():
        return ""
    with _opened(path) as journal:
        places = {tuple(row["key"][:-1]) for row in journal.rows()}
        count = sum(request.key[:-1] in places and not journal.has(request.key) for request in requests)
    if not count:
        return ""
    return (
        f"; there are {count} replies to the same questions under other judge settings, prompts or answers: give the "
        "run's --judge-model and --judge-extra"
    )


def unpaid(requests: Sequence[Request], folder: Path) -> list[Request]:
    """The requests that the folder's journal has no reply to."""
    path = folder / REPLIES
    if not path.exists():
        return list(requests)
    with _opened(path) as journal:
        return [request for request in requests if not journal.has(request.key)]
